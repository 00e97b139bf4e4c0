"""The router with real workers in processes of their own, serving a tiny random model."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from deltaserve.errors import InvalidArgumentError
from deltaserve.v1 import inference_pb2 as pb

from .conftest import failure, rest, routing, until

ROOT = Path(__file__).parents[3]
PROMPT = "a stream that goes on elsewhere"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with random weights and a byte-level tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("base")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: number for number, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=1024, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@contextlib.asynccontextmanager
async def real_worker(base: Path, store: str, name: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = {
        "base": str(base), "store": store, "listen": address, "name": name, "cache": str(base / name),
        "base-model": "rnd", "threads": "1", "notice-seconds": "0",
    }  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DELTASERVE_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.worker", *(x for k, v in flags.items() for x in (f"--{k}", v)),
        cwd=ROOT, env=environment,
    )  # fmt: skip
    try:
        yield process, address
    finally:
        if process.returncode is None:
            process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), 10)
        if process.returncode is None:
            process.kill()
            await process.wait()


def output(frames: list[pb.GenerateResponse], index: int) -> tuple[str, list[int]]:
    chunks = [f.chunk for f in frames if f.HasField("chunk") and f.chunk.index == index]
    return "".join(c.text for c in chunks), [t for c in chunks for t in c.token_ids]


@pytest.mark.slow
async def test_streams_abort_tokenize_and_go_on_after_a_kill(base: Path, store: str) -> None:
    sampling = pb.SamplingParams(temperature=0.8, seed=11, n=2)
    stopping = pb.StoppingParams(max_tokens=150)
    async with (
        real_worker(base, store, "one") as (first, one),
        real_worker(base, store, "two") as (second, two),
        routing(store, [one, two], no_worker_seconds=60) as (router, client),
    ):
        await until(lambda: sum(link.serving for link in router.fleet.links()) == 2, 90)
        whole = await rest(client.generate(PROMPT, model="rnd", sampling=sampling, stopping=stopping, timeout=120))
        assert [f.WhichOneof("frame") for f in whole][:2] == ["accepted", "progress"]
        assert whole[-1].summary.usage.completion_tokens == 300
        assert whole[-1].summary.seed == 11
        tokens = await client.inference.Tokenize(pb.TokenizeRequest(model="rnd", text="abc"), timeout=20)
        assert "".join(tokens.pieces) == "abc"
        error = await failure(client.generate("x", model="rnd", sampling=pb.SamplingParams(top_p=3)))
        assert isinstance(error, InvalidArgumentError)
        assert error.field == "sampling.top_p"

        call = client.generate(PROMPT, model="rnd", sampling=sampling, stopping=stopping, timeout=120)
        frames: list[pb.GenerateResponse] = []
        while sum((len(f.chunk.token_ids) for f in frames), 0) < 40:
            frames.append(await call.read())
        lost = next(link for link in router.fleet.links() if link.flights)
        (first if lost.name == "one" else second).kill()
        frames += await rest(call)
        kinds = [f.WhichOneof("frame") for f in frames]
        assert (kinds.count("accepted"), kinds.count("finished"), kinds.count("summary")) == (1, 2, 1)
        assert [output(frames, i) for i in (0, 1)] == [output(whole, i) for i in (0, 1)]
        assert frames[-1].summary.usage.completion_tokens == 300

        (left,) = (link for link in router.fleet.links() if link.connected)
        await until(lambda: left.report.kv_blocks_free == left.report.kv_blocks_total, 20)
        gone = client.generate(PROMPT, model="rnd", stopping=pb.StoppingParams(max_tokens=600), timeout=60)
        while not (await gone.read()).HasField("chunk"):
            pass
        await until(lambda: left.report.kv_blocks_free < left.report.kv_blocks_total, 20)
        gone.cancel()
        await until(lambda: left.report.kv_blocks_free == left.report.kv_blocks_total, 20)
