"""`deltaserve chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import click

from deltaserve.cli.explain import explain
from deltaserve.cli.generate import sampling_options, stream_text
from deltaserve.cli.options import connect, server_option
from deltaserve.client import Client
from deltaserve.errors import DeltaServeError

_HELP = "/model NAME asks another model, /reset forgets the conversation, Ctrl-C stops a reply, Ctrl-D ends"


@click.command()
@click.argument("model")
@click.option("--system", help="System message; the model's chat template must know such messages.")
@sampling_options
@server_option
def chat(model: str, system: str | None, server: str, **options: Any) -> None:
    """Talk to MODEL. Lines come from standard input; a reply can be stopped with Ctrl-C."""
    start = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    if sys.stdin.isatty():
        click.secho(_HELP, dim=True, err=True)
    with connect(server) as client:
        for line in _lines():
            command, _, argument = line.partition(" ")
            if command == "/reset":
                messages = list(start)
            elif command == "/model" and argument:
                model = argument.strip()
            elif command.startswith("/"):
                click.secho(_HELP, dim=True, err=True)
            else:
                messages = _turn(client, model, [*messages, {"role": "user", "content": line}], options)


def _turn(client: Client, model: str, messages: list[dict[str, str]], options: dict[str, Any]) -> list[dict[str, str]]:
    """Gets a reply; returns the conversation with it, or without the question that failed."""
    try:
        with client.generate(model, messages, **options) as stream:
            reply = stream_text(stream)
    except KeyboardInterrupt:
        click.secho(" (stopped)", dim=True, err=True)
        return messages[:-1]
    except DeltaServeError as error:
        if not sys.stdin.isatty():  # a script must notice
            raise
        click.echo(f"error: {explain(error)}", err=True)
        return messages[:-1]
    return [*messages, {"role": "assistant", "content": reply}]


def _lines() -> Iterator[str]:
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if line.strip():
            yield line
