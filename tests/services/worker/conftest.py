"""A tiny random base with fine-tunes in a store, and real worker processes over them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.coding import code_delta, code_dense
from deltaserve.delta.fingerprint import fingerprint
from deltaserve.delta.manifest import BaseRef
from deltaserve.delta.writer import DeltaWriter, Identity
from deltaserve.v1 import inference_pb2 as pb
from tests.services.worker.router_peer import RouterPeer

ROOT = Path(__file__).parents[3]
CONTEXT = 2048
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}bot: {% endif %}"
)


@dataclass(frozen=True)
class World:
    """Folders shared by all workers of a test run."""

    base: Path
    store: Path


def _make_base(folder: Path) -> None:
    tokenizer = Tokenizer(
        models.BPE({c: i + 1 for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))} | {"<|end|>": 0}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "generation_config.json").write_text('{"eos_token_id": 0}')


def _publish(world: World, model: str, seed: int, **config: Any) -> None:
    base = Checkpoint.open(world.base)
    generator = torch.Generator().manual_seed(seed)
    writer = DeltaWriter(world.store / ".parts" / model)
    for name in base.tensors:
        old = base.read(name).float()
        delta = 0.2 * torch.randn(old.shape, generator=generator)
        if old.dim() == 1:
            packed = code_dense(name, old + delta)
        else:
            packed = code_delta(name, delta, torch.float32, "int4", base=name, params={"group_size": 32})
        writer.add_part(name, [packed])
    identity = Identity(
        model=model,
        revision="1",
        created="2026-01-01T00:00:00Z",
        base=BaseRef(fingerprint=config.pop("fingerprint", fingerprint(base)), architecture=base.architecture),
        config={**base.config, **config},
    )
    files = {name: world.base / name for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json")}
    out = world.store / "deltas" / model / "1"
    writer.finish(out, identity, files=files, base_files=files, compression={})


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("store"))
    _make_base(world.base)
    for seed, model in enumerate(("red", "green", "blue", "broken"), start=1):
        _publish(world, model, seed)
    _publish(world, "stranger", 9, fingerprint="0" * 64)
    payload = world.store / "deltas" / "broken" / "1" / "delta.safetensors"
    shutil.copy(payload, world.store / "good")
    data = bytearray(payload.read_bytes())
    data[-1] ^= 1
    payload.write_bytes(data)
    return world


@dataclass
class WorkerProcess:
    """A started worker."""

    process: subprocess.Popen[bytes]
    port: int
    cache: Path
    log: Path

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def engine(self) -> psutil.Process:
        """The engine's process."""
        children = psutil.Process(self.process.pid).children()
        return next(c for c in children if "spawn_main" in " ".join(c.cmdline()))

    def health(self) -> int:
        with grpc.insecure_channel(self.address) as channel:
            request = health_pb2.HealthCheckRequest(service="deltaserve.v1.WorkerService")
            return int(health_pb2_grpc.HealthStub(channel).Check(request, timeout=5).status)

    def wait_until_serving(self, seconds: float = 60) -> None:
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up and self.process.poll() is None:
            with contextlib.suppress(grpc.RpcError):
                if self.health() == health_pb2.HealthCheckResponse.SERVING:
                    return
            time.sleep(0.1)
        raise AssertionError(f"worker is not serving (status {self.process.poll()}):\n{self.log.read_text()}")

    def stop(self, sign: int = signal.SIGTERM) -> int:
        """Signals it and returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(sign)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


StartWorker = Callable[..., WorkerProcess]


@pytest.fixture(scope="session")
def start_worker(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartWorker]:
    """Starts worker processes; all are gone at the end."""
    started: list[WorkerProcess] = []

    def start(**flags: Any) -> WorkerProcess:
        folder = tmp_path_factory.mktemp("worker")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        settings = {"base": world.base, "store": world.store, "listen": f"127.0.0.1:{port}", "cache": folder / "cache"}
        settings |= {"name": "w", "threads": 1, "kv_bytes": 8 << 20, "notice_seconds": 0.3} | flags
        command = [sys.executable, "-m", "services.worker"]
        command += [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        log = folder / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, stderr=file, stdout=file, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
        started.append(WorkerProcess(process, port, folder / "cache", log))
        return started[-1]

    yield start
    for worker in started:
        worker.process.kill()
        worker.process.wait()


@pytest.fixture(scope="session")
def worker(start_worker: StartWorker) -> WorkerProcess:
    """The worker that tests share."""
    worker = start_worker()
    worker.wait_until_serving()
    return worker


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., Any]]:
    """Opens sessions with a worker."""
    peers: list[RouterPeer] = []

    async def to(worker: WorkerProcess) -> RouterPeer:
        peers.append(await RouterPeer(worker.address).open())
        return peers[-1]

    yield to
    for peer in peers:
        await peer.close()


@pytest.fixture
async def peer(worker: WorkerProcess, connect: Any) -> RouterPeer:
    """A session with the shared worker."""
    opened: RouterPeer = await connect(worker)
    return opened


@pytest.fixture
def ask() -> Callable[..., pb.GenerateRequest]:
    """Makes requests: greedy, 16 tokens, ignoring the end of sequence, unless told otherwise."""

    def make(text: str = "hello", **fields: Any) -> pb.GenerateRequest:
        sampling = {"temperature": 0.0} | fields.pop("sampling", {})
        stopping = {"max_tokens": 16, "ignore_eos": True} | fields.pop("stopping", {})
        if not {"chat", "token_ids"} & fields.keys():
            fields["text"] = text
        return pb.GenerateRequest(
            sampling=pb.SamplingParams(**sampling), stopping=pb.StoppingParams(**stopping), **fields
        )

    return make
