"""The whole system in a minute, on this machine's CPU: one upload, one compression, four models in one batch.

Run by `make demo`. Everything it makes is below .deltaserve/demo, so that `deltaserve up` can go on with it.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from deltaserve.cli.console import bits_text, bytes_text, make_console, make_table, ratio_text, seconds_text
from deltaserve.cli.explain import explain
from deltaserve.cli.meter import Meter
from deltaserve.cli.report import show_report
from deltaserve.cli.stack import Stack, StackOptions
from deltaserve.client import AsyncClient, error_of_job
from deltaserve.delta.manifest import Manifest, parse_manifest
from deltaserve.errors import DeltaServeError
from deltaserve.v1.inference_pb2 import TIER_DEVICE

EXAMPLES = Path(__file__).parent
BASE = EXAMPLES / "models" / "base"
HOME = EXAMPLES.parent / ".deltaserve" / "demo"
UPLOADED = "conj_fr"
PACKED = ("g2p", "section")
PROMPTS_EACH = 2
BASE_PROMPTS = ("The package manager installs", "This library provides a")
SPECIAL = ("<|task|>", "<|answer|>")


@dataclass
class Line:
    """One stream on the screen."""

    model: str
    prompt: str
    targets: tuple[str, ...] = ()  # accepted answers; none for the base
    text: str = ""
    done: bool = False

    @property
    def mark(self) -> Text:
        """Tells whether the answer is one of the accepted ones."""
        if not self.done or not self.targets:
            return Text()
        right = self.text.strip() in self.targets
        return Text("right", style="green") if right else Text("wrong", style="yellow")


@dataclass
class Run:
    """What was seen while streaming."""

    lines: list[Line]
    order: list[str]  # models, in the order their pieces arrived
    most_running: int = 0  # requests in one step of the engine
    seconds: float = 0.0


async def main(console: Console) -> None:
    """Runs the demo; raises DeltaServeError when a part of it fails."""
    started = time.monotonic()
    options = StackOptions(base=BASE, home=HOME, store=str(HOME / "store"), listen="127.0.0.1:0", fresh=True)
    heading(console, 1, "Start router, compressor and worker, one process each, on local files")
    async with Stack(options, console.print) as stack, AsyncClient(stack.address) as client:
        console.print(f"ready after {seconds_text(time.monotonic() - started)}; the router listens on {stack.address}")
        heading(
            console, 2, f"Upload {UPLOADED}, a full fine-tune that writes French verb forms, and compress it to 1 bit"
        )
        await upload_and_compress(console, client)
        heading(console, 3, "Register two fine-tunes that are packed deltas already: pronunciation, package sections")
        await register_packed(console, client)
        heading(console, 4, "Stream from the base and three fine-tunes at once")
        await show_streams(console, client)
        heading(console, 5, "What it takes")
        await show_sizes(console, client)
    console.print(f"\nThe demo took {seconds_text(time.monotonic() - started)}. Try next, in this folder:\n")
    show_next(console)


async def upload_and_compress(console: Console, client: AsyncClient) -> None:
    """Uploads the full fine-tune with its text over gRPC, watches its job and shows the quality report."""
    calibration, test = (EXAMPLES / "data" / f"{UPLOADED}.{kind}.jsonl" for kind in ("calibration", "test"))
    with Meter(console) as meter:
        source = await client.upload(EXAMPLES / "models" / UPLOADED, extra=[calibration, test], progress=meter.upload)
        job = await client.create_job(
            UPLOADED, source, codec="sign1", calibration_uri=calibration.name, evaluation_uri=test.name
        )
        job = await client.wait_for_job(job.job_id, meter.job)
    error = error_of_job(job)
    if error is not None:
        raise error
    console.print(f"published as {job.revision_name}\n")
    show_report(console, job.report_json)


async def register_packed(console: Console, client: AsyncClient) -> None:
    """Uploads the packed deltas; the compressor verifies and publishes them as they are."""
    for name in PACKED:
        source = await client.upload(EXAMPLES / "models" / name)
        job = await client.create_job(name, source)
        error = error_of_job(await client.wait_for_job(job.job_id))
        if error is not None:
            raise error
        await client.place(name, TIER_DEVICE)  # ahead of requests; without it the first request waits for the delta
        console.print(f"{name}: verified, published, and on its way into the worker's memory")


async def show_streams(console: Console, client: AsyncClient) -> None:
    """Streams from all four models at the same time and shows the pieces as they arrive."""
    run = Run([Line("base", prompt) for prompt in BASE_PROMPTS] + test_lines(), [])
    started = time.monotonic()
    with Live(stream_table(run), console=console, refresh_per_second=20, transient=False) as live:
        watching = asyncio.create_task(watch_worker(client, run))
        await asyncio.gather(*(stream(client, line, run, live) for line in run.lines))
        run.seconds = time.monotonic() - started
        watching.cancel()
    console.print("\nfirst pieces in the order they arrived: " + " ".join(run.order[:36]))
    console.print(
        f"{len(run.lines)} streams of 4 models took {seconds_text(run.seconds)} together; "
        f"up to {run.most_running} of them were seen in one step of the one engine"
    )


async def stream(client: AsyncClient, line: Line, run: Run, live: Live) -> None:
    """Streams one generation into its line: fine-tunes answer greedily, the base tells a story."""
    temperature = 0.0 if line.targets else 0.7
    async with client.generate(line.model, line.prompt, temperature=temperature, seed=5, max_tokens=48) as generation:
        async for piece in generation.text():
            line.text += piece
            run.order.append(line.model)
            live.update(stream_table(run))
    line.done = True
    live.update(stream_table(run))


async def watch_worker(client: AsyncClient, run: Run) -> None:
    """Notes the most requests that were in one step, as the worker reports it."""
    while True:
        workers = await client.workers()
        run.most_running = max(run.most_running, *(worker.running for worker in workers))
        await asyncio.sleep(0.05)


async def show_sizes(console: Console, client: AsyncClient) -> None:
    """Prints what each fine-tune takes as a delta, linears and whole, and all of them together."""
    columns = (">checkpoint", ">delta", ">ratio", ">ratio of linears", ">bits/param of linears", ">bits/param")
    table = make_table("fine-tune", *columns)
    full = packed = 0
    for name in (UPLOADED, *PACKED):
        manifest = parse_manifest((await client.revision(name)).manifest_json.encode())
        table.add_row(name, *size_cells(manifest))
        full += manifest.sizes.checkpoint_bytes
        packed += manifest.sizes.delta_bytes
    console.print(table)
    base = (BASE / "model.safetensors").stat().st_size
    console.print(
        f"\nBase and three fine-tunes: {bytes_text(base + full)} as full models, {bytes_text(base + packed)} here. "
        f"Each further fine-tune adds about {bytes_text(packed / 3)} instead of {bytes_text(full / 3)}."
    )


def show_next(console: Console) -> None:
    """Prints commands that go on from here."""
    bin_folder = Path(sys.executable).parent
    command = "deltaserve" if shutil.which("deltaserve") else str(bin_folder / "deltaserve")
    data = "examples/data"
    for text in (
        f"{command} up --base examples/models/base --home .deltaserve/demo     # in another terminal",
        f"{command} models",
        f"{command} generate conj_fr '<|task|>chanter | Indicatif | Imparfait | 5<|answer|>' --temperature 0",
        """curl -s http://127.0.0.1:8000/v1/completions -d '{"model": "g2p", "prompt": "<|task|>g o<|answer|>"}'""",
        f"{command} chat g2p                                                   # spell a word: t e r m i n a l",
        f"{command} upload examples/models/conj_fr --model fr4 --codec int4 --evaluation {data}/conj_fr.test.jsonl",
        f"{command} info examples/models/section",
    ):
        console.print(f"  {text}", soft_wrap=True)


def test_lines() -> list[Line]:
    """Returns the first test rows of each fine-tune as streams."""
    lines: list[Line] = []
    for name in (UPLOADED, *PACKED):
        rows = (EXAMPLES / "data" / f"{name}.test.jsonl").read_text(encoding="utf-8").splitlines()
        chosen = map(json.loads, rows[:PROMPTS_EACH])
        lines.extend(Line(name, row["prompt"], tuple(row["targets"])) for row in chosen)
    return lines


def stream_table(run: Run) -> Table:
    """Returns the streams as they are now."""
    table = make_table("model", "prompt", "output", "")
    for line in run.lines:
        prompt = line.prompt
        for special in SPECIAL:
            prompt = prompt.replace(special, "")
        shown = prompt if len(prompt) <= 40 else f"{prompt[:37]}..."
        table.add_row(line.model, shown, " ".join(line.text.split()), line.mark)
    return table


def size_cells(manifest: Manifest) -> tuple[str, ...]:
    """Returns the sizes of one fine-tune as text, in the order of the table's columns."""
    sizes, linear = manifest.sizes, manifest.sizes.by_class["linear"]
    return (
        bytes_text(sizes.checkpoint_bytes),
        bytes_text(sizes.delta_bytes),
        ratio_text(sizes.checkpoint_bytes, sizes.delta_bytes),
        ratio_text(linear.checkpoint_bytes, linear.delta_bytes),
        bits_text(linear.delta_bytes, linear.parameters),
        bits_text(sizes.delta_bytes, sizes.parameters),
    )


def heading(console: Console, number: int, text: str) -> None:
    """Prints the title of a part."""
    console.print(f"\n{number}. {text}", style="bold")


if __name__ == "__main__":
    screen = make_console()
    try:
        asyncio.run(main(screen))
    except DeltaServeError as failure:
        screen.print(f"the demo failed: {explain(failure)}", style="red", soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
