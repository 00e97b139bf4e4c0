"""Bounds what memory a stranger's JSON can take, before it is parsed: the smallest values cost most for their bytes."""

from __future__ import annotations

MAX_VALUES = 200_000
"""Most values in one document; of the smallest values these take about 35 MB in Python."""


def most_values(data: bytes) -> int:
    """Returns an upper bound of the number of values in a JSON document, without parsing it."""
    return 1 + data.count(b",") + data.count(b"[") + data.count(b"{")


def check_values(data: bytes, most: int = MAX_VALUES) -> None:
    """Raises ValueError for JSON that could hold more values; commas and brackets in strings count too."""
    found = most_values(data)
    if found > most:
        raise ValueError(f"it has up to {found} values; expected at most {most}")
