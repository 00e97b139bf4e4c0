"""Commands about published models: list, look at, pin, delete."""

from __future__ import annotations

import json
import sys

import click
from google.protobuf.json_format import MessageToDict

from deltaserve.cli.console import bytes_text, make_console, make_table, ratio_text
from deltaserve.cli.info import show_manifest
from deltaserve.cli.options import connect, json_option, server_option
from deltaserve.delta.manifest import parse_manifest
from deltaserve.errors import InvalidArgumentError
from deltaserve.names import parse_model, parse_revision
from deltaserve.v1 import inference_pb2 as pb


@click.command()
@server_option
@json_option
def models(server: str, as_json: bool) -> None:
    """List the base and every published fine-tune."""
    with connect(server) as client:
        found = client.models()
    if as_json:
        click.echo(json.dumps([MessageToDict(entry) for entry in found], indent=1))
        return
    table = make_table("model", ">revision", ">delta", ">checkpoint", ">ratio", ">req/s", ">requests", "resident", "")
    for entry in found:
        table.add_row(
            f"{entry.model} (base)" if entry.base else entry.model,
            entry.revision or "-",
            bytes_text(entry.delta_bytes) if entry.delta_bytes else "-",
            bytes_text(entry.checkpoint_bytes) if entry.checkpoint_bytes else "-",
            ratio_text(entry.checkpoint_bytes, entry.delta_bytes),
            f"{entry.rates.short_rate:.2f}",
            str(entry.rates.total),
            _residency(entry),
            _remarks(entry),
        )
    make_console().print(table)


@click.command()
@click.argument("model")
@server_option
@json_option
def revision(model: str, server: str, as_json: bool) -> None:
    """Show a published MODEL[@REVISION]: sizes, codecs and quality report."""
    name, number = parse_model(model)
    with connect(server) as client:
        found = client.revision(name, number or "")
    if as_json:
        click.echo(found.manifest_json)
        return
    show_manifest(make_console(), parse_manifest(found.manifest_json.encode()))


@click.command()
@click.argument("model")
@click.option("--undo", is_flag=True, help="Let go of it when it is idle and memory is short.")
@server_option
def pin(model: str, undo: bool, server: str) -> None:
    """Keep MODEL resident on the workers even when it is idle."""
    with connect(server) as client:
        client.pin(model, not undo)
    click.echo(f"{model} is {'no longer ' if undo else ''}pinned")


@click.command()
@click.argument("revision_name", metavar="MODEL@REVISION")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Delete it even though an alias, a pin or a stream uses it.")
@server_option
def delete(revision_name: str, yes: bool, force: bool, server: str) -> None:
    """Take a revision that nothing uses out of the store. Streams that use it go on to their end."""
    name = parse_revision(revision_name)
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidArgumentError(f"deleting {name} cannot be undone; confirm with --yes")
        click.confirm(f"Delete {name} from the store? This cannot be undone.", abort=True)
    with connect(server) as client:
        client.delete_revision(name.model, name.revision, force=force)
    click.echo(f"{name} deleted")


def tier_text(tier: pb.Tier.ValueType) -> str:
    """Returns a tier as people say it: `host`."""
    return pb.Tier.Name(tier).removeprefix("TIER_").lower()


def _residency(model: pb.Model) -> str:
    return ", ".join(f"{place.worker}:{tier_text(place.tier)}" for place in model.residency)


def _remarks(model: pb.Model) -> str:
    remarks = ["pinned"] if model.pinned else []
    return ", ".join([*remarks, *(f"alias {name}" for name in model.aliases)])
