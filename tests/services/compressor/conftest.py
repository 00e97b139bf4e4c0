"""A tiny random base, fine-tunes of it, and real compressors on real sockets."""

import asyncio
import contextlib
import dataclasses
import hashlib
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import google_crc32c
import grpc
import pytest
import torch
from safetensors.torch import load_file, save_file

from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.coding import code_delta, code_dense
from deltaserve.delta.fingerprint import fingerprint
from deltaserve.delta.headers import read_folder_headers
from deltaserve.delta.manifest import BaseRef
from deltaserve.delta.writer import DeltaWriter, Identity
from deltaserve.rpc.channels import edge_channel
from deltaserve.rpc.status import error_from_rpc
from deltaserve.v1 import models_pb2 as pb
from deltaserve.v1 import models_pb2_grpc as rpc
from services.compressor.service import compressor
from services.compressor.settings import Settings

ROOT = Path(__file__).resolve().parents[3]
TEXT = ["The quick brown fox jumps over the lazy dog.", "def add(a, b):\n    return a + b", "0123456789 éàü"] * 4


def make_tokenizer(folder: Path) -> None:
    """Trains a byte-level BPE tokenizer on a few lines."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=288, special_tokens=["<eos>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXT, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with a tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=288, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer(folder)
    return folder


def write_tuned(base: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None] | None = None) -> Path:
    """Writes a fine-tune: the base with noise on every tensor, then with a change of the test's."""
    shutil.copytree(base, folder)
    tensors = load_file(base / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name in sorted(tensors):
        noise = torch.randn(tensors[name].shape, generator=generator)
        tensors[name] = tensors[name] + 0.01 * noise.to(tensors[name].dtype)
    if change is not None:
        change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def tune(base_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a fine-tune below the folder that the test's compressor may read: tune(name, change)."""
    (tmp_path / "allowed").mkdir(exist_ok=True)
    return lambda name, change=None: write_tuned(base_folder, tmp_path / "allowed" / name, change)


@pytest.fixture(scope="session")
def tuned_folder(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound fine-tune."""
    return write_tuned(base_folder, tmp_path_factory.mktemp("tuned") / "m")


@pytest.fixture(scope="session")
def packed_folder(base_folder: Path, tuned_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fine-tune as a packed delta, coded without calibration."""
    base, tuned = Checkpoint.open(base_folder), Checkpoint.open(tuned_folder)
    folder = tmp_path_factory.mktemp("packed")
    writer = DeltaWriter(folder / "parts")
    packed = []
    for name in tuned.tensors:
        after = tuned.read(name)
        if after.dim() == 2:
            delta = after.float() - base.read(name).float()
            packed.append(code_delta(name, delta, after.dtype, "int4", base=name, params={"group_size": 32}))
        else:
            packed.append(code_dense(name, after))
    writer.add_part("all", packed)
    reference = BaseRef(fingerprint=fingerprint(base), architecture=base.architecture)
    identity = Identity("somebody", "7", "2026-01-01T00:00:00Z", reference, tuned.config)
    files, base_files = tuned.side_files(), base.side_files()
    writer.finish(folder / "out", identity, files=files, base_files=base_files, compression={}, report={"kl": 0.5})
    return folder / "out"


class Client:
    """The calls a client makes, with what a test wants to vary."""

    def __init__(self, channel: grpc.aio.Channel, settings: Settings) -> None:
        self.settings = settings
        self.stub = rpc.ModelServiceStub(channel)

    def start_request(self, folder: Path, upload_id: str = "u", **changes: Any) -> pb.StartUploadRequest:
        """Declares a folder as the SDK does."""
        packed = (folder / "manifest.json").exists()
        tensors = [] if packed else [
            pb.TensorInfo(name=t.name, dtype=t.dtype, shape=t.shape) for t in read_folder_headers(folder).values()
        ]  # fmt: skip
        request = self.start_request_of(folder, tensors, upload_id)
        request.MergeFrom(pb.StartUploadRequest(**changes))
        return request

    def start_request_of(self, folder: Path, tensors: Any, upload_id: str = "u") -> pb.StartUploadRequest:
        """Declares a folder's files as they are, with tensors as one likes."""
        files = [
            pb.UploadFile(path=p.name, size=p.stat().st_size, sha256=hashlib.sha256(p.read_bytes()).hexdigest())
            for p in sorted(folder.iterdir())
        ]
        config = (folder / "config.json").read_bytes() if tensors else b""
        return pb.StartUploadRequest(upload_id=upload_id, files=files, config_json=config, tensors=tensors)

    async def send(self, folder: Path, upload_id: str, offsets: dict[str, int], chunk: int = 1 << 16) -> None:
        """Sends what is missing of each file in one call."""

        def chunks() -> Any:
            for path, begin in offsets.items():
                data = (folder / path).read_bytes()
                for offset in range(begin, len(data), chunk):
                    yield self.chunk(upload_id, path, offset, data[offset : offset + chunk])

        await self.stub.UploadChunks(chunks())

    @staticmethod
    def chunk(upload_id: str, path: str, offset: int, data: bytes) -> pb.UploadChunksRequest:
        """A chunk with its CRC."""
        crc = google_crc32c.value(data)
        return pb.UploadChunksRequest(upload_id=upload_id, path=path, offset=offset, data=data, crc32c=crc)

    @staticmethod
    async def until_gone(path: Path) -> None:
        """Waits until a file or folder was deleted."""
        async with asyncio.timeout(10):
            while path.exists():
                await asyncio.sleep(0.01)

    @staticmethod
    async def refused(call: Any) -> Any:
        """Awaits a call that must fail, and returns its error as the class that was raised."""
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call
        return error_from_rpc(failed.value)

    async def upload(self, folder: Path, upload_id: str = "u") -> str:
        """Uploads a folder and returns its source URI."""
        started = await self.stub.StartUpload(self.start_request(folder, upload_id))
        missing = {f.path: f.received for f in started.files if f.received < f.size}
        if missing:
            await self.send(folder, upload_id, missing)
        return str((await self.stub.CommitUpload(pb.CommitUploadRequest(upload_id=upload_id))).source_uri)

    async def create_job(self, source_uri: str, model: str = "m", job_id: str = "j", **spec: Any) -> pb.Job:
        """Queues a job."""
        job = pb.JobSpec(model=model, source_uri=source_uri, **spec)
        return (await self.stub.CreateJob(pb.CreateJobRequest(job_id=job_id, spec=job))).job

    async def watch(self, job_id: str = "j") -> list[pb.Job]:
        """Watches a job to its end."""
        return [r.job async for r in self.stub.WatchJob(pb.WatchJobRequest(job_id=job_id), timeout=120)]


@pytest.fixture
def settings(base_folder: Path, tmp_path: Path) -> Settings:
    """Settings of a compressor of this test."""
    return Settings(
        base=base_folder, store=str(tmp_path / "store"), listen="127.0.0.1:0", work=tmp_path / "work", threads=1,
        disk_reserve_bytes=0, poll_seconds=0.1, grace_seconds=0.2, source_folders=(str(tmp_path / "allowed"),),
    )  # fmt: skip


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[Client]:
    """A client of a compressor that runs in this process, over a real socket."""
    async with compressor(settings) as host, edge_channel(f"127.0.0.1:{host.port}") as channel:
        yield Client(channel, settings)


class Service:
    """A compressor as a process of its own, to be killed."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.port = 0
        self.log: list[str] = []
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Id of the running process."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Starts the process and waits until it serves."""
        environ = {k: v for k, v in os.environ.items() if not k.startswith("DELTASERVE_COMPRESSOR_")}
        environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        for field in dataclasses.fields(self.settings):
            value = getattr(self.settings, field.name)
            if value is not None:
                text = ",".join(value) if isinstance(value, tuple) else str(value)
                environ[f"DELTASERVE_COMPRESSOR_{field.name.upper()}"] = text
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.compressor", stderr=asyncio.subprocess.PIPE, env=environ
        )
        stderr = self._process.stderr
        assert stderr is not None
        async with asyncio.timeout(60):
            while not self.port or "serving on port" not in self.log[-1]:
                line = (await stderr.readline()).decode()
                assert line, "".join(self.log)
                self.log.append(line)
                found = re.search(r"serving on port (\d+)", line)
                self.port = int(found[1]) if found else self.port
        self._reader = asyncio.create_task(self._read(stderr))

    async def _read(self, stderr: asyncio.StreamReader) -> None:
        async for line in stderr:
            self.log.append(line.decode())

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends the process by a signal and returns its status."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(number)
        status = await self._process.wait()
        assert self._reader is not None
        await self._reader
        self.port = 0
        return status

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """A client of the running process."""
        async with edge_channel(f"127.0.0.1:{self.port}") as channel:
            yield Client(channel, self.settings)


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Service]:
    """A compressor process, not started yet."""
    service = Service(settings)
    yield service
    if service.port:
        await service.stop(signal.SIGKILL)


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[], dict[str, bytes]]:
    """Reads all objects of this test's store, by key."""
    root = tmp_path / "store"
    return lambda: {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
