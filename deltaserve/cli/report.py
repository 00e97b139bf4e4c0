"""The quality report of a compression, as a person decides by it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from rich.console import Console

from deltaserve.cli.console import bytes_text, make_table

_WORST = 3  # tensors shown


class _Models(msgspec.Struct):
    """One figure of each of the three models; None where it is not finite."""

    base: float | None
    fine_tune: float | None
    compressed: float | None


class _Accuracy(_Models):
    rows: int
    skipped: int = 0


class _Quality(msgspec.Struct):
    kl: float
    top1_agreement: float
    perplexity: _Models
    tokens: int


class _Class(msgspec.Struct):
    ratio: float
    bits_per_parameter: float


class _Sizes(msgspec.Struct):
    checkpoint_bytes: int
    delta_bytes: int
    ratio: float
    bits_per_parameter: float
    by_class: dict[str, _Class]


class _Tensor(msgspec.Struct):
    name: str
    codec: str
    error: float


class _Gate(msgspec.Struct):
    failures: list[str]


class _Report(msgspec.Struct):
    """What is shown of docs/quality-report.md; a report may hold more."""

    quality: _Quality
    sizes: _Sizes
    accuracy: _Accuracy | None = None
    tensors: list[_Tensor] = []
    gate: _Gate | None = None


def show_report(console: Console, report_json: str) -> None:
    """Prints a report as a job or revision carries it."""
    show_report_fields(console, json.loads(report_json))


def show_report_fields(console: Console, fields: dict[str, Any]) -> None:
    """Prints a parsed report; one of another version than this knows is printed as it is."""
    try:
        report = msgspec.convert(fields, _Report)
    except msgspec.ValidationError:
        console.print_json(data=fields)
        return
    quality = report.quality
    table = make_table("quality", ">base", ">fine-tune", ">compressed", "")
    if report.accuracy is not None:
        table.add_row("accuracy on your rows", *_accuracy_cells(report.accuracy))
    perplexity = quality.perplexity
    cells = (_number(p) for p in (perplexity.base, perplexity.fine_tune, perplexity.compressed))
    table.add_row("perplexity", *cells, f"{quality.tokens} tokens held out")
    table.add_row("KL to the fine-tune", "", "", f"{quality.kl:.4f}", "nats a token")
    table.add_row("top-1 agreement", "", "", f"{100 * quality.top1_agreement:.1f} %")
    console.print(table)
    console.print(_size_line(report.sizes))
    worst = sorted(report.tensors, key=lambda tensor: -tensor.error)[:_WORST]
    if worst:
        told = ", ".join(f"{tensor.name} {tensor.error:.4f} ({tensor.codec})" for tensor in worst)
        console.print(f"largest relative output errors: {told}")
    for failure in report.gate.failures if report.gate else ():
        console.print(f"missed: {failure}", style="red")


def _accuracy_cells(accuracy: _Accuracy) -> tuple[str, str, str, str]:
    shares = (accuracy.base, accuracy.fine_tune, accuracy.compressed)
    cells = [f"{100 * share:.1f} %" if share is not None else "-" for share in shares]
    skipped = f", {accuracy.skipped} left out" if accuracy.skipped else ""
    note = f"{accuracy.rows} rows{skipped}"
    if accuracy.fine_tune is not None and accuracy.compressed is not None:
        note += f", {100 * (accuracy.compressed - accuracy.fine_tune):+.1f} points"
    return cells[0], cells[1], cells[2], note


def _size_line(sizes: _Sizes) -> str:
    text = f"size {bytes_text(sizes.checkpoint_bytes)} -> {bytes_text(sizes.delta_bytes)}: {sizes.ratio:.1f}x"
    linear = sizes.by_class.get("linear")
    if linear is not None:
        text += f" (linears {linear.ratio:.1f}x at {linear.bits_per_parameter:.2f} bits)"
    return f"{text}, {sizes.bits_per_parameter:.2f} bits a parameter, everything counted"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
