"""Options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from deltaserve.client import DEFAULT_ADDRESS, Client, JobOptions

F = TypeVar("F", bound=Callable[..., Any])


_PATIENCE = 1.5  # seconds: somebody waits, and a server that is away is most often a wrong address


def connect(server: str, *, patience: float = _PATIENCE) -> Client:
    """Returns a client of the router; work that takes long may be told to wait longer for a restarting server."""
    # not an option: everybody on the machine may read command lines
    return Client(server, patience=patience, api_key=os.environ.get("DELTASERVE_API_KEY") or None)


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
    click.option("--preset", type=click.Choice(["tiny", "balanced", "faithful", "exact"]), help="Size by name, codecs "
                 "chosen tensor by tensor: at most 1.1, 2, 4 stored bits a parameter; exact: bit for bit."),
    click.option("--bits", "bits_per_param", type=click.FloatRange(min=0, min_open=True), help="Size in stored bits a "
                 "parameter of the whole checkpoint, codecs chosen tensor by tensor."),
    click.option("--smallest", is_flag=True, help="The smallest size that meets the limits below."),
    click.option("--codec", type=click.Choice(["sign1", "vector8", "vector12", "vector16", "vector24", "ternary",
                 "int2", "int3", "int4", "sparse24_int2", "sparse24_int4", "exact", "dense"]),
                 help="One codec for all linear layers. Default int4."),
    click.option("--embedding-codec", type=click.Choice(["sign1", "vector8", "ternary", "int2", "int3", "int4", "exact",
                 "dense"]),
                 help="Of embeddings and lm_head. Default: as --preset, --bits or --smallest choose, else int4."),
    click.option("--lossless", is_flag=True, help="Entropy-code what is stored: fewer bytes, the same weights."),
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
    """Returns the options that have a value.

    Raises UsageError when they exclude each other: the server would say so too, but only after the upload.
    """
    given: JobOptions = {k: v for k, v in options.items() if v is not None and v is not False}  # type: ignore[assignment]
    sizes = [flag for name, flag in _SIZES.items() if name in given]
    if len(sizes) > 1:
        raise click.UsageError(f"{' and '.join(sizes)} exclude each other; give one of them")
    return given


_SIZES = {"codec": "--codec", "preset": "--preset", "bits_per_param": "--bits", "smallest": "--smallest"}
