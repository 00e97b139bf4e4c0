"""The compressor is killed in the middle of an upload and of a job; nothing is lost, and nothing is done twice."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from deltaserve.cli.stack import Stack, StackOptions
from deltaserve.client import AsyncClient, UploadProgress
from deltaserve.v1 import models_pb2
from tests.e2e.conftest import MODELS, System

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]


@pytest_asyncio.fixture(loop_scope="session")
async def own_system(tmp_path: Path) -> AsyncIterator[System]:
    options = StackOptions(
        base=MODELS / "base", home=tmp_path, store=str(tmp_path / "store"), listen="127.0.0.1:0", threads=1
    )
    async with Stack(options) as stack, AsyncClient(stack.address) as client:
        yield System(stack, client, tmp_path)


def _kill(service: str, home: Path) -> None:
    """SIGKILLs the process of a service, found by the folder it was given."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if f"services.{service}" in words and any(word.startswith(str(home)) for word in words):
            os.kill(int(entry.name), signal.SIGKILL)
            return
    raise AssertionError(f"no process of {service}")


async def test_a_killed_compressor_resumes_upload_and_job(own_system: System) -> None:
    home, client = own_system.home, own_system.client
    reference = await own_system.publish("whole", MODELS / "conj_fr", codec="int4", calibration_samples=16)

    killed = False

    def kill_midway(progress: UploadProgress) -> None:
        nonlocal killed
        if progress.stage == "sending" and not killed and 0.2 < progress.done / progress.total < 0.9:
            killed = True
            _kill("compressor", home)

    extra = home / "notes.jsonl"  # another file, so that this is another upload
    extra.write_text('{"text": "hello"}\n')
    uri = await client.upload(MODELS / "conj_fr", extra=[extra], progress=kill_midway)
    assert killed

    job = await client.create_job("resumed", uri, codec="int4", calibration_samples=16)
    shot = asyncio.Event()

    def kill_at_layer(state: models_pb2.Job) -> None:
        if state.progress.layers_done >= 2 and not shot.is_set():
            shot.set()
            _kill("compressor", home)

    job = await client.wait_for_job(job.job_id, kill_at_layer)
    assert shot.is_set()
    assert job.state == models_pb2.JOB_STATE_SUCCEEDED
    assert job.attempts == 2
    assert reference.attempts == 1
    whole, resumed = (own_system.store / "deltas" / name / "1" / "delta.safetensors" for name in ("whole", "resumed"))
    assert whole.read_bytes() == resumed.read_bytes()
    assert (await client.complete("resumed", "a", max_tokens=1)).token_ids
