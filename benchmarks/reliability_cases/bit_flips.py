"""Flips single bits of packed deltas: none may come through `DeltaReader.open`, by which every engine reads them."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from deltaserve.delta.manifest import DELTA_FILE, MANIFEST_FILE
from deltaserve.delta.reader import DeltaReader
from deltaserve.errors import DataLossError, FormatError, InvalidArgumentError


def flip_payload(folder: Path, rng: random.Random, flips: int) -> Counter[str]:
    """Flips one bit of the payload at a time, anywhere in it, and returns the refusals by name.

    Raises:
        AssertionError: a flip was not noticed.
    """
    path = folder / DELTA_FILE
    good = path.read_bytes()
    told: Counter[str] = Counter()
    with path.open("rb+", buffering=0) as file:
        for _ in range(flips):
            bit = rng.randrange(8 * len(good))
            _put(file, bit // 8, good[bit // 8] ^ 1 << bit % 8)
            try:
                DeltaReader.open(folder)
            except (DataLossError, FormatError) as error:
                told[type(error).__name__] += 1
            else:
                raise AssertionError(f"bit {bit} of {path} was flipped and nobody noticed")
            finally:
                _put(file, bit // 8, good[bit // 8])
    DeltaReader.open(folder)
    return told


def flip_manifest(folder: Path, rng: random.Random, flips: int) -> Counter[str]:
    """Flips one bit of the manifest at a time; returns the refusals by name, and how often it says the same of tensors.

    Raises:
        AssertionError: a flipped manifest is read, and says something else about the bytes of a tensor.
    """
    path = folder / MANIFEST_FILE
    good, whole = path.read_bytes(), DeltaReader.open(folder).manifest
    told: Counter[str] = Counter()
    for _ in range(flips):
        bit = rng.randrange(8 * len(good))
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        try:
            found = DeltaReader.open(folder).manifest
        except (DataLossError, InvalidArgumentError) as error:
            told[type(error).__name__] += 1
        else:
            known = {t.name: (t.sha256, t.codec, t.shape, t.params) for t in whole.tensors}
            read = {t.name: (t.sha256, t.codec, t.shape, t.params) for t in found.tensors}
            # a name or a base tensor may read otherwise: the base is checked against both before anything is loaded
            assert len(read) == len(known), f"bit {bit} of {path} was flipped"
            assert sorted(map(str, read.values())) == sorted(map(str, known.values())), f"bit {bit} of {path}"
            told["the same tensors"] += 1
    path.write_bytes(good)
    return told


def _put(file: object, at: int, byte: int) -> None:
    file.seek(at)  # type: ignore[attr-defined]
    file.write(bytes([byte]))  # type: ignore[attr-defined]
