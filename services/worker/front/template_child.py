"""The process that chat templates run in; started by `template_process`, it ends when its standard input does.

Templates are programs of strangers, and the sandbox of jinja2 bounds neither what they compute nor what they allocate.
"""

from __future__ import annotations

import functools
import resource
import signal
import sys
import time
from pathlib import Path
from typing import BinaryIO

import jinja2
import msgspec

from services.worker.front.template_messages import (
    CPU_SECONDS,
    MAX_CHARACTERS,
    MEMORY_BYTES,
    Render,
    Rendered,
    read_frame,
    write_frame,
)
from services.worker.front.templates import make_environment

_FILES = 16  # descriptors: it needs no other than its pipes


def main() -> None:
    """Serves until end of input."""
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    _confine()
    while (data := read_frame(requests)) is not None:
        serve(data, replies)


def serve(data: bytes, replies: BinaryIO) -> None:
    """Answers one request; the kernel ends this process when that takes more than CPU_SECONDS."""
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    request = msgspec.msgpack.decode(data, type=Render)
    write_frame(replies, msgspec.msgpack.encode(_answer(request)))
    signal.setitimer(signal.ITIMER_PROF, 0)


def _answer(request: Render) -> Rendered:
    try:
        template = _compiled(request.source)
    except Exception as error:  # noqa: BLE001 - constants are computed while it compiles, so it can raise anything
        return Rendered(malformed=_told(error))
    if request.messages is None:
        return Rendered()
    try:
        text = template.render(
            messages=request.messages,
            add_generation_prompt=request.add_generation_prompt,
            tools=None,
            documents=None,
            **request.special_tokens,
        )
        text.encode()  # a template can spell half of a surrogate pair
    except Exception as error:  # noqa: BLE001 - it is the model's own code
        return Rendered(refused=_told(error))
    if len(text) > MAX_CHARACTERS:
        return Rendered(refused=f"it makes {len(text)} characters; expected at most {MAX_CHARACTERS}")
    return Rendered(text=text)


@functools.lru_cache(64)
def _compiled(source: str) -> jinja2.Template:
    return make_environment().from_string(source)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:2000]


def _confine() -> None:
    """Leaves this process memory for one rendering, its pipes, and nothing to write files with."""
    time.localtime()  # reads the time zone's file while files can be opened
    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = ((resource.RLIMIT_AS, own + MEMORY_BYTES), (resource.RLIMIT_NOFILE, _FILES), (resource.RLIMIT_FSIZE, 0))
    for which, most in limits:
        resource.setrlimit(which, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
