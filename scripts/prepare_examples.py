"""Makes examples/models and examples/data from a model zoo: copies, slices, and deltas packed by the real pipeline.

    python scripts/prepare_examples.py --zoo DIR

The zoo holds `base` and full fine-tunes of it, each a checkpoint with train.jsonl and test.jsonl. The result is
committed; run this again when the delta format changes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from itertools import islice
from pathlib import Path

from deltaserve.cli.stack import Stack, StackOptions
from deltaserve.client import AsyncClient, error_of_job
from deltaserve.v1 import models_pb2

EXAMPLES = Path(__file__).parents[1] / "examples"
WHOLE = "conj_fr"  # shipped as the full fine-tune it is, to be uploaded
PACKED = {"g2p": "int4", "section": "int2"}  # shipped as deltas, with the codec of their linear layers
TEST_ROWS, CALIBRATION_ROWS = 200, 256


def main() -> None:
    """Makes the examples; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, required=True, help="folder with base, g2p, conj_fr and section")
    zoo: Path = parser.parse_args().zoo
    for name in ("base", WHOLE):
        copy_checkpoint(zoo / name, EXAMPLES / "models" / name)
    for name in (WHOLE, *PACKED):
        slice_rows(zoo / name / "test.jsonl", EXAMPLES / "data" / f"{name}.test.jsonl", TEST_ROWS)
        slice_rows(zoo / name / "train.jsonl", EXAMPLES / "data" / f"{name}.calibration.jsonl", CALIBRATION_ROWS)
    asyncio.run(pack_all(zoo))


def copy_checkpoint(source: Path, target: Path) -> None:
    """Copies a checkpoint without the rows beside it."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.suffix != ".jsonl":
            shutil.copyfile(path, target / path.name)


def slice_rows(source: Path, target: Path, count: int) -> None:
    """Copies the first rows of a JSONL file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open(encoding="utf-8") as rows:
        target.write_text("".join(islice(rows, count)), encoding="utf-8")


async def pack_all(zoo: Path) -> None:
    """Uploads the fine-tunes to a stack of their own and takes the published deltas out of its store."""
    with tempfile.TemporaryDirectory(prefix="deltaserve-examples-") as folder:
        home = Path(folder)
        options = StackOptions(
            base=EXAMPLES / "models" / "base", home=home, store=str(home / "store"), listen="127.0.0.1:0"
        )
        async with Stack(options, say) as stack, AsyncClient(stack.address) as client:
            for name, codec in PACKED.items():
                say(f"packing {name} with {codec}")
                job = await pack(client, zoo / name, codec)
                _, model, _, revision = job.revision_name.split("/")
                take(home / "store" / "deltas" / model / revision, EXAMPLES / "models" / name)


async def pack(client: AsyncClient, folder: Path, codec: str) -> models_pb2.Job:
    """Uploads and compresses one fine-tune with its own rows; raises the job's error if it fails."""
    name = folder.name
    calibration, test = (EXAMPLES / "data" / f"{name}.{kind}.jsonl" for kind in ("calibration", "test"))
    source = await client.upload(folder, extra=[calibration, test])
    job = await client.create_job(name, source, codec=codec, calibration_uri=calibration.name, evaluation_uri=test.name)
    ended = await client.wait_for_job(job.job_id)
    error = error_of_job(ended)
    if error is not None:
        raise error
    return ended


def take(revision: Path, target: Path) -> None:
    """Copies what a manifest names, and the manifest, out of a store."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    manifest = json.loads((revision / "manifest.json").read_bytes())
    for name in ("manifest.json", *(file["path"] for file in manifest["files"] if file["source"] == "delta")):
        shutil.copyfile(revision / name, target / name)


def say(text: str) -> None:
    """Tells the person at the terminal what happens."""
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    main()
