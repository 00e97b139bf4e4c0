"""The real services over real sockets, with the small real models that ship in examples/."""

import json
import os
import secrets
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from openai import AsyncOpenAI
from safetensors.torch import load_file, save_file

from deltaserve.cli.stack import Stack, StackOptions
from deltaserve.client import AsyncClient
from deltaserve.v1 import models_pb2
from tests.e2e.collector import Collector

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "examples" / "models"


@dataclass(frozen=True)
class System:
    """A running stack, a client of its router, and where its files are."""

    stack: Stack
    client: AsyncClient
    home: Path

    @property
    def store(self) -> Path:
        return self.home / "store"

    async def publish(self, model: str, source: Path | str, **options: object) -> models_pb2.Job:
        """Compresses (or takes as it is) a folder and returns the job, which must have succeeded."""
        uri = await self.client.upload(source) if isinstance(source, Path) else source
        job = await self.client.create_job(model, uri, **options)  # type: ignore[arg-type]
        job = await self.client.wait_for_job(job.job_id)
        assert job.state == models_pb2.JOB_STATE_SUCCEEDED, job
        return job


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    home = tmp_path_factory.mktemp("stack")
    os.environ["OMP_NUM_THREADS"] = "1"  # the services share two cores
    options = StackOptions(
        base=MODELS / "base", home=home, store=str(home / "store"), listen="127.0.0.1:0",
        http_listen="127.0.0.1:0", threads=1,
        source_folders=(str(MODELS), str(tmp_path_factory.getbasetemp())),
    )  # fmt: skip
    async with Stack(options) as stack, AsyncClient(stack.address) as client:
        yield System(stack, client, home)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def four_models(system: System) -> list[str]:
    """The base and three fine-tunes: one compressed here, two published as the packed deltas that ship."""
    await system.publish("conj_fr", MODELS / "conj_fr", codec="int4", calibration_samples=16)
    for name in ("g2p", "section"):
        await system.publish(name, MODELS / name)
    return ["base", "conj_fr", "g2p", "section"]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def api(system: System) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"http://{system.stack.http_address}/v1", api_key="any", max_retries=0) as client:
        yield client


def prompts(model: str, count: int) -> list[str]:
    """Returns prompts that suit a model, from the labelled rows that ship with it."""
    task = "g2p" if model == "base" else model.partition("-")[0]
    with (MODELS.parent / "data" / f"{task}.test.jsonl").open() as lines:
        return [json.loads(line)["prompt"] for _, line in zip(range(count), lines, strict=False)]


@pytest.fixture
def altered(tmp_path: Path) -> Callable[[Callable[[dict[str, torch.Tensor]], None]], Path]:
    """Copies the fine-tune that ships and lets a test change its tensors."""

    def make(change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
        folder = tmp_path / "altered"
        shutil.copytree(MODELS / "conj_fr", folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


@dataclass(frozen=True)
class Observed:
    """A stack that is watched: a collector receives its traces, and every service tells its metrics.

    Attributes:
        metrics: host:port by service.
    """

    stack: Stack
    client: AsyncClient
    collector: Collector
    metrics: dict[str, str]

    @property
    def http(self) -> str:
        return self.stack.http_address

    async def publish(self, task: str) -> str:
        """Publishes the packed delta that ships for a task under a name that nothing has asked for yet."""
        model = f"{task}-{secrets.token_hex(4)}"
        job = await self.client.create_job(model, str(MODELS / task))
        job = await self.client.wait_for_job(job.job_id)
        assert job.state == models_pb2.JOB_STATE_SUCCEEDED, job
        return model


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def observed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Observed]:
    home = tmp_path_factory.mktemp("observed")
    metrics = {service: f"127.0.0.1:{free_port()}" for service in ("router", "worker", "compressor")}
    options = StackOptions(
        base=MODELS / "base", home=home, store=str(home / "store"), listen="127.0.0.1:0",
        http_listen="127.0.0.1:0", threads=1,
        source_folders=(str(MODELS), str(tmp_path_factory.getbasetemp())),
    )  # fmt: skip
    async with Collector() as collector:
        settings = {f"DELTASERVE_{service.upper()}_METRICS_LISTEN": address for service, address in metrics.items()}
        settings |= {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "OTEL_TRACES_SAMPLER": "parentbased_always_on",
            "OMP_NUM_THREADS": "1",
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value)
            stack = await Stack(options).__aenter__()  # what is started later, by other fixtures, is not observed
        try:
            async with AsyncClient(stack.address) as client:
                yield Observed(stack, client, collector, metrics)
        finally:
            await stack.__aexit__(None, None, None)


@pytest_asyncio.fixture(loop_scope="session")
async def environment(tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """What the commands run in: the README's default port and folder may be taken, so the test has its own."""
    with socket.socket() as grpc, socket.socket() as http:
        addresses = []
        for probe in (grpc, http):
            probe.bind(("127.0.0.1", 0))
            addresses.append(f"127.0.0.1:{probe.getsockname()[1]}")
    yield os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DELTASERVE_SERVER": addresses[0],
        "README_HTTP": addresses[1],
        "README_HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
    }


def free_port() -> int:
    """Returns a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
