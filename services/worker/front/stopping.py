"""Stop strings over text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Looks for stop strings; holds text back only while it may be the beginning of one.

    The match that completes first ends the text (the longest of those that complete together), so the outcome does not
    depend on how the text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        """Looks for `stops` (none empty); `include` leaves the matched one in the text."""
        self._stops = tuple(stops)
        self._include = include
        self._first = {stop[0] for stop in self._stops}
        self._longest = max((len(stop) for stop in self._stops), default=0)
        self._held = ""

    def push(self, piece: str) -> tuple[str, str | None]:
        """Takes a piece; returns the text that may be shown, and the stop string that matched."""
        if not self._stops:
            return piece, None
        text = self._held + piece
        matches = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if matches:
            end, start, stop = min(matches)
            self._held = ""
            return text[: end if self._include else start], stop
        hold = self._hold_from(text)
        self._held = text[hold:]
        return text[:hold], None

    def flush(self) -> str:
        """Returns what was held back; the text ends without a match."""
        held, self._held = self._held, ""
        return held

    def _hold_from(self, text: str) -> int:
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._first and any(stop.startswith(text[start:]) for stop in self._stops):
                return start
        return len(text)
