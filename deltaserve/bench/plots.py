"""Plots of a run: how latencies spread, what went on over time, which model waited how long."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from deltaserve.bench.figures import Figures
from deltaserve.bench.summary import Timeline
from deltaserve.report.axes import (
    BOTTOM,
    LEFT,
    PLOT,
    RIGHT,
    TOP,
    WIDTH,
    Scale,
    grid,
    level,
    mark,
    round_up,
    svg,
    tick,
    x_name,
    y_name,
)
from deltaserve.report.markup import Html, join, tag
from deltaserve.report.units import number, power_of_ten

_HEIGHT = TOP + PLOT + BOTTOM
_END = WIDTH - RIGHT - 10  # room for half of the last tick's name
_MOST_MODELS = 128


def spread(key: str, name: str, percentiles: Sequence[float], objective: float | None) -> Html:
    """Returns the cumulative distribution of seconds on a logarithmic axis.

    Args:
        key: of the picture, unique on its page.
        name: what is measured.
        percentiles: 0 to 100.
        objective: marked, when there is one.
    """
    x = _decades([*percentiles, *([objective] if objective else [])])
    y = Scale(0, 100, TOP + PLOT, TOP)
    path = " ".join(f"{x(_least(v)):.1f},{y(share):.1f}" for share, v in enumerate(percentiles))
    p50, p99 = percentiles[50], percentiles[99]
    dots = [_dot(x(_least(v)), y(share), f"p{share}: {number(v)} s") for share, v in ((50, p50), (90, percentiles[90]),
            (99, p99))]  # fmt: skip
    return svg(
        key, f"How {name} spreads", f"median {number(p50)} s, 99th percentile {number(p99)} s", _HEIGHT,
        join(level(y(share), f"{share}") for share in (0, 25, 50, 75, 100)), _ticks(x),
        mark(x(objective), "objective") if objective else Html(""),
        tag("polyline", points=path, class_="path"), *dots, x_name(f"{name}, seconds"), y_name("% at most"),
    )  # fmt: skip


def over_time(key: str, name: str, values: Sequence[float], line: Timeline) -> Html:
    """Returns a quantity of each bin of a timeline as a step line."""
    x = Scale(0, line.seconds * len(values), LEFT, _END)
    top = max(values)
    y = Scale(0, round_up(max(top, 1e-9)), TOP + PLOT, TOP)
    points = []
    for i, value in enumerate(values):
        points += [(x(i * line.seconds), y(value)), (x((i + 1) * line.seconds), y(value))]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    return svg(
        key, f"{name} over time", f"at most {number(top)}", _HEIGHT, grid(y),
        tag("polyline", points=path, class_="path"),
        *(tick(x(share * x.high), number(share * x.high, 2)) for share in (0, 0.25, 0.5, 0.75, 1)),
        x_name("seconds"), y_name(name),
    )  # fmt: skip


def by_model(models: Mapping[str, Figures]) -> Html | None:
    """Returns TTFT by model, median and 99th percentile, the most asked for first; None when no model had a token."""
    found = [(name, f) for name, f in models.items() if f.ttft.count][:_MOST_MODELS]
    if not found:
        return None
    y = _decades([v for _, f in found for v in (f.ttft.p50, f.ttft.p99) if v is not None], TOP + PLOT, TOP)
    step = (WIDTH - LEFT - RIGHT) / len(found)
    shapes = []
    for i, (name, f) in enumerate(found):
        middle = LEFT + step * (i + 0.5)
        low, high = (y(_least(v or 0.0)) for v in (f.ttft.p50, f.ttft.p99))
        told = f"{name}: median {number(f.ttft.p50)} s, p99 {number(f.ttft.p99)} s of {f.ttft.count:,}"
        shapes += [
            tag("line", x1=middle, x2=middle, y1=low, y2=high, class_="worst"),
            _dot(middle, low, told),
        ]
    low, high = (round(math.log10(bound)) for bound in (y.low, y.high))
    levels = [level(y(10.0**power), power_of_ten(power)) for power in range(low, high + 1)]
    return svg(
        "models", "TTFT by model", f"{len(found)} models, the most asked for first", _HEIGHT, join(levels), *shapes,
        x_name("models, the most asked for first: median to p99"), y_name("seconds to the first token"),
    )  # fmt: skip


def _decades(values: Sequence[float], begin: float = LEFT, end: float = _END) -> Scale:
    """Returns a logarithmic scale of whole decades around values."""
    low = math.floor(math.log10(_least(min(values))))
    high = max(math.ceil(math.log10(_least(max(values)))), low + 1)
    return Scale(10.0**low, 10.0**high, begin, end, log=True)


def _ticks(x: Scale) -> Html:
    low, high = (round(math.log10(bound)) for bound in (x.low, x.high))
    return join(tick(x(10.0**power), power_of_ten(power)) for power in range(low, high + 1))


def _least(value: float) -> float:
    return max(value, 1e-5)  # below ten microseconds nothing is told apart


def _dot(x: float, y: float, told: str) -> Html:
    return tag("circle", tag("title", told), cx=x, cy=y, r=3, class_="dot")
