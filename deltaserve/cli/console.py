"""The terminal: two consoles, and numbers as people read them."""

from __future__ import annotations

import os

from rich.console import Console
from rich.table import Table

_PIPED_WIDTH = 120  # columns when nobody's terminal says how wide it is


def make_console(*, stderr: bool = False) -> Console:
    """Returns a console for standard output or error, plain and wide enough for tables when it is no terminal.

    Markup is off: what is printed may be anybody's text, and brackets in it mean nothing.
    """
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPED_WIDTH
    return console


def make_table(*columns: str, title: str | None = None) -> Table:
    """Returns a table without frames; a column whose name begins with `>` is aligned to the right."""
    table = Table(
        box=None, title=title, title_justify="left", header_style="bold", pad_edge=False, padding=(0, 2, 0, 0)
    )
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    return table


def bytes_text(count: float) -> str:
    """Returns bytes in powers of 1000: `14.7 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def ratio_text(whole: float, part: float) -> str:
    """Returns how many times smaller `part` is: `6.1x`; a dash when either is nothing."""
    return f"{whole / part:.1f}x" if whole and part else "-"


def bits_text(stored_bytes: float, parameters: float) -> str:
    """Returns stored bits a parameter: `4.13`; a dash when there are none."""
    return f"{8 * stored_bytes / parameters:.2f}" if parameters else "-"


def seconds_text(seconds: float) -> str:
    """Returns a time span: `340 ms`, `12 s`, `3 min 05 s`."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
