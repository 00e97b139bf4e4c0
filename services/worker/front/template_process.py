"""A process that renders chat templates for this one, and is replaced when a template was too much for it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field

import msgspec

from deltaserve.errors import InternalError
from services.worker.front.template_messages import Render, Rendered, read_frame, write_frame

_STUCK_SECONDS = 60.0  # of wall time: the kernel should have ended a process that computes long before
_ATTEMPTS = 2  # a process that died while idle is nobody's fault


class TemplateLimitError(Exception):
    """The process was ended while it compiled or rendered: the template took too much time or memory."""


@dataclass
class TemplateProcess:
    """Renders one template at a time. Thread-safe; calls block. The process starts with the first call."""

    _process: subprocess.Popen[bytes] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def render(self, request: Render) -> Rendered:
        """Compiles and renders.

        Raises:
            TemplateLimitError: it took too much time or memory.
            InternalError: no process can be started.
        """
        data = msgspec.msgpack.encode(request)
        with self._lock:
            for _ in range(_ATTEMPTS):
                process = self._running()
                try:
                    return self._ask(process, data)
                except BrokenPipeError:
                    self._end()
        raise InternalError("the process that renders chat templates ends as soon as it starts; see the worker's log")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            environ = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
            self._process = subprocess.Popen(
                [sys.executable, "-m", "services.worker.front.template_child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environ,
                process_group=0,
            )
        return self._process

    def _ask(self, process: subprocess.Popen[bytes], data: bytes) -> Rendered:
        if process.stdin is None or process.stdout is None:
            raise InternalError("a process without pipes")
        watch = threading.Timer(_STUCK_SECONDS, process.kill)
        watch.daemon = True
        watch.start()
        try:
            write_frame(process.stdin, data)
            reply = read_frame(process.stdout)
        finally:
            watch.cancel()
        if reply is None:
            self._end()
            raise TemplateLimitError
        return msgspec.msgpack.decode(reply, type=Rendered)

    def _end(self) -> None:
        """Forgets a process that is of no use any more."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
