"""`deltaserve upload` and `deltaserve compress`: from a local folder to a published fine-tune."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

import click

from deltaserve.cli.console import make_console
from deltaserve.cli.meter import Meter
from deltaserve.cli.options import connect, job_options, only_given, server_option
from deltaserve.cli.report import show_report
from deltaserve.client import Client, JobOptions, error_of_job
from deltaserve.names import check_name
from deltaserve.v1 import models_pb2 as pb

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
PATIENCE = 60.0  # seconds: long work goes on after the compressor was restarted
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _common(command: click.decorators.FC) -> click.decorators.FC:
    for option in (
        click.option("--evaluation", type=_FILE, help="JSONL with prompt and targets: accuracy in the report."),
        click.option("--calibration", type=_FILE, help="JSONL of your own text; a built-in set by default."),
        click.option("--detach", is_flag=True, help="Do not wait for the job."),
        click.option("--model", required=True, help="Name to publish under."),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("folder", type=_FOLDER)
@_common
@job_options
@server_option
def upload(
    folder: Path, model: str, calibration: Path | None, evaluation: Path | None, detach: bool, server: str,
    **options: Unpack[JobOptions],
) -> None:  # fmt: skip
    """Upload the checkpoint (or LoRA adapter, or packed delta) in FOLDER, compress it and publish it as --model.

    An upload that was interrupted goes on where it stopped when the command is given again.
    """
    check_name(model, "--model")
    given = only_given(options)
    extra = [path for path in (calibration, evaluation) if path is not None]
    with connect(server, patience=PATIENCE) as client:
        with Meter(make_console(stderr=True)) as meter:
            source = client.upload(folder, extra=extra, progress=meter.upload)
        if calibration is not None:
            given["calibration_uri"] = calibration.name
        if evaluation is not None:
            given["evaluation_uri"] = evaluation.name
        _publish(client, model, source, given, detach=detach)


@click.command()
@click.argument("folder", type=_FOLDER)
@_common
@job_options
@server_option
def compress(
    folder: Path, model: str, calibration: Path | None, evaluation: Path | None, detach: bool, server: str,
    **options: Unpack[JobOptions],
) -> None:  # fmt: skip
    """Compress the checkpoint (or LoRA adapter) in FOLDER and publish it.

    The compressor reads the folder from this machine's disk. It must be below one of the compressor's --source-folders;
    `deltaserve upload` works with any compressor.
    """
    check_name(model, "--model")
    given = only_given(options)
    if calibration is not None:
        given["calibration_uri"] = str(calibration.resolve())
    if evaluation is not None:
        given["evaluation_uri"] = str(evaluation.resolve())
    with connect(server, patience=PATIENCE) as client:
        _publish(client, model, str(folder.resolve()), given, detach=detach)


def watch(client: Client, job_id: str) -> pb.Job:
    """Shows a job's progress until it ends, then its report; raises the job's error when it did not succeed."""
    with Meter(make_console(stderr=True)) as meter:
        job = client.wait_for_job(job_id, meter.job)
    if job.report_json:
        show_report(make_console(), job.report_json)
    error = error_of_job(job)
    if error is not None:
        raise error
    name = job.revision_name.split("/")
    click.echo(f"published {name[1]}@{name[3]}" if len(name) == 4 else f"published {job.revision_name}")
    return job


def _publish(client: Client, model: str, source: str, options: JobOptions, *, detach: bool) -> None:
    job = client.create_job(model, source, **options)
    if detach:
        click.echo(f"job {job.job_id} is queued; see `deltaserve jobs watch {job.job_id}`")
        return
    watch(client, job.job_id)
    click.echo(f'try it: deltaserve generate {model} "..."')
