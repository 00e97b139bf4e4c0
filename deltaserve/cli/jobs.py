"""`deltaserve jobs`: list, watch and cancel compressions."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import click
from google.protobuf.json_format import MessageToDict

from deltaserve.cli.console import make_console, make_table, seconds_text
from deltaserve.cli.options import connect, json_option, server_option
from deltaserve.cli.publish import PATIENCE
from deltaserve.cli.publish import watch as watch_job
from deltaserve.client import error_of_job
from deltaserve.v1 import models_pb2 as pb


@click.group()
def jobs() -> None:
    """Compression jobs."""


@jobs.command("list")
@click.option("--model", default="", help="Only jobs of this model.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="At most so many.")
@server_option
@json_option
def list_jobs(model: str, limit: int, server: str, as_json: bool) -> None:
    """List jobs, newest first."""
    with connect(server) as client:
        found = client.jobs(model=model, limit=limit)
    if as_json:
        click.echo(json.dumps([MessageToDict(job) for job in found], indent=1))
        return
    table = make_table("job", "model", "state", ">layers", ">age", "result")
    for job in found:
        age = datetime.now(UTC) - job.create_time.ToDatetime(tzinfo=UTC)
        done = job.progress
        table.add_row(
            job.job_id,
            job.spec.model,
            pb.JobState.Name(job.state).removeprefix("JOB_STATE_").lower(),
            f"{done.layers_done}/{done.layers_total}" if done.layers_total else "-",
            seconds_text(max(0.0, age.total_seconds())),
            _result(job),
        )
    make_console().print(table)


@jobs.command()
@click.argument("job_id")
@server_option
def watch(job_id: str, server: str) -> None:
    """Show a job's progress until it ends, then its quality report."""
    with connect(server, patience=PATIENCE) as client:
        watch_job(client, job_id)


@jobs.command()
@click.argument("job_id")
@server_option
def cancel(job_id: str, server: str) -> None:
    """Ask a job to stop; what it made is dropped."""
    with connect(server) as client:
        job = client.cancel_job(job_id)
    state = pb.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()
    click.echo(f"job {job_id} is {state}" if job.state != pb.JOB_STATE_RUNNING else f"job {job_id} is stopping")


def _result(job: pb.Job) -> str:
    error = error_of_job(job)
    if error is not None:
        return error.message
    return job.revision_name
