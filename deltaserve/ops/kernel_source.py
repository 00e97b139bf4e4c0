"""CUDA sources as one text: local includes put in place, so that caches are keyed by all that is compiled."""

from __future__ import annotations

import re
from pathlib import Path

from deltaserve.errors import InternalError

KERNELS = ("sbmm", "shrink", "merge", "repack", "decode_lossless")
"""Every kernel: its source is kernels/<name>.cu and its entry point is called <name>."""

SOURCES = Path(__file__).resolve().parents[2] / "kernels"
"""Where the sources are in a checkout."""

_INCLUDE = re.compile(r'^\s*#include\s+"([^"]+)"')
_ONCE = "#pragma once"


def kernel_source(name: str, folder: Path = SOURCES) -> str:
    """Returns the source of a kernel with every local include inlined once; `#line` tells compilers the lines' origin.

    CuPy's disk cache does not look into included files: a changed header would silently run the old binary.

    Raises:
        InternalError: the kernel or a header is not there.
    """
    return "\n".join(_inlined(folder, f"{name}.cu", set())) + "\n"


def _inlined(folder: Path, name: str, seen: set[str]) -> list[str]:
    seen.add(name)
    path = folder / name
    if not path.is_file():
        raise InternalError(f"there is no CUDA source {name} in {folder}; kernels run from a checkout of DeltaServe")
    lines = [f'#line 1 "{name}"']
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        found = _INCLUDE.match(line)
        if found is None:
            lines.append("" if line == _ONCE else line)
            continue
        if found[1] not in seen:
            lines += _inlined(folder, found[1], seen)
        lines.append(f'#line {number + 1} "{name}"')
    return lines
