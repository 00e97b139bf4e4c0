"""A pipeline run in a process of its own: its memory, on host and GPU, and where its time goes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

_STEPS = ("q, k, v", "o", "gate, up", "down", "rest of the layer")
_SAMPLE_SECONDS = 0.2


@dataclass
class Clock:
    """Seconds by phase and by step of a layer, from what the run tells.

    Attributes:
        phases: by name, in the order in which they were first met.
        steps: seconds of each of a layer's steps, over all layers but the first, which comes after the embedding.
        layers: seconds of each layer but the first.
    """

    phases: dict[str, float] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)
    layers: list[float] = field(default_factory=list)
    _phase: str = "prepare"
    _at: float = field(default_factory=time.monotonic)
    _layer: tuple[int, float, float, int] = (0, 0.0, 0.0, 0)  # number, when it began, last line, lines
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def enter(self, phase: str) -> None:
        """Ends the phase at hand and begins another."""
        with self._lock:
            now = time.monotonic()
            self.phases[self._phase] = self.phases.get(self._phase, 0.0) + now - self._at
            self._phase, self._at = phase, now

    def line(self, text: str) -> None:
        """Takes a line of progress."""
        told = json.loads(text)
        done, total = told["layers_done"], told["layers_total"]
        if told["stage"] == "evaluating":
            self.enter("evaluate")
        elif told["stage"] == "compressing":
            self.enter("embedding, first layer" if done == 0 else "other layers" if done < total else "head")
            self._step(done)

    def log(self, text: str) -> None:
        """Takes a line of the log."""
        if "profiling over" in text:
            self.enter("profile")
        elif re.search(r"attempt \d+: ", text):
            self.enter("side by side, delivery")

    def _step(self, done: int) -> None:
        number, began, last, lines = self._layer
        now = time.monotonic()
        ended = done == number + 1
        if number > 0 and lines < len(_STEPS) and (ended or done == number):
            step = _STEPS[-1 if ended else lines]
            self.steps[step] = self.steps.get(step, 0.0) + now - last
        if number > 0 and ended:
            self.layers.append(now - began)
        self._layer = (number, began, now, lines + 1) if done == number else (done, now, now, 0)


@dataclass
class Peaks:
    """Most bytes seen.

    Attributes:
        host: resident memory of the process, pages of files it maps included.
        private: the part of it that belongs to no file, sampled.
        device: of the whole GPU, less what was in use before, sampled; 0 without one.
        allocated, reserved: what the process's allocator counted on the GPU; 0 without one.
    """

    host: int = 0
    private: int = 0
    device: int = 0
    allocated: int = 0
    reserved: int = 0


def run(spec: Path, gpu: int | None) -> tuple[float, Peaks, Clock]:
    """Runs a specification; returns seconds, peaks and the clock. Raises RuntimeError when the run fails.

    Args:
        spec: the specification's file.
        gpu: number of the GPU to watch, as nvidia-smi counts; None for none.
    """
    peaks, clock = Peaks(), Clock()
    watch = _watch_gpu(gpu, peaks) if gpu is not None else None
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "services.compressor.pipeline", str(spec)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"} | os.environ,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    threads = [
        threading.Thread(target=_follow_log, args=(process.stderr, clock, peaks)),
        threading.Thread(target=_sample_host, args=(process.pid, peaks), daemon=True),
    ]
    for thread in threads:
        thread.start()
    for line in process.stdout:
        clock.line(line)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - began
    clock.enter("")
    for thread in threads:
        thread.join()
    if watch is not None:
        watch.terminate()
        watch.wait()
    if process.returncode:
        raise RuntimeError(f"the pipeline ended with status {process.returncode}; its log is above")
    peaks.host = usage.ru_maxrss << 10
    return seconds, peaks, clock


def kill_at(spec: Path, layers: int) -> int:
    """Runs a specification and kills the process by SIGKILL as soon as so many layers are done; returns how many were.

    Raises RuntimeError when the run ends before.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "services.compressor.pipeline", str(spec)],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"} | os.environ,
    )
    assert process.stdout is not None
    for line in process.stdout:
        done: int = json.loads(line)["layers_done"]
        if done >= layers:
            process.kill()
            process.communicate()
            return done
    raise RuntimeError(f"the pipeline ended with status {process.wait()} before {layers} layers were done")


def contents(folder: Path) -> dict[str, str]:
    """Returns sha256 of all files of a result by name; of the manifest without the time of its making."""
    found = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    manifest = json.loads((folder / "manifest.json").read_bytes())
    del manifest["created"]
    return found | {"manifest.json": hashlib.sha256(json.dumps(manifest).encode()).hexdigest()}


def _follow_log(log: IO[str], clock: Clock, peaks: Peaks) -> None:
    for line in log:
        sys.stderr.write(line)
        clock.log(line)
        if told := re.search(r"device memory: peak (\d+) bytes allocated, (\d+) bytes reserved", line):
            peaks.allocated, peaks.reserved = int(told[1]), int(told[2])


def _sample_host(pid: int, peaks: Peaks) -> None:
    status = Path(f"/proc/{pid}/status")
    with suppress(OSError):
        while found := re.search(r"RssAnon:\s+(\d+) kB", status.read_text()):
            peaks.private = max(peaks.private, int(found[1]) << 10)
            time.sleep(_SAMPLE_SECONDS)


def _watch_gpu(gpu: int, peaks: Peaks) -> subprocess.Popen[str] | None:
    query = ["nvidia-smi", f"--id={gpu}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        before = int(subprocess.run(query, check=True, capture_output=True, text=True).stdout)
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        sys.stderr.write(f"nvidia-smi tells nothing, so the GPU's memory in use is not sampled: {error}\n")
        return None
    process = subprocess.Popen([*query, "-lms", str(int(_SAMPLE_SECONDS * 1000))], stdout=subprocess.PIPE, text=True)

    def follow() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip().isdigit():
                peaks.device = max(peaks.device, (int(line) - before) << 20)

    threading.Thread(target=follow, daemon=True).start()
    return process
