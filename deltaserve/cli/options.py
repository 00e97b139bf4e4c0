"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from deltaserve.client import DEFAULT_ADDRESS, Client, JobOptions

F = TypeVar("F", bound=Callable[..., Any])


_PATIENCE = 1.5  # seconds: somebody waits, and a server that is away is most often a wrong address


def connect(server: str, *, patience: float = _PATIENCE) -> Client:
    """Returns a client of the router; work that takes long may be told to wait longer for a restarting server."""
    return Client(server, patience=patience)


def server_option(command: F) -> F:
    """Adds --server: the router's address."""
    return click.option(
        "--server", metavar="HOST:PORT", envvar="DELTASERVE_SERVER", default=DEFAULT_ADDRESS, show_default=True,
        show_envvar=True, help="Router to talk to.",
    )(command)  # fmt: skip


def json_option(command: F) -> F:
    """Adds --json: the whole answer for programs."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


_JOB_OPTIONS = (
    click.option("--codec", type=click.Choice(["sign1", "int2", "int3", "int4", "dense"]), help="Of linear layers. "
                 "Default int4."),
    click.option("--embedding-codec", type=click.Choice(["int2", "int3", "int4", "dense"]), help="Of embeddings and "
                 "lm_head. Default int4."),
    click.option("--group-size", type=click.IntRange(min=0), help="Weights that share a scale; 0: a whole row."),
    click.option("--calibration-samples", type=click.IntRange(min=1), help="Most calibration sequences."),
    click.option("--calibration-tokens", type=click.IntRange(min=1), help="Most tokens of a calibration sequence."),
    click.option("--max-kl", type=float, help="Publish only up to this KL divergence, nats a token."),
    click.option("--min-agreement", type=click.FloatRange(0, 1), help="Publish only from this top-1 agreement on."),
    click.option("--max-accuracy-drop", type=float, help="Publish only up to this loss of points on --evaluation."),
    click.option("--max-bits", "max_bits_per_param", type=float, help="Publish only up to these stored bits a "
                 "parameter."),
    click.option("--job-id", help="Name of the job; chosen when absent."),
)  # fmt: skip


def job_options(command: F) -> F:
    """Adds the options of a compression; they arrive as the keywords of JobOptions."""
    for option in reversed(_JOB_OPTIONS):
        command = option(command)
    return command


def only_given(options: JobOptions) -> JobOptions:
    """Returns the options that have a value."""
    given: JobOptions = {k: v for k, v in options.items() if v is not None}  # type: ignore[assignment]
    return given
