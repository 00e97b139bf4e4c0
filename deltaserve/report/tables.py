"""Tables of a report: numbers to the right, wide ones scroll by themselves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from deltaserve.report.fields import Attempt, Histogram, Layer, Report, Sizes, Tensor
from deltaserve.report.markup import Child, Html, join, tag
from deltaserve.report.units import NONE, bits, bytes_text, number, percent, points, times, whole

WORST = 10  # tensors shown at once


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Child]], *, hidden: bool = True) -> Html:
    """Returns a table whose first column heads its rows; a column whose name begins with `>` holds numbers.

    Args:
        caption: what it is of.
        columns: their names.
        rows: a cell for each column.
        hidden: whether the caption is for screen readers only, because a heading says it already.
    """
    numeric = [name.startswith(">") for name in columns]
    head = [
        tag("th", name.lstrip(">"), scope="col", class_="n" if n else None)
        for name, n in zip(columns, numeric, strict=True)
    ]
    body = [
        tag("tr", tag("th", first, scope="row"), *(_cell(cell, n) for cell, n in zip(rest, numeric[1:], strict=True)))
        for first, *rest in rows
    ]
    inner = tag(
        "table",
        tag("caption", caption, class_="unseen" if hidden else None),
        tag("thead", tag("tr", *head)),
        tag("tbody", *body),
    )
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption)


def models(report: Report) -> Html | None:
    """Returns what can be said of all three models: accuracy and perplexity."""
    rows: list[list[Child]] = []
    if report.accuracy is not None:
        found = report.accuracy
        left_out = f", {found.skipped:,} left out" if found.skipped else ""
        name = _noted("Accuracy", f"on {whole(found.rows, 'row')} of yours{left_out}")
        rows.append([name, percent(found.base), percent(found.fine_tune), percent(found.compressed)])
    if report.quality is not None:
        p, tokens = report.quality.perplexity, report.quality.tokens
        name = _noted("Perplexity", f"of {whole(tokens, 'held-out token')}")
        rows.append([name, number(p.base, 4), number(p.fine_tune, 4), number(p.compressed, 4)])
    if not rows:
        return None
    return table("Base, fine-tune and compressed model", ["", ">base", ">fine-tune", ">compressed"], rows)


def sizes(whole_sizes: Sizes) -> Html:
    """Returns sizes by tensor class."""
    rows: list[list[Child]] = [
        [name, f"{s.tensors:,}", f"{s.parameters:,}", bytes_text(s.checkpoint_bytes), bytes_text(s.delta_bytes),
         bits(s.bits_per_parameter), times(s.ratio)]
        for name, s in sorted(whole_sizes.by_class.items(), key=lambda item: -item[1].checkpoint_bytes)
    ]  # fmt: skip
    w = whole_sizes
    rows.append([
        "everything stored", f"{sum(s.tensors for s in w.by_class.values()):,}", f"{w.parameters:,}",
        bytes_text(w.checkpoint_bytes), bytes_text(w.delta_bytes), bits(w.bits_per_parameter), times(w.ratio),
    ])  # fmt: skip
    columns = ["class", ">tensors", ">parameters", ">checkpoint", ">delta", ">bits", ">ratio"]
    return table("Sizes by tensor class", columns, rows)


def tensors(found: Sequence[Tensor]) -> Html:
    """Returns the tensors with the largest errors, and behind a click all others."""
    ordered = sorted(found, key=lambda tensor: -tensor.error if math.isfinite(tensor.error) else -math.inf)
    top = max([tensor.error for tensor in ordered if math.isfinite(tensor.error)] + [1e-12])
    shown = _tensors("Tensors with the largest errors", ordered[:WORST], top)
    rest = ordered[WORST:]
    if not rest:
        return shown
    more = tag("details", tag("summary", f"{len(rest):,} more"), _tensors("Other tensors", rest, top))
    return join([shown, more])


def layers(found: Sequence[Layer]) -> Html:
    """Returns the numbers behind the plot of layers."""
    rows = [[str(one.layer), number(one.error), number(one.worst_error), bits(one.bits_per_parameter)] for one in found]
    return table("Relative output error by layer", ["layer", ">mean", ">worst tensor", ">bits"], rows)


def histogram(found: Histogram) -> Html:
    """Returns the numbers behind the histogram."""
    names = [
        f"below {number(found.edges[0])}",
        *(f"{number(a)} to {number(b)}" for a, b in zip(found.edges, found.edges[1:], strict=False)),
        f"{number(found.edges[-1])} and more",
    ]
    rows = [[name, f"{count:,}"] for name, count in zip(names, found.counts, strict=True) if count]
    return table("Tokens by KL", ["KL, nats", ">tokens"], rows)


def attempts(found: Sequence[Attempt]) -> Html:
    """Returns each attempt with what it missed."""
    rows = [
        [
            str(i), bits(one.bits), number(one.kl), percent(one.agreement),
            NONE if one.accuracy_drop is None else points(-one.accuracy_drop),
            "; ".join(one.failures) or "meets the policy",
        ]
        for i, one in enumerate(found, 1)
    ]  # fmt: skip
    columns = ["attempt", ">bits", ">KL", ">top-1", ">points", "outcome"]
    return table("Attempts at meeting the policy", columns, rows)


def _noted(name: str, note: str) -> Html:
    return join([name, tag("br"), tag("small", note)])


def _tensors(caption: str, found: Sequence[Tensor], top: float) -> Html:
    rows = [
        [_name(one.name), one.codec, bits(one.bits_per_parameter), bytes_text(one.bytes), _error(one.error, top)]
        for one in found
    ]
    return table(caption, ["tensor", "codec", ">bits", ">size", ">error"], rows)


def _name(name: str) -> Html:
    """Returns a tensor's name that may break after its dots."""
    pieces = name.split(".")
    return tag("code", join(pieces, f".{tag('wbr')}"))


def _error(error: float, top: float) -> Html:
    share = min(1.0, max(0.0, error / top)) if math.isfinite(error) else 1.0
    bar = tag("rect", x=0, y=0, width=60 * share, height=8, class_="delta")
    return join([tag("svg", bar, viewBox="0 0 60 8", class_="spark", aria_hidden="true"), number(error)])


def _cell(cell: Child, numeric: bool) -> Html:
    return tag("td", cell, class_="n" if numeric else None)
