"""Commands about aliases: point, go back, look at, and what shadows showed."""

from __future__ import annotations

import json

import click
from google.protobuf.json_format import MessageToDict

from deltaserve.cli.console import make_console, make_table
from deltaserve.cli.options import connect, json_option, server_option
from deltaserve.errors import InvalidArgumentError
from deltaserve.v1 import models_pb2 as pb


@click.command()
@click.argument("name")
@click.argument("targets", metavar="[TARGET[=WEIGHT]]...", nargs=-1)
@click.option("--shadow", metavar="TARGET", help="Let this compute a share of the requests too, and compare.")
@click.option("--share", type=click.FloatRange(0, 1, min_open=True), default=0.1, show_default=True,
              help="Share of the requests that --shadow computes.")  # fmt: skip
@click.option("--expect", type=click.IntRange(min=1), default=None, metavar="VERSION",
              help="Fail unless the alias has this version now.")  # fmt: skip
@click.option("--remove", is_flag=True, help="Remove the alias.")
@server_option
def alias(
    name: str, targets: tuple[str, ...], shadow: str | None, share: float, expect: int | None, remove: bool, server: str
) -> None:
    """Point the alias NAME at TARGET, which is MODEL or MODEL@REVISION; or at several, by weight.

    The alias changes as a whole: `alias prod m@3` also ends a canary or a shadow. `rollback` takes it back.
    """
    if remove == bool(targets) or (remove and shadow):
        raise click.UsageError("give either TARGETs or --remove")
    routes = dict(_route(target) for target in targets)
    if len(routes) < len(targets):
        raise click.UsageError("a TARGET is given twice")
    with connect(server) as client:
        target = routes if len(routes) > 1 else next(iter(routes), "")
        client.set_alias(name, target, shadow=(shadow, share) if shadow else None, expected_version=expect or 0)
    shadowed = f", shadowed by {shadow} ({share:.1%})" if shadow else ""
    click.echo(f"{name} -> {_shares_text(routes)}{shadowed}" if routes else f"alias {name} removed")


@click.command()
@click.argument("name")
@click.option("--to", "version", type=click.IntRange(min=1), default=None, metavar="VERSION",
              help="The version to take up again. Default: the one before.")  # fmt: skip
@server_option
def rollback(name: str, version: int | None, server: str) -> None:
    """Take the alias NAME back to what it was; again: further back."""
    with connect(server) as client:
        held = client.rollback_alias(name, version or 0)
    click.echo(f"{name} -> {_version_text(held)} (version {held.restores} again, now {held.number})")


@click.command()
@click.argument("name", default="")
@server_option
@json_option
def aliases(name: str, server: str, as_json: bool) -> None:
    """List all aliases, or the versions of the alias NAME."""
    with connect(server) as client:
        found = client.aliases(name, history=bool(name))
    if as_json:
        click.echo(json.dumps([MessageToDict(entry) for entry in found], indent=1))
        return
    table = make_table("alias", ">version", "set", "points at", "shadow", "")
    for entry in found:
        for version in entry.versions:
            table.add_row(
                entry.alias,
                str(version.number),
                version.time.ToDatetime().strftime("%Y-%m-%d %H:%M:%S") if version.HasField("time") else "-",
                _version_text(version),
                f"{version.shadow.target} ({version.shadow.share:.1%})" if version.HasField("shadow") else "-",
                f"version {version.restores} again" if version.restores else "",
            )
    make_console().print(table)


@click.command()
@server_option
@json_option
def shadows(server: str, as_json: bool) -> None:
    """Show how far shadows agree with the revisions beside which they compute."""
    with connect(server) as client:
        found = client.shadows()
    if as_json:
        click.echo(json.dumps([MessageToDict(pair) for pair in found], indent=1))
        return
    table = make_table(
        "primary", "shadow", ">sampled", ">compared", ">identical", ">agreement", ">differ after", ">not compared"
    )
    for pair in found:
        judged = pair.tokens_agreed + pair.diverged
        table.add_row(
            pair.primary,
            pair.shadow,
            str(pair.sampled),
            str(pair.compared),
            f"{pair.identical / pair.compared:.1%}" if pair.compared else "-",
            f"{pair.agreement:.2%}" if judged else "-",
            f"{pair.mean_divergence:.1f} tokens" if pair.diverged else "-",
            f"{pair.skipped} no room, {pair.dropped} dropped, {pair.failed} failed",
        )
    make_console().print(table)


def _route(text: str) -> tuple[str, float]:
    target, equals, weight = text.partition("=")
    try:
        return target, float(weight) if equals else 1.0
    except ValueError as error:
        raise InvalidArgumentError(f"the weight of {target!r} is {weight!r}; expected a number") from error


def _version_text(version: pb.AliasVersion) -> str:
    routes = {route.target: route.weight for route in version.routes}
    return _shares_text(routes) if routes else "(removed)"


def _shares_text(routes: dict[str, float]) -> str:
    if len(routes) == 1:
        return next(iter(routes))
    total = sum(routes.values())
    return ", ".join(f"{target} ({weight / total:.1%})" for target, weight in routes.items())
