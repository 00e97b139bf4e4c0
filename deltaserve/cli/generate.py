"""`deltaserve generate`: text to standard output as it is generated, everything else to standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from google.protobuf.json_format import MessageToJson
from rich.status import Status

from deltaserve.cli.console import bytes_text, make_console, seconds_text
from deltaserve.cli.options import connect, json_option, server_option
from deltaserve.client import Generation, Prompt
from deltaserve.v1 import inference_pb2 as pb

F = TypeVar("F", bound=Callable[..., Any])

_SAMPLING = (
    click.option("--max-tokens", type=click.IntRange(min=1), help="Most tokens to generate."),
    click.option("--temperature", type=float, help="0 is greedy. Default: the model's own."),
    click.option("--top-p", type=float, help="Keep the smallest set of tokens that reaches this probability."),
    click.option("--top-k", type=click.IntRange(min=0), help="Keep the k most probable tokens."),
    click.option("--min-p", type=float, help="Keep tokens this probable relative to the best one."),
    click.option("--seed", type=click.IntRange(min=0), help="Same seed, same text."),
    click.option("--stop", multiple=True, help="End before this text; may be given several times."),
    click.option("--timeout", type=float, help="Give up after so many seconds."),
)


def sampling_options(command: F) -> F:
    """Adds the options of a generation; they arrive as keywords of GenerateOptions."""
    for option in reversed(_SAMPLING):
        command = option(command)
    return command


@click.command()
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--chat", "as_chat", is_flag=True, help="Send PROMPT as a user's message through the chat template.")
@click.option("-n", "--choices", "n", type=click.IntRange(1, 16), help="Generate several choices.")
@click.option(
    "--json-schema",
    "schema",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Generate JSON that the JSON Schema in this file accepts.",
)
@click.option("--stats/--no-stats", default=None, help="Tell timings at the end. Default: on a terminal.")
@sampling_options
@server_option
@json_option
def generate(
    model: str,
    prompt: str | None,
    as_chat: bool,
    schema: Path | None,
    stats: bool | None,
    server: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Generate from MODEL (or MODEL@REVISION, or an alias); PROMPT comes from standard input when absent."""
    text = sys.stdin.read() if prompt is None else prompt
    if schema is not None:
        options["json_schema"] = schema.read_text()
    sent: Prompt = [{"role": "user", "content": text}] if as_chat else text
    with connect(server) as client, client.generate(model, sent, **options) as stream:
        if as_json:
            for frame in stream:
                click.echo(MessageToJson(frame, indent=None))
            return
        stream_text(stream, several=(options.get("n") or 1) > 1)
        if stream.summary is not None and (stats or (stats is None and sys.stderr.isatty())):
            click.secho(stats_text(stream.summary), dim=True, err=True)


def stream_text(stream: Generation, *, several: bool = False) -> str:
    """Writes a generation as it comes, with a spinner that says what it waits for; returns the first choice's text.

    Several choices would mix on a screen: they are written whole, one after the other.
    """
    texts: dict[int, list[str]] = {}
    waiting = make_console(stderr=True).status("sent")
    with waiting:
        for frame in stream:
            kind = frame.WhichOneof("frame")
            if kind == "progress":
                _tell(waiting, frame.progress)
            elif kind == "chunk":
                texts.setdefault(frame.chunk.index, []).append(frame.chunk.text)
                if not several and frame.chunk.index == 0:
                    waiting.stop()  # the spinner and the text share the screen's last line
                    click.echo(frame.chunk.text, nl=False)
    for index in sorted(texts) if several else ():
        click.echo(f"[{index}] {''.join(texts[index])}")
    if not several:
        click.echo()
    return "".join(texts.get(0, []))


def stats_text(summary: pb.Summary) -> str:
    """Returns usage and timings in a line."""
    usage, times = summary.usage, summary.timings
    total, first = times.total.ToMicroseconds() / 1e6, times.time_to_first_token.ToMicroseconds() / 1e6
    rate = usage.completion_tokens / total if total else 0.0
    parts = [
        f"{usage.prompt_tokens} + {usage.completion_tokens} tokens",
        f"first after {seconds_text(first)}",
        f"{rate:.0f} tokens/s",
        f"seed {summary.seed}",
        f"worker {summary.worker}",
    ]
    if times.load.ToMicroseconds():
        parts.insert(2, f"delta loaded in {seconds_text(times.load.ToMicroseconds() / 1e6)}")
    return " · ".join(parts)


def _tell(waiting: Status, progress: pb.Progress) -> None:
    if progress.stage == pb.STAGE_QUEUED:
        waiting.update(f"queued, {progress.position} ahead")
    elif progress.stage == pb.STAGE_LOADING:
        waiting.update(f"loading the delta: {bytes_text(progress.bytes_done)} of {bytes_text(progress.bytes_total)}")
    elif progress.stage == pb.STAGE_PREFILL:
        waiting.update("reading the prompt")
