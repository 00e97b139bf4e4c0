"""Entry of the command: subcommands, and errors as one line that says what to do."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from deltaserve import telemetry
from deltaserve.cli.aliases import alias, aliases, rollback, shadows
from deltaserve.cli.bench import bench
from deltaserve.cli.catalog import delete, models, pin, revision
from deltaserve.cli.chat import chat
from deltaserve.cli.explain import explain
from deltaserve.cli.generate import generate
from deltaserve.cli.info import info
from deltaserve.cli.jobs import jobs
from deltaserve.cli.publish import compress, upload
from deltaserve.cli.report import report
from deltaserve.cli.up import up
from deltaserve.cli.usage import key, usage
from deltaserve.cli.workers import drain, place, placement, workers
from deltaserve.errors import DeltaServeError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="deltaserve", message="deltaserve %(version)s")
def cli() -> None:
    """Serve many full fine-tunes of one base model: compress them to deltas, publish them, generate from them.

    Commands talk to a router at --server (or $DELTASERVE_SERVER). `deltaserve up --base DIR` starts everything here.
    """


for _command in (
    up, upload, compress, jobs, models, revision, report, alias, aliases, rollback, shadows,
    pin, delete, workers, drain, place, placement,
    usage, key,
    generate, chat, info, bench,
):  # fmt: skip
    cli.add_command(_command)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (the process's own by default); returns the exit status: 0, 1 on errors, 2 on misuse."""
    # grpc's own warnings go to standard error from C++ and would tear progress bars; our errors say what happened
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    telemetry.setup("cli", None)
    try:
        cli.main(args=None if argv is None else list(argv), prog_name="deltaserve", standalone_mode=False)
    except click.exceptions.Exit as request:
        return request.exit_code
    except click.ClickException as error:  # misuse is 2, as everywhere
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has enough; the interpreter must not try to flush again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (DeltaServeError, OSError) as error:
        click.echo(f"error: {explain(error)}", err=True)
        return 1
    finally:
        telemetry.shutdown()
    return 0
