"""Plots as inline SVG, drawn in a box of 440 units that a phone shows at nearly its size. Colours are page.css's."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
from deltaserve.report.fields import Attempt, ClassSize, Histogram, Layer
from deltaserve.report.markup import Html, join, tag
from deltaserve.report.units import bits, bytes_text, number, power_of_ten

_WIDEST = 28.0  # bar
_FEWEST = 7  # bins


def kl_histogram(histogram: Histogram, p50: float | None, p99: float | None) -> Html:
    """Returns places by KL on a logarithmic axis; the outermost bars take what is beyond the edges."""
    edges, counts = histogram.edges, histogram.counts
    first, last = _filled(counts)
    step = (WIDTH - LEFT - RIGHT) / (last - first + 1)
    y = Scale(0, round_up(max(*counts, 4)), TOP + PLOT, TOP)
    bars = [
        _bar(
            LEFT + step * i,
            y(counts[b]),
            step,
            TOP + PLOT,
            f"{_bin(edges, b)}: {counts[b]:,} tokens",
            beyond=b in {0, len(edges)},
        )
        for i, b in enumerate(range(first, last + 1))
    ]
    # bin b ends at edge b: between the edges around the shown bins, the axis is that of the edges
    inner = Scale(
        edges[max(first - 1, 0)], edges[min(last, len(edges) - 1)],
        LEFT + (step if first == 0 else 0), WIDTH - RIGHT - (step if last == len(edges) else 0), log=True,
    )  # fmt: skip
    decades = range(math.ceil(math.log10(inner.low) - 1e-9), math.floor(math.log10(inner.high) + 1e-9) + 1)
    ticks = [tick(inner(10.0**power), power_of_ten(power)) for power in decades]
    marks = [mark(inner(value), name) for value, name in ((p50, "median"), (p99, "p99")) if value is not None]
    total = sum(counts)
    description = f"{total:,} tokens; median {number(p50)}, 99th percentile {number(p99)} nats"
    return svg(
        "kl", "How KL spreads over tokens", description, TOP + PLOT + BOTTOM,
        grid(y), *bars, *ticks, *marks, x_name("KL, nats a token"), y_name("tokens"),
    )  # fmt: skip


def layer_errors(layers: Sequence[Layer]) -> Html:
    """Returns a bar for each layer's mean error, and a tick at its worst tensor's."""
    errors = [error for layer in layers for error in (layer.error, layer.worst_error) if error is not None]
    top = max([error for error in errors if math.isfinite(error)] + [1e-9])
    y = Scale(0, round_up(top), TOP + PLOT, TOP)
    step = (WIDTH - LEFT - RIGHT) / len(layers)
    every = math.ceil(len(layers) / 12)
    shapes: list[Html] = []
    for i, layer in enumerate(layers):
        x = LEFT + step * i
        shapes.append(_bar(x, y(layer.error), step, TOP + PLOT, f"layer {layer.layer}: mean {number(layer.error)}"))
        if layer.worst_error is not None:
            at = y(layer.worst_error)
            half = 0.35 * min(step, _WIDEST)
            middle = x + step / 2
            shapes.append(tag("line", x1=middle - half, x2=middle + half, y1=at, y2=at, class_="worst"))
        if i % every == 0:
            shapes.append(tick(x + step / 2, str(layer.layer), line=False))
    worst = max(layers, key=lambda layer: layer.error)
    description = f"{len(layers)} layers; the largest mean is {number(worst.error)} in layer {worst.layer}"
    return svg(
        "layers", "Relative output error by layer", description, TOP + PLOT + BOTTOM,
        grid(y), *shapes, x_name("layer"), y_name("relative output error"),
    )  # fmt: skip


def class_sizes(classes: dict[str, ClassSize]) -> Html:
    """Returns two bars a tensor class, checkpoint and delta, on one scale of bytes."""
    x = Scale(0, max([size.checkpoint_bytes for size in classes.values()] + [1]), 0, WIDTH)
    row, shapes = 54.0, []
    for i, (name, size) in enumerate(sorted(classes.items(), key=lambda item: -item[1].checkpoint_bytes)):
        top = i * row
        told = f"{bytes_text(size.checkpoint_bytes)} → {bytes_text(size.delta_bytes)}"
        told += f" · {bits(size.bits_per_parameter)} bits"
        shapes += [
            tag("text", name, x=0, y=top + 14, class_="label"),
            tag("text", told, x=WIDTH, y=top + 14, class_="value", text_anchor="end"),
            _length(x(size.checkpoint_bytes), top + 21, "checkpoint"),
            _length(x(size.delta_bytes), top + 32, "delta"),
        ]
    description = "; ".join(f"{n}: {s.checkpoint_bytes:,} to {s.delta_bytes:,} bytes" for n, s in classes.items())
    return svg("sizes", "Bytes by tensor class", description, max(row, row * len(classes) - 8), *shapes)


def attempts(tries: Sequence[Attempt]) -> Html | None:
    """Returns KL over bits for attempts in their order; None when there is nothing to compare."""
    known = [(one.bits, one.kl) for one in tries if one.kl and 0 < one.kl < math.inf and math.isfinite(one.bits)]
    if len(known) < 2:
        return None
    spread = [bits for bits, _ in known]
    margin = max(0.1, 0.1 * (max(spread) - min(spread)))
    x = Scale(min(spread) - margin, max(spread) + margin, LEFT, WIDTH - RIGHT)
    low, high = (fit(math.log10(edge(kl for _, kl in known))) for fit, edge in ((math.floor, min), (math.ceil, max)))
    y = Scale(10.0**low, 10.0 ** max(high, low + 1), TOP + PLOT, TOP, log=True)
    line = " ".join(f"{x(bits):.1f},{y(kl):.1f}" for bits, kl in known)
    dots = [
        tag("circle", tag("title", f"{bits:.2f} bits, KL {number(kl)}"), cx=x(bits), cy=y(kl), r=4, class_="dot")
        for bits, kl in known
    ]
    lines = [level(y(10.0**p), power_of_ten(p)) for p in range(low, max(high, low + 1) + 1)]
    ends = [tick(x(bits), f"{bits:.2f}") for bits in sorted({min(spread), max(spread)})]
    return svg(
        "attempts", "KL over bits of the attempts", f"{len(known)} attempts", TOP + PLOT + BOTTOM,
        join(lines), tag("polyline", points=line, class_="path"), *dots, *ends,
        x_name("bits a parameter"), y_name("KL, nats a token"),
    )  # fmt: skip


def _filled(counts: Sequence[int]) -> tuple[int, int]:
    """Returns the first and last bin to show: those with places, and some beside them."""
    filled = [i for i, count in enumerate(counts) if count]
    if not filled:
        return 0, len(counts) - 1
    top, fewest = len(counts) - 1, min(_FEWEST, len(counts))
    last = min(top, filled[-1] + 1)
    first = max(0, min(filled[0] - 1, last + 1 - fewest))
    return first, min(top, max(last, first + fewest - 1))


def _bin(edges: Sequence[float], b: int) -> str:
    if b == 0:
        return f"below {number(edges[0])}"
    return f"from {number(edges[-1])}" if b == len(edges) else f"{number(edges[b - 1])} to {number(edges[b])}"


def _bar(x: float, top: float, step: float, floor: float, told: str, *, beyond: bool = False) -> Html:
    gap = max(min(2.0, 0.2 * step), step - _WIDEST)
    return tag(
        "rect",
        tag("title", told),
        x=x + gap / 2,
        y=top,
        width=step - gap,
        height=floor - top,
        class_="bar beyond" if beyond else "bar",
    )


def _length(width: float, y: float, kind: str) -> Html:
    return tag("rect", x=0, y=y, width=max(width, 1.0), height=8, rx=1, class_=kind)
