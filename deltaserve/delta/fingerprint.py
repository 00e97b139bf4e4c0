"""The identity of a base: a hash over names, dtypes, shapes and contents of all its tensors.

How tensors are spread over shards, and free-form metadata, do not matter.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.headers import TensorHeader
from deltaserve.errors import DataLossError
from deltaserve.files import publish, temp_beside

_BLOCK_BYTES = 4 << 20
_THREADS = 8  # one hashes 0.5 to 2 GB a second, far less than files in memory give


def fingerprint(checkpoint: Checkpoint) -> str:
    """Returns the fingerprint of a checkpoint: 64 lower-case hex digits.

    It is the sha256 over one line of compact JSON per tensor, in order of names: [name, dtype, shape, sha256 of its
    little-endian bytes], each line ended by a newline.
    """
    whole = hashlib.sha256()
    headers = sorted(checkpoint.tensors.items())
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        contents = pool.map(_content, (header for _, header in headers))
        for (name, header), content in zip(headers, contents, strict=True):
            line = [name, header.dtype, list(header.shape), content]
            whole.update(json.dumps(line, separators=(",", ":")).encode() + b"\n")
    return whole.hexdigest()


def cached_fingerprint(checkpoint: Checkpoint, cache_dir: Path) -> str:
    """Returns the fingerprint, from `cache_dir` when files of the same paths, sizes and modification times were hashed.

    Args:
        checkpoint: what to identify.
        cache_dir: a folder of its own, created when missing; losing it costs time only.
    """
    path = cache_dir / f"{_cache_key(checkpoint)}.txt"
    if path.is_file() and len(text := path.read_text()) == 64:
        return text
    value = fingerprint(checkpoint)
    temp = temp_beside(path)
    temp.write_text(value)
    publish(temp, path)
    return value


def _cache_key(checkpoint: Checkpoint) -> str:
    files = sorted({header.file.resolve() for header in checkpoint.tensors.values()})
    facts = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _content(header: TensorHeader) -> str:
    digest, left = hashlib.sha256(), header.bytes
    with header.file.open("rb") as file:
        file.seek(header.begin)
        while left:
            block = file.read(min(left, _BLOCK_BYTES))
            if not block:
                raise DataLossError(f"{header.file.name}: tensor {header.name!r} lacks its last {left} bytes")
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()
