"""One line that says on what a figure was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path


def describe(device: str = "cpu") -> str:
    """Returns processor, cores, memory and Python, as far as the system tells, and the GPU if `device` is `cuda`."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor() or "unknown processor",
    )
    memory = next((int(line.split()[1]) >> 20 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    gpu = "" if device == "cpu" else f"{_gpu()}, "
    return f"{gpu}{cpu}, {os.cpu_count()} cores, {memory} GiB, Python {platform.python_version()}"


def _gpu() -> str:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, check=True, capture_output=True, text=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return "unknown GPU"
    return f"{len(found)} x {found[0]}" if found else "no GPU"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
