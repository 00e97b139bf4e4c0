"""`deltaserve bench`: open-loop load over many models, and what the system makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from rich.console import Console

from deltaserve.bench import rows
from deltaserve.bench.figures import Objectives
from deltaserve.bench.lengths import parse_lengths
from deltaserve.bench.loop import run_loop
from deltaserve.bench.page import render
from deltaserve.bench.processes import Target, run
from deltaserve.bench.records import Record
from deltaserve.bench.runner import Progress, Share
from deltaserve.bench.summary import Summary, summarise
from deltaserve.bench.traces import read_trace, replay, write_trace
from deltaserve.bench.wire import AnswerError
from deltaserve.bench.workload import Planned, Workload, chance, leave_early, plan
from deltaserve.cli.console import make_console, make_table
from deltaserve.cli.options import json_option, server_option
from deltaserve.errors import FormatError, InvalidArgumentError, UnavailableError

F = TypeVar("F", bound=Callable[..., Any])

_FILE = click.Path(dir_okay=False, path_type=Path)
_INPUT = click.Path(exists=True, dir_okay=False, path_type=Path)
_SECONDS = click.FloatRange(min=0, min_open=True)
_MOST_MODELS = 20  # rows on a terminal

_OPTIONS = (
    click.option("--http", "url", metavar="URL", default="", help="Ask an OpenAI-compatible server, ours or another, "
                 "by streamed /v1/completions instead of gRPC."),
    click.option("--rate", type=_SECONDS, default=1.0, show_default=True, help="Requests a second over all models."),
    click.option("--duration", type=_SECONDS, help="Seconds that requests go on being sent. Default: 30, or the whole "
                 "trace."),
    click.option("--requests", type=click.IntRange(min=1), help="At most so many requests."),
    click.option("--cv", type=_SECONDS, default=1.0, show_default=True, help="Coefficient of variation of the gamma-"
                 "distributed gaps between requests: 1 is Poisson, 4 comes in bursts."),
    click.option("--popularity", type=click.Choice(["uniform", "zipf", "azure"]), default="uniform", show_default=True,
                 help="How requests spread over models; azure: a heavy tail like that of Azure Functions."),
    click.option("--exponent", type=click.FloatRange(min=0), default=1.5, show_default=True, help="Of zipf: the k-th "
                 "model gets k^-exponent."),
    click.option("--trace", type=_INPUT, help="Replay these requests (JSON lines, see docs/bench.md) instead."),
    click.option("--speed", type=_SECONDS, default=1.0, show_default=True, help="How many times faster the trace is "
                 "replayed."),
    click.option("--prompt-tokens", default="uniform:64,256", show_default=True, metavar="LENGTHS", help="N, "
                 "uniform:LEAST,MOST, geometric:MEAN[,MOST] or lognormal:MEDIAN,SIGMA[,MOST]."),
    click.option("--output-tokens", default="uniform:32,128", show_default=True, metavar="LENGTHS", help="The same of "
                 "answers, which are made exactly so long."),
    click.option("--until-eos", is_flag=True, help="Answers may end earlier, where the model ends them."),
    click.option("--token-ids", default="16-255", show_default=True, metavar="LOW-HIGH", help="Ids that random prompts "
                 "are made of."),
    click.option("--prompts", type=_INPUT, help="Draw prompts from the key `prompt` of these JSON lines."),
    click.option("--cancel", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Share of requests that "
                 "are left half-way."),
    click.option("--slo-ttft", type=_SECONDS, help="Objective for the time to the first token, seconds."),
    click.option("--slo-inter-token", type=_SECONDS, help="For the mean time between tokens of a request, seconds."),
    click.option("--slo-e2e", type=_SECONDS, help="For the time to the end, seconds."),
    click.option("--warm-up", type=click.FloatRange(min=0), default=0.0, show_default=True, help="Seconds at the "
                 "beginning that are not counted."),
    click.option("--timeout", type=_SECONDS, default=600.0, show_default=True, help="A request fails after so many "
                 "seconds."),
    click.option("--processes", type=click.IntRange(1, 64), default=1, show_default=True, help="Generator processes."),
    click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same schedule."),
    click.option("--html", "page", type=_FILE, help="Write a page with plots to this file."),
    click.option("--records", type=_FILE, help="Write what became of each request to this file, as JSON lines."),
    click.option("--save-trace", type=_FILE, help="Write what is sent to this file, for --trace."),
)  # fmt: skip


def bench_options(command: F) -> F:
    """Adds the options of a load test."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("models", nargs=-1)
@bench_options
@server_option
@json_option
def bench(models: tuple[str, ...], server: str, as_json: bool, **options: Any) -> None:
    """Send requests to MODELS (default: all that are served) at their times, however many are still under way.

    Reports throughput over the makespan, TTFT, time between tokens, E2E, objectives met, and whether the generator
    itself kept up. Latencies count from when a request was due, so that a stalled server cannot hide them.
    """
    target = Target(server, options["url"], options["timeout"])
    planned, shares = run_loop(_measure(target, models, options, make_console(stderr=True)))
    settings = {name: str(v) if isinstance(v, Path) else v for name, v in options.items()} | {"server": server}
    objectives = Objectives(options["slo_ttft"], options["slo_inter_token"], options["slo_e2e"])
    records = [record for share in shares for record in share.records]
    summary = summarise(
        records, objectives, warm_up=options["warm_up"], cpu=[share.cpu for share in shares], settings=settings
    )
    if options["save_trace"] is not None:
        write_trace(options["save_trace"], planned)
    if options["records"] is not None:
        write_records(options["records"], records)
    if options["page"] is not None:
        options["page"].write_text(render(summary, f"{options['url'] or server}"), encoding="utf-8")
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(summary), indent=1))
    else:
        show(make_console(), summary)


def show(console: Console, summary: Summary) -> None:
    """Prints the tables."""
    for found in (
        rows.headline(summary),
        rows.latencies(summary),
        rows.objectives(summary),
        rows.models(summary, _MOST_MODELS),
    ):
        if found is not None:
            table = make_table(*found.columns)
            for row in found.rows:
                table.add_row(*row)
            console.print(table)
            console.print()
    if len(summary.models) > _MOST_MODELS:
        console.print(f"{len(summary.models) - _MOST_MODELS} more models: --json or --html")
    console.print(rows.verdict(summary), style=None if summary.generator.kept_up else "bold red", soft_wrap=True)


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Writes what became of each request as a line of JSON, by when it was due."""
    with path.open("wb") as file:
        for record in sorted(records, key=lambda one: one.due):
            frames = record.times.tolist() if record.frames else []
            file.write(msgspec.json.encode(msgspec.structs.asdict(record) | {"frames": frames}) + b"\n")


async def _measure(
    target: Target, models: tuple[str, ...], options: dict[str, Any], console: Console
) -> tuple[list[Planned], list[Share]]:
    """Makes the schedule and sends it."""
    served = () if models or options["trace"] is not None else await _served(target)
    planned = schedule(models or served, options)
    with console.status("connecting") as status:

        def tell(progress: Progress) -> None:
            failed = f", {progress.failed} failed" if progress.failed else ""
            status.update(f"{progress.sent} of {len(planned)} sent, {progress.sent - progress.ended} under way{failed}")

        try:
            return planned, await run(target, planned, options["processes"], tell)
        except AnswerError as error:
            raise UnavailableError(f"the server answers with {error.status}") from error


def schedule(models: tuple[str, ...], options: dict[str, Any]) -> list[Planned]:
    """Returns what the options describe; raises InvalidArgumentError or FormatError where they cannot be followed."""
    if options["trace"] is not None:
        sent = replay(read_trace(options["trace"]), models, options["speed"], options["duration"])
        return leave_early(sent[: options["requests"]], options["cancel"], chance(options["seed"], "cancelled"))
    return plan(
        Workload(
            models=models,
            rate=options["rate"],
            seconds=options["duration"] or 30.0,
            cv=options["cv"],
            most=options["requests"],
            popularity=options["popularity"],
            exponent=options["exponent"],
            prompt_tokens=parse_lengths(options["prompt_tokens"], "--prompt-tokens"),
            output_tokens=parse_lengths(options["output_tokens"], "--output-tokens"),
            token_ids=_range(options["token_ids"]),
            prompts=_prompts(options["prompts"]) if options["prompts"] is not None else (),
            until_eos=options["until_eos"],
            cancelled=options["cancel"],
            seed=options["seed"],
        )
    )


async def _served(target: Target) -> tuple[str, ...]:
    wire = target.wire()
    try:
        return tuple(await wire.models())
    except AnswerError as error:
        raise UnavailableError(f"the server answers the question for its models with {error.status}") from error
    finally:
        await wire.close()


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    if not (low.isdigit() and high.isdigit() and int(low) <= int(high)):
        raise InvalidArgumentError(f"--token-ids is {text!r}; expected LOW-HIGH", field="token_ids")
    return int(low), int(high)


def _prompts(path: Path) -> tuple[str, ...]:
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            found.append(str(json.loads(line)["prompt"]))
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(f'{path.name} line {number} is no JSON object with the key "prompt"') from error
    if not found:
        raise FormatError(f"{path.name} holds no prompt")
    return tuple(found)
