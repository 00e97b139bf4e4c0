"""Numbers as text for reading: significant digits, units after a narrow space, a dash for what is not there."""

from __future__ import annotations

import math

NONE = "–"
_SPACE = "\u202f"  # narrow, no break
_MINUS = "−"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None, digits: int = 3) -> str:
    """Returns so many significant digits: `0.00188`, `3.2 × 10⁻⁵`, `1,423`."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    power = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if power < -4 or power > 8:
        return f"{_signed(value / 10.0**power, digits - 1)}{_SPACE}×{_SPACE}{power_of_ten(power)}"
    return _signed(value, max(0, digits - 1 - power))


def power_of_ten(power: int) -> str:
    """Returns `10⁻³`; 1 and 10 as they are."""
    return str(10**power) if power in {0, 1} else f"10{str(power).translate(_SUPERSCRIPTS)}"


def percent(share: float | None, decimals: int = 1) -> str:
    """Returns a share of 1 as `99.3 %`; never rounded up to a whole that it is not."""
    if share is None or not math.isfinite(share):
        return NONE
    value = 100 * share
    if value < 100 <= round(value, decimals):
        value = 100 - 10.0**-decimals
    return f"{_signed(value, decimals)}{_SPACE}%"


def points(value: float | None) -> str:
    """Returns a difference of two shares in percent points, with its sign: `−0.5`."""
    if value is None or not math.isfinite(value):
        return NONE
    rounded = round(value, 1)
    if rounded == 0:
        return "0.0"
    return f"+{rounded:.1f}" if rounded > 0 else _signed(rounded, 1)


def bytes_text(count: float) -> str:
    """Returns bytes in powers of 1000: `1.39 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f}{_SPACE}{unit}" if unit == "B" else f"{number(count)}{_SPACE}{unit}"
        count /= 1000
    return f"{number(count)}{_SPACE}TB"


def bits(value: float | None) -> str:
    """Returns bits a parameter with two decimals."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.2f}"


def times(value: float | None) -> str:
    """Returns a ratio: `10.6×`."""
    return NONE if value is None or not math.isfinite(value) else f"{number(value)}×"


def whole(count: int, noun: str) -> str:
    """Returns a count with its noun: `1 row`, `1,298 tokens`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _signed(value: float, decimals: int) -> str:
    return f"{value:,.{decimals}f}".replace("-", _MINUS)
