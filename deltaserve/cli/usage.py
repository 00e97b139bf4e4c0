"""Commands around API keys: what they used, and new ones."""

from __future__ import annotations

import hashlib
import json
import secrets

import click
from google.protobuf.json_format import MessageToDict

from deltaserve.cli.console import make_console, make_table
from deltaserve.cli.options import connect, json_option, server_option
from deltaserve.v1 import admin_pb2 as pb

_KEY_BYTES = 32


@click.command()
@server_option
@json_option
def usage(server: str, as_json: bool) -> None:
    """Show what API keys and models used, what is left of their quotas, and what waits."""
    with connect(server) as client:
        found = client.usage()
    if as_json:
        click.echo(json.dumps(MessageToDict(found), indent=1))
        return
    table = make_table("", "name", ">weight", ">running", ">queued", ">requests", ">refused", ">tokens", "left now")
    for kind, entries in (("key", found.keys), ("model", found.models)):
        for entry in entries:
            table.add_row(
                kind,
                entry.name or "(no key)",
                f"{entry.weight:g}" if entry.weight else "",
                str(entry.running),
                str(entry.queued),
                f"{entry.requests:,}",
                f"{entry.refused:,}",
                f"{entry.tokens:,}",
                _left(entry),
            )
    make_console().print(table)
    click.echo(f"{found.queued} of at most {found.max_queued} requests wait")


@click.command()
@click.argument("name")
def key(name: str) -> None:
    """Make an API key called NAME: prints the key, to be handed out, and its entry for the router's keys file."""
    text = f"ds-{secrets.token_urlsafe(_KEY_BYTES)}"
    click.echo(text)
    click.echo(f'[[keys]]\nname = {json.dumps(name)}\nsha256 = "{hashlib.sha256(text.encode()).hexdigest()}"')


def _left(entry: pb.GetUsageResponse.Usage) -> str:
    parts = []
    if entry.HasField("requests_per_second"):
        parts.append(f"{entry.requests_left:,.0f} requests (+{entry.requests_per_second:g}/s)")
    if entry.HasField("tokens_per_second"):
        parts.append(f"{entry.tokens_left:,.0f} tokens (+{entry.tokens_per_second:g}/s)")
    return ", ".join(parts) or "-"
