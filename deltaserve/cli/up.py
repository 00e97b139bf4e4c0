"""`deltaserve up`: the whole system on this machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from pathlib import Path
from typing import TypedDict, Unpack

import click

from deltaserve.cli.console import make_console, seconds_text
from deltaserve.cli.stack import Stack, StackOptions
from deltaserve.client import DEFAULT_ADDRESS


class _Given(TypedDict):
    base: Path
    home: Path
    store: str | None
    listen: str
    http_listen: str
    workers: int
    base_name: str
    source_folders: tuple[Path, ...]
    device: str
    threads: int
    logs_here: bool


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command()
@click.option(
    "--base",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder of the base model: config.json, *.safetensors, tokenizer.",
)
@click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".deltaserve"),
    show_default=True,
    help="Folder for logs, uploads, caches and, by default, the store.",
)
@click.option("--store", help="URI of the delta store (/path, s3://bucket/prefix...). Default: below --home.")
@click.option("--listen", default=DEFAULT_ADDRESS, show_default=True, help="host:port of the router.")
@click.option(
    "--http",
    "http_listen",
    default="127.0.0.1:8000",
    show_default=True,
    help="host:port of the OpenAI-compatible API; empty: none.",
)
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="How many workers.")
@click.option("--base-name", default="base", show_default=True, help="What requests call the base.")
@click.option(
    "--source-folder",
    "source_folders",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that `deltaserve compress` may name; may be given several times. Default: "
    "the present one, when --listen is for this machine only.",
)
@click.option("--device", default="cpu", show_default=True, help="Where to compute: cpu, cuda, cuda:1.")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="torch threads of each service.")
@click.option("--logs", "logs_here", is_flag=True, help="Show the services' logs here instead of in files.")
def up(**given: Unpack[_Given]) -> None:
    """Start router, compressor and workers on this machine, and stop them with Ctrl-C."""
    home = given["home"].resolve()
    local = given["listen"].rpartition(":")[0] in {"127.0.0.1", "localhost", "[::1]"}
    folders = given["source_folders"] or ((Path.cwd(),) if local else ())
    options = StackOptions(
        base=given["base"].resolve(),
        home=home,
        store=given["store"] or str(home / "store"),
        listen=given["listen"],
        http_listen=given["http_listen"],
        workers=given["workers"],
        base_name=given["base_name"],
        source_folders=tuple(str(folder.resolve()) for folder in folders),
        device=given["device"],
        threads=given["threads"],
        logs_here=given["logs_here"],
    )
    asyncio.run(_run(options))


async def _run(options: StackOptions) -> None:
    serving = asyncio.ensure_future(_serve(options))
    for number in _SIGNALS:
        # the first signal stops the services in order, a second one during that kills them
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await serving


async def _serve(options: StackOptions) -> None:
    console = make_console(stderr=True)
    started = time.monotonic()
    console.print(f"starting router, compressor and {options.workers} worker(s) on {options.base}")
    try:
        async with Stack(options, console.print) as stack:
            console.print(f"ready after {seconds_text(time.monotonic() - started)} at {stack.address}", style="bold")
            if stack.http_address:
                console.print(f"OpenAI-compatible API at http://{stack.http_address}/v1")
            where = "" if options.logs_here else f", logs in {options.home / 'logs'}"
            console.print(f"store {options.store}{where}")
            console.print(f'try: deltaserve generate {options.base_name} "..." --server {stack.address}; Ctrl-C stops')
            raise await stack.failure
    except asyncio.CancelledError:
        console.print("stopped")
        raise
