"""Engines of several ranks, each a process, joined by gloo: what they serve equals what one process serves."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from services.worker.engine.process import run
from services.worker.engine.settings import EngineSettings
from services.worker.messages import Add, DeltaChanged, Drop, Load, Output, Ready, Sampling, Step
from tests.services.worker.engine.conftest import Rig, logits_of, random_model
from tests.services.worker.engine.test_process import Front

SPAWN = multiprocessing.get_context("spawn")
PROMPTS = [[5, 9, 2, 77, 30], [1] * 3 + list(range(40, 70)), [8, 8, 3, 41, 60, 12, 90]]
CODECS = ("sign1", "ternary", "int2", "int3", "int4", "vector8", "sparse24_int4", "lowrank", "tiered_sign1", "dense")
SETTINGS = {"kv_bytes": 4 << 20, "block_size": 4, "max_step_tokens": 17}


@contextmanager
def engine_of_ranks(base: Path, ranks: int, **settings: Any) -> Iterator[tuple[Front, Any]]:
    ours, theirs = socket.socketpair()
    options = EngineSettings(
        base_folder=str(base), threads=1, tensor_parallel=ranks, **{"decoded_bytes": 0, **SETTINGS, **settings}
    )
    process = SPAWN.Process(target=run, args=(theirs, options))
    process.start()
    theirs.close()
    front = Front(ours)
    try:
        front.until(Ready)
        yield front, process
    finally:
        ours.close()
        process.join(60)
        process.kill()


def served(front: Front, requests: list[Add]) -> dict[int, list[Output]]:
    outputs: dict[int, list[Output]] = {request.sequence: [] for request in requests}
    for request in requests:
        front.send(request)
    while not all(found and found[-1].finish for found in outputs.values()):
        for step in front.until(Step):
            for output in step.outputs:
                outputs[output.sequence].append(output)
    return outputs


def greedy(number: int, prompt: list[int], revision: str) -> Add:
    sampling = Sampling(temperature=0.0, max_tokens=6, top_logprobs=1 << 20, raw_logits=True)
    return Add(sequence=number, revision=revision, prompt=prompt, sampling=sampling)


def assert_equal_to_one_process(base: Path, deltas: dict[str, Path], ranks: int, **settings: Any) -> None:
    requests = [
        greedy(number, prompt, revision)
        for number, (revision, prompt) in enumerate((r, p) for r in ("", *deltas) for p in PROMPTS)
    ]
    rig = Rig(base, **{"delta_bytes": 1 << 30, **SETTINGS, **settings})
    for revision, folder in deltas.items():
        rig.load(revision, folder)
    for request in requests:
        rig.engine.handle(request, rig.now)
    rig.run()
    with engine_of_ranks(base, ranks, **settings) as (front, _):
        for revision, folder in deltas.items():
            front.send(Load(revision, str(folder)))
        wanted = "decoded" if settings.get("decoded_bytes") else "resident"
        states: dict[str, str] = {}
        while set(states) != set(deltas) or set(states.values()) != {wanted}:
            states |= {m.revision: m.state for m in front.until(DeltaChanged)}
            assert "failed" not in states.values()
        outputs = served(front, requests)
    for request in requests:
        found = outputs[request.sequence]
        assert [t for o in found for t in o.tokens] == rig.tokens(request.sequence)
        entries = [entry for o in found for entry in o.logprobs]
        expected = logits_of(rig.logprobs(request.sequence), 96)
        assert (logits_of(entries, 96) - expected).abs().max() <= 1e-3


@pytest.mark.timeout(600)
def test_base_and_deltas_of_every_codec_on_two_ranks(llama, pack):
    deltas = {f"{codec}@1": pack(llama, codec) for codec in CODECS}
    assert_equal_to_one_process(llama, deltas, 2, max_deltas=len(deltas))


@pytest.mark.timeout(600)
def test_biases_head_norms_tied_embeddings_and_fewer_kv_heads_than_ranks(tmp_path, pack):
    base = random_model(
        tmp_path, "qwen3", head_dim=16, num_key_value_heads=1, tie_word_embeddings=True, attention_bias=True
    )
    deltas = {"a@1": pack(base, "int4"), "b@1": pack(base, "dense", seed=2)}
    assert_equal_to_one_process(base, deltas, 2)


@pytest.mark.timeout(600)
def test_merged_deltas(llama, pack):
    deltas = {"a@1": pack(llama, "int4"), "b@1": pack(llama, "sign1", seed=2)}
    assert_equal_to_one_process(llama, deltas, 2, decoded_bytes=1 << 30)


@pytest.mark.timeout(600)
def test_a_broken_delta_fails_alone_and_a_lost_rank_ends_the_engine(llama, pack, tmp_path):
    with engine_of_ranks(llama, 2) as (front, process):
        front.send(Load("broken@1", str(tmp_path)))
        assert front.until(DeltaChanged)[0].state == "failed"
        front.send(Load("t@1", str(pack(llama, "int4"))))
        assert front.until(DeltaChanged)[0].state == "resident"
        front.send(Drop("t@1"))
        assert front.until(DeltaChanged)[0].state == "dropped"
        front.send(Load("t@1", str(pack(llama, "int4", seed=2))))
        assert front.until(DeltaChanged)[0].state == "resident"
        assert served(front, [greedy(1, [1, 2, 3], "t@1")])[1][-1].finish == "length"
        ranks = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
        assert len(ranks) == 1
        os.kill(ranks[0].pid, signal.SIGKILL)
        with pytest.raises((EOFError, ConnectionResetError)):
            while True:
                front.receive()
        process.join(30)
        assert process.exitcode == 1


@pytest.mark.timeout(600)
def test_ranks_leave_with_the_first(llama):
    with engine_of_ranks(llama, 2) as (_, process):
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        gone, alive = psutil.wait_procs(children, timeout=60)
        assert gone
        assert not alive
