"""What one call costs this process: CPU seconds, and how far its memory grew at the highest point."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_NEAR = 8 << 20


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds of this process's threads, and bytes by which its resident set grew at most."""

    seconds: float
    growth: int


def measured(call: Callable[[], object]) -> Cost:
    """Runs `call`, which handles its own errors, and returns what it cost. Linux only.

    The kernel's peak of the resident set is reset before, where that is allowed and the peak is far from the present.
    """
    before = _field("VmRSS")
    if _field("VmHWM") - before > _NEAR:
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5")
    began = time.process_time()
    call()
    return Cost(time.process_time() - began, max(0, _field("VmHWM") - before))


def _field(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"{_STATUS} has no {name}")
