"""`deltaserve report`, and the quality report of a compression in a terminal, as a person decides by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from deltaserve.cli.console import bytes_text, make_console, make_table
from deltaserve.cli.options import connect, json_option, server_option
from deltaserve.errors import DataLossError, NotFoundError
from deltaserve.names import parse_model
from deltaserve.report.fields import Accuracy, Allocation, Generations, Quality, Sizes, parse
from deltaserve.report.page import render

_WORST = 3  # tensors shown


@click.command()
@click.argument("model", metavar="[MODEL[@REVISION]]", required=False)
@click.option("--job", "job_id", metavar="ID", help="The report of a job, also of one that the policy refused.")
@click.option(
    "--html", "page", type=click.Path(dir_okay=False, path_type=Path), help="Write it as a page to this file."
)
@server_option
@json_option
def report(model: str | None, job_id: str | None, page: Path | None, server: str, as_json: bool) -> None:
    """Show the quality report of a published MODEL[@REVISION] or of a --job."""
    if (model is None) == (job_id is None):
        raise click.UsageError("give either MODEL[@REVISION] or --job ID")
    title, text = _of_job(server, job_id) if job_id is not None else _of_model(server, model or "")
    fields = _parsed(title, text)
    if page is not None:
        page.write_text(render(fields, title), encoding="utf-8")
        click.echo(f"report of {title} written to {page}", err=as_json)
    if as_json:
        click.echo(text)
    elif page is None:
        console = make_console()
        console.print(title, style="bold")
        show_report_fields(console, fields)


def show_report(console: Console, report_json: str) -> None:
    """Prints a report as a job or revision carries it."""
    show_report_fields(console, json.loads(report_json))


def show_report_fields(console: Console, fields: dict[str, Any]) -> None:
    """Prints a parsed report; one of another version than this knows is printed as it is."""
    found = parse(fields)
    if found.quality is None or found.sizes is None:
        console.print_json(data=fields)
        return
    console.print(_figures(found.quality, found.accuracy))
    console.print(_size_line(found.sizes))
    if found.allocation is not None:
        console.print(_choice_line(found.allocation))
    worst = sorted(found.tensors, key=lambda tensor: -tensor.error)[:_WORST]
    if worst:
        told = ", ".join(f"{tensor.name} {tensor.error:.4f} ({tensor.codec})" for tensor in worst)
        console.print(f"largest relative output errors: {told}")
    if found.generations is not None:
        console.print(_said_line(found.generations))
    for failure in found.gate.failures if found.gate else ():
        console.print(f"missed: {failure}", style="red")


def _of_model(server: str, model: str) -> tuple[str, str]:
    name, number = parse_model(model)
    with connect(server) as client:
        found = client.revision(name, number or "")
    parts = found.name.split("/")
    title = f"{parts[1]}@{parts[3]}" if len(parts) == 4 else model
    if not found.report_json:
        raise NotFoundError(
            f"{title} has no quality report: it was published as a packed delta without one", kind="report", name=title
        )
    return title, found.report_json


def _of_job(server: str, job_id: str) -> tuple[str, str]:
    with connect(server) as client:
        job = client.job(job_id)
    if not job.report_json:
        raise NotFoundError(
            f"job {job_id} has no quality report: there is one when compression has ended", kind="report", name=job_id
        )
    return f"{job.spec.model} (job {job_id})", job.report_json


def _parsed(title: str, text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise DataLossError(f"the quality report of {title} is a JSON {type(found).__name__}; expected an object")
    return found


def _figures(quality: Quality, accuracy: Accuracy | None) -> Table:
    table = make_table("quality", ">base", ">fine-tune", ">compressed", "")
    if accuracy is not None:
        table.add_row("accuracy on your rows", *_accuracy_cells(accuracy))
    perplexity = quality.perplexity
    cells = (_number(p) for p in (perplexity.base, perplexity.fine_tune, perplexity.compressed))
    table.add_row("perplexity", *cells, f"{quality.tokens} tokens held out")
    kl = "-" if quality.kl is None else f"{quality.kl:.4f}"
    spread = f", 99 % of them up to {quality.kl_p99:.4f}" if quality.kl_p99 is not None else ""
    table.add_row("KL to the fine-tune", "", "", kl, f"nats a token{spread}")
    agreement = "-" if quality.top1_agreement is None else f"{100 * quality.top1_agreement:.1f} %"
    table.add_row("top-1 agreement", "", "", agreement)
    return table


def _accuracy_cells(accuracy: Accuracy) -> tuple[str, str, str, str]:
    shares = (accuracy.base, accuracy.fine_tune, accuracy.compressed)
    cells = [f"{100 * share:.1f} %" if share is not None else "-" for share in shares]
    skipped = f", {accuracy.skipped} left out" if accuracy.skipped else ""
    note = f"{accuracy.rows} rows{skipped}"
    if accuracy.change is not None:
        note += f", {accuracy.change:+.1f} points"
    return cells[0], cells[1], cells[2], note


def _size_line(sizes: Sizes) -> str:
    text = f"size {bytes_text(sizes.checkpoint_bytes)} -> {bytes_text(sizes.delta_bytes)}: {sizes.ratio:.1f}x"
    linear = sizes.by_class.get("linear")
    if linear is not None:
        text += f" (linears {linear.ratio:.1f}x at {linear.bits_per_parameter:.2f} bits)"
    return f"{text}, {sizes.bits_per_parameter:.2f} bits a parameter, everything counted"


def _choice_line(allocation: Allocation) -> str:
    choices = ", ".join(f"{codec} x {count}" for codec, count in sorted(allocation.choices.items()))
    budget = f", budget {allocation.budget_bits:.2f} bits" if allocation.budget_bits is not None else ""
    preset = f" of preset {allocation.preset}" if allocation.preset else ""
    tried = f", attempt {len(allocation.attempts)}" if len(allocation.attempts) > 1 else ""
    return f"codecs{preset}: {choices or '-'}{budget}{tried}"


def _said_line(generations: Generations) -> str:
    if not generations.prompts:
        return f"side by side: left out, {generations.left_out or 'there were no prompts'}"
    same = sum(one.compressed == one.fine_tune for one in generations.prompts)
    return f"side by side: {same} of {len(generations.prompts)} greedy continuations equal the fine-tune's"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
