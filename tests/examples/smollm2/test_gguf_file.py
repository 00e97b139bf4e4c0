import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from examples.smollm2.gguf_file import parse

Blocks = dict[str, tuple[int, tuple[int, ...], bytes]]


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def file(metadata: bytes, keys: int, tensors: Blocks) -> bytes:
    """A file after the format's description: header, metadata, tensor table, padding, tensors."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), keys) + metadata
    body = b""
    for name, (kind, shape, data) in tensors.items():
        body += b"\0" * (-len(body) % 32)
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, len(body))
        body += data
    return head + b"\0" * (-len(head) % 32) + body


def q4_1(codes: NDArray[np.uint8], d: np.float16, m: np.float16) -> bytes:
    low, high = codes[:16], codes[16:]
    return d.tobytes() + m.tobytes() + (low | high << 4).astype(np.uint8).tobytes()


def test_tensors_of_every_type(tmp_path: Path) -> None:
    random = np.random.default_rng()
    whole = random.standard_normal((3, 5)).astype(np.float32)
    codes = random.integers(0, 16, (4, 32), dtype=np.uint8)
    d, m = (random.standard_normal(4).astype(np.float16) for _ in range(2))
    signed = random.integers(-128, 128, (2, 32), dtype=np.int8)
    tensors: Blocks = {
        "whole": (0, (3, 5), whole.tobytes()),
        "half": (1, (3, 5), whole.astype(np.float16).tobytes()),
        "four": (3, (2, 64), b"".join(q4_1(codes[i], d[i], m[i]) for i in range(4))),
        "eight": (8, (1, 64), b"".join(d[i].tobytes() + signed[i].tobytes() for i in range(2))),
    }
    gguf = parse(file(b"", 0, tensors))
    assert gguf.shapes == {"whole": (3, 5), "half": (3, 5), "four": (2, 64), "eight": (1, 64)}
    np.testing.assert_array_equal(gguf.tensor("whole"), whole)
    np.testing.assert_array_equal(gguf.tensor("half"), whole.astype(np.float16).astype(np.float32))
    wide, base = (value.astype(np.float32)[:, None] for value in (d, m))
    np.testing.assert_allclose(gguf.tensor("four"), (wide * codes + base).reshape(2, 64), rtol=1e-6)
    np.testing.assert_array_equal(gguf.tensor("eight"), (wide[:2] * signed.astype(np.float32)).reshape(1, 64))


def test_metadata() -> None:
    metadata = text("name") + struct.pack("<I", 8) + text("é")
    metadata += text("count") + struct.pack("<Ii", 5, -7)
    metadata += text("list") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")
    metadata += text("flag") + struct.pack("<I?", 7, True)
    assert parse(file(metadata, 4, {})).metadata == {"name": "é", "count": -7, "list": ["a", "b"], "flag": True}


def test_other_files_are_refused() -> None:
    with pytest.raises(ValueError, match="expected b'GGUF'"):
        parse(b"PK\3\4" + bytes(100))
    with pytest.raises(ValueError, match="'six' is of type 14"):
        parse(file(b"", 0, {"six": (14, (1, 256), bytes(210))}))
