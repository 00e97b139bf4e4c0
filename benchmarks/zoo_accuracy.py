"""Accuracy of real fine-tunes served through the router, codec by codec, with sizes.

Each fine-tune is compressed by the running compressor and asked over gRPC for the greedy continuation of every row of
its test.jsonl; right is what equals one of the row's targets. The `dense` row is the fine-tune itself: all of
its weights bit for bit, through the same path.

    .venv/bin/python -m benchmarks.zoo_accuracy --zoo ../shared/zoo --codecs dense,int4,int2,sign1
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.hardware import describe
from deltaserve.cli.stack import Stack, StackOptions
from deltaserve.client import AsyncClient
from deltaserve.client.jobs import error_of_job

_MODELS = ("g2p", "conj_fr", "section")
_STREAMS = 48


@dataclass(frozen=True)
class Row:
    """One line of the table; accuracy in points of 100, ratios fine-tune bytes : delta bytes."""

    model: str
    codec: str
    accuracy: float
    linear_ratio: float
    whole_ratio: float
    report: dict[str, Any]
    compress_seconds: float
    serve_seconds: float


async def accuracy(client: AsyncClient, model: str, rows: list[dict[str, Any]]) -> float:
    """Returns the share of rows, in points of 100, whose greedy continuation equals one of their targets."""
    slots = asyncio.Semaphore(_STREAMS)

    async def right(row: dict[str, Any]) -> bool:
        async with slots:
            done = await client.complete(
                model, row["prompt"], temperature=0, max_tokens=40, add_special_tokens=False, stop=["<|endoftext|>"]
            )
        return done.text.strip() in row["targets"]

    return 100 * sum(await asyncio.gather(*map(right, rows))) / len(rows)


async def measure(client: AsyncClient, zoo: Path, model: str, codec: str, limit: int) -> Row:
    """Compresses one fine-tune with one codec, serves it and scores it."""
    name = f"{model}-{codec}"
    uri = await client.upload(zoo / model, extra=[zoo / model / "train.jsonl"])
    started = time.monotonic()
    job = await client.create_job(
        name,
        uri,
        codec=codec,
        embedding_codec="dense" if codec == "dense" else "int4",
        calibration_uri="train.jsonl",
    )
    job = await client.wait_for_job(job.job_id)
    error = error_of_job(job)
    if error is not None:
        raise error
    compressed = time.monotonic()
    with (zoo / model / "test.jsonl").open() as lines:
        rows = [json.loads(line) for line in lines][:limit]
    points = await accuracy(client, name, rows)
    sizes = json.loads((await client.revision(name)).manifest_json)["sizes"]
    linear = sizes["by_class"]["linear"]
    return Row(
        model,
        codec,
        points,
        linear["checkpoint_bytes"] / linear["delta_bytes"],
        sizes["checkpoint_bytes"] / sizes["delta_bytes"],
        json.loads(job.report_json),
        compressed - started,
        time.monotonic() - compressed,
    )


async def run(zoo: Path, codecs: list[str], models: list[str], limit: int) -> list[Row]:
    """Starts the whole system on local files and measures every combination."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        options = StackOptions(base=zoo / "base", home=home, store=str(home / "store"), listen="127.0.0.1:0")
        rows = []
        async with Stack(options) as stack, AsyncClient(stack.address) as client:
            for model in models:
                for codec in codecs:
                    rows.append(await measure(client, zoo, model, codec, limit))
                    print_row(rows[-1], rows)
        return rows


def print_row(row: Row, rows: list[Row]) -> None:
    """Prints one line, with the difference to the fine-tune when that was measured."""
    tuned = next((r.accuracy for r in rows if r.model == row.model and r.codec == "dense"), None)
    lost = "" if tuned is None else f"{row.accuracy - tuned:+.2f}"
    quality = row.report["quality"]
    print(
        f"{row.model:8} {row.codec:6} {row.accuracy:8.2f} {lost:>8} {row.linear_ratio:8.2f}x {row.whole_ratio:7.2f}x "
        f"{quality['kl']:9.4f} {100 * quality['top1_agreement']:8.2f} "
        f"{row.compress_seconds:9.1f} {row.serve_seconds:7.1f}",
        flush=True,
    )


def main() -> None:
    """Reads the arguments, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, default=Path("../shared/zoo"), help="folder with base/ and the fine-tunes")
    parser.add_argument("--codecs", default="dense,int4,int3,int2,sign1")
    parser.add_argument("--models", default=",".join(_MODELS))
    parser.add_argument("--limit", type=int, default=1_000_000, help="rows of each test set")
    arguments = parser.parse_args()
    print(f"# {describe()}")
    print("model    codec  accuracy  vs tune   linears   whole        KL  agree %  compress s  serve s")
    asyncio.run(run(arguments.zoo.resolve(), arguments.codecs.split(","), arguments.models.split(","), arguments.limit))


if __name__ == "__main__":
    main()
