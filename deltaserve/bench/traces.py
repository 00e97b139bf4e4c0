"""Schedules as files: the published traces, and what a former run sent. JSON lines, see workload.Planned."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from deltaserve.bench.workload import Planned
from deltaserve.errors import FormatError, InvalidArgumentError

_DECODER = msgspec.json.Decoder(Planned)


def read_trace(path: Path) -> list[Planned]:
    """Returns a trace's requests by time; raises FormatError naming the line that is malformed."""
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(_DECODER.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise FormatError(f"{path.name} line {number}: {error}; expected a request of a trace") from error
    if not found:
        raise FormatError(f"{path.name} holds no request")
    return sorted(found, key=lambda one: one.at)


def write_trace(path: Path, planned: Sequence[Planned]) -> None:
    """Writes requests so that `read_trace` returns them."""
    path.write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in planned))


def replay(planned: Sequence[Planned], models: Sequence[str], speed: float, seconds: float | None) -> list[Planned]:
    """Returns a trace as it is sent.

    Args:
        planned: the trace.
        models: whom to ask: the trace's models, in the order of their names and numbers, stand for these in turn.
            Empty: the trace's own names.
        speed: how many times faster than it was.
        seconds: what is due later, after speeding up, is left out; None for no limit.

    Raises:
        InvalidArgumentError: speed is not above 0, or nothing is left.
    """
    if not speed > 0:
        raise InvalidArgumentError(f"speed is {speed:g}; expected more than 0", field="speed")
    names = sorted({one.model for one in planned}, key=_natural)
    asked = {name: models[i % len(models)] if models else name for i, name in enumerate(names)}
    sped = [msgspec.structs.replace(one, at=one.at / speed, model=asked[one.model]) for one in planned]
    kept = [one for one in sped if seconds is None or one.at < seconds]
    if not kept:
        raise InvalidArgumentError(f"the trace has no request in its first {seconds:g} s", field="duration")
    return kept


def _natural(name: str) -> list[tuple[int, str]]:
    """Orders delta-2 before delta-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
