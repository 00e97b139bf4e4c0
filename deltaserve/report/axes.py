"""What plots are made of: scales, grids, ticks and names, in a box of 440 units. Colours are page.css's."""

from __future__ import annotations

import math
from dataclasses import dataclass

from deltaserve.report.markup import Html, join, tag

WIDTH = 440.0
LEFT, RIGHT, TOP = 40.0, 6.0, 18.0
PLOT = 150.0  # height of a plot's area
BOTTOM = 36.0  # below it, for ticks and the axis's name


@dataclass(frozen=True, slots=True)
class Scale:
    """Takes values from low to high onto pixels from begin to end; logarithmic on request (then low > 0)."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Returns the pixel of a value, cut to the range."""
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, self._within(value)))
        return self.begin + (self.end - self.begin) * (at - low) / (high - low)

    def _within(self, value: float) -> float:
        return min(max(value, self.low), self.high)


def svg(key: str, title: str, description: str, height: float, *children: Html) -> Html:
    """Returns a picture with a title and a description for those who do not see it."""
    return tag(
        "svg",
        tag("title", title, id=f"{key}-title"),
        tag("desc", description, id=f"{key}-desc"),
        *children,
        viewBox=f"0 0 {WIDTH:g} {height:g}",
        role="img",
        aria_labelledby=f"{key}-title {key}-desc",
    )


def grid(y: Scale) -> Html:
    """Returns levels at round values, from 0 up."""
    step = _round_step(y.high / 4)
    return join(level(y(step * i), f"{step * i:,.6g}") for i in range(int(y.high / step + 1e-9) + 1))


def level(y: float, name: str) -> Html:
    """Returns a line across the plot with its name beside it."""
    return join([
        tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"),
        tag("text", name, x=LEFT - 6, y=y + 4, text_anchor="end"),
    ])  # fmt: skip


def tick(x: float, name: str, *, line: bool = True) -> Html:
    """Returns a name below the plot, with a stroke or without."""
    floor = TOP + PLOT
    return join([
        tag("line", x1=x, x2=x, y1=floor, y2=floor + 4, class_="tick") if line else None,
        tag("text", name, x=x, y=floor + 16, text_anchor="middle"),
    ])  # fmt: skip


def mark(x: float, name: str) -> Html:
    """Returns a dashed line down the plot, named at its top."""
    side = "end" if x > WIDTH - 80 else "start"
    return join([
        tag("line", x1=x, x2=x, y1=TOP - 4, y2=TOP + PLOT, class_="mark"),
        tag("text", name, x=x + (4 if side == "start" else -4), y=TOP + 4, text_anchor=side, class_="name"),
    ])  # fmt: skip


def x_name(name: str) -> Html:
    """Returns the name of the axis below."""
    return tag("text", name, x=(LEFT + WIDTH - RIGHT) / 2, y=TOP + PLOT + 32, text_anchor="middle", class_="name")


def y_name(name: str) -> Html:
    """Returns the name of the axis at the left."""
    return tag("text", name, x=0, y=10, class_="name")


def round_up(value: float) -> float:
    """Returns the least value from this on that four round steps, or fewer, reach; the value is above 0."""
    step = _round_step(value / 4)
    return step * math.ceil(value / step - 1e-9)


def _round_step(value: float) -> float:
    """Returns the next 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= value * (1 - 1e-9))
