"""Commands of people who run the system: workers, draining, placement."""

from __future__ import annotations

import json

import click
from google.protobuf.json_format import MessageToDict
from rich.table import Table

from deltaserve.cli.catalog import tier_text
from deltaserve.cli.console import bytes_text, make_console, make_table, seconds_text
from deltaserve.cli.options import connect, json_option, server_option
from deltaserve.v1 import admin_pb2 as pb
from deltaserve.v1 import inference_pb2


@click.command()
@server_option
@json_option
def workers(server: str, as_json: bool) -> None:
    """List the workers with their load and what is resident on them."""
    with connect(server) as client:
        found = client.workers()
    if as_json:
        click.echo(json.dumps([MessageToDict(worker) for worker in found], indent=1))
        return
    table = make_table("worker", "address", "state", ">running", ">waiting", ">KV used", ">deltas", ">step", "resident")
    for worker in found:
        used = worker.kv_blocks_total - worker.kv_blocks_free
        table.add_row(
            worker.worker or "?",
            worker.address,
            pb.WorkerState.Name(worker.state).removeprefix("WORKER_STATE_").lower(),
            str(worker.running),
            str(worker.waiting),
            f"{100 * used / worker.kv_blocks_total:.0f} %" if worker.kv_blocks_total else "-",
            f"{bytes_text(worker.delta_bytes_used)} of {bytes_text(worker.delta_bytes_budget)}",
            seconds_text(worker.step_time.ToMicroseconds() / 1e6),
            ", ".join(f"{place.revision}:{tier_text(place.tier)}" for place in worker.residency),
        )
    make_console().print(table)


@click.command()
@click.argument("worker")
@click.option("--undo", is_flag=True, help="Take it back into rotation.")
@server_option
def drain(worker: str, undo: bool, server: str) -> None:
    """Take WORKER out of rotation; what runs on it finishes."""
    with connect(server) as client:
        client.drain_worker(worker, undo=undo)
    click.echo(f"{worker} takes requests again" if undo else f"{worker} takes no new requests")


@click.command()
@click.argument("model")
@click.option("--worker", default="", help="Only on this worker; on all by default.")
@click.option("--evict", is_flag=True, help="Let go of it once idle, instead of loading it.")
@server_option
def place(model: str, worker: str, evict: bool, server: str) -> None:
    """Load MODEL[@REVISION] into memory ahead of requests, or let go of it."""
    with connect(server) as client:
        client.place(model, inference_pb2.TIER_STORE if evict else inference_pb2.TIER_DEVICE, worker)
    click.echo(f"ordered: {'let go of' if evict else 'load'} {model} on {worker or 'all workers'}")


@click.command()
@click.argument("model", default="")
@click.option("--orders", is_flag=True, help="Show what workers were told lately instead.")
@server_option
@json_option
def placement(model: str, orders: bool, server: str, as_json: bool) -> None:
    """Show what the router expects of MODEL (of all by default), where it wants it and why."""
    with connect(server) as client:
        found = client.placement(model)
    if as_json:
        click.echo(json.dumps(MessageToDict(found), indent=1))
    elif not found.HasField("decided_at"):
        click.echo("placement has not decided anything: it is switched off, or the router has just started")
    elif orders:
        table = make_table("time", "worker", "revision", "to", "why")
        for order in found.orders:
            at = order.time.ToDatetime().strftime("%H:%M:%S")
            table.add_row(at, order.worker, order.revision, tier_text(order.tier), order.reason)
        make_console().print(table)
    else:
        make_console().print(_placement_table(found))


def _placement_table(found: pb.GetPlacementResponse) -> Table:
    horizon = seconds_text(found.horizon.ToMicroseconds() / 1e6)
    table = make_table(
        "revision", f">within {horizon}", ">next in", ">now /s", ">long /s", ">worth", ">copies", "where"
    )
    for entry in found.revisions:
        due = entry.HasField("next_request")
        where = ", ".join(entry.memory) or (f"disk of {entry.disk}" if entry.disk else "-")
        table.add_row(
            entry.revision + (" (pinned)" if entry.pinned else ""),
            f"{100 * entry.probability:.0f} %",
            seconds_text(entry.next_request.ToMicroseconds() / 1e6) if due else "> 1 day",
            f"{entry.short_rate:.2f}" + (" burst" if entry.bursting else ""),
            f"{entry.long_rate:.3f}",
            f"{entry.worth:.2f}",
            str(entry.copies),
            where,
        )
    return table
