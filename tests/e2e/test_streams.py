"""Many streams at once, clients that leave, deadlines, seeds: what a platform team's clients do all day."""

import asyncio

import grpc
import pytest

from deltaserve.client import AsyncClient
from deltaserve.errors import DeadlineError, InvalidArgumentError, NotFoundError
from deltaserve.rpc.status import error_from_rpc
from deltaserve.v1 import admin_pb2, inference_pb2, inference_pb2_grpc
from tests.e2e.conftest import System, prompts

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def _worker(system: System) -> admin_pb2.Worker:
    (worker,) = await system.client.workers()
    return worker


async def _until_idle(system: System) -> admin_pb2.Worker:
    """Waits until the worker reports that nothing runs, waits or holds KV."""
    for _ in range(100):
        worker = await _worker(system)
        if not worker.running and not worker.waiting and worker.kv_blocks_free == worker.kv_blocks_total:
            return worker
        await asyncio.sleep(0.1)
    raise AssertionError(f"the worker is not idle: {worker}")


async def test_32_streams_over_4_models(system: System, four_models: list[str]) -> None:
    asked = [(model, prompt) for prompt_index in range(8) for model in four_models
             for prompt in [prompts(model, 8)[prompt_index]]]  # fmt: skip
    seen_together = 0
    running = 0

    async def ask(model: str, prompt: str) -> str:
        nonlocal running, seen_together
        text = ""
        async with system.client.generate(model, prompt, temperature=0, max_tokens=32) as stream:
            async for frame in stream:
                if frame.WhichOneof("frame") == "chunk":
                    running += not text
                    text += frame.chunk.text
                    seen_together = max(seen_together, running)
        assert stream.summary is not None
        assert stream.summary.usage.completion_tokens > 0
        running -= bool(text)
        return text

    answers = await asyncio.gather(*(ask(*pair) for pair in asked))
    assert len(answers) == 32
    assert seen_together >= 16
    by_model = {model: {a for (m, _), a in zip(asked, answers, strict=True) if m == model} for model in four_models}
    assert by_model["conj_fr"].isdisjoint(by_model["g2p"])
    await _until_idle(system)


async def test_a_client_that_walks_away_frees_its_memory(system: System) -> None:
    before = await _until_idle(system)
    streams = [
        system.client.generate("base", f"Once upon a time {i}", max_tokens=1500, ignore_eos=True) for i in range(4)
    ]
    for stream in streams:
        await stream.__aenter__()
        async for frame in stream:
            if frame.WhichOneof("frame") == "chunk":
                break
    for _ in range(50):
        busy = await _worker(system)
        if busy.running == 4:
            break
        await asyncio.sleep(0.1)
    assert busy.kv_blocks_free < before.kv_blocks_free
    for stream in streams:
        await stream.__aexit__(None, None, None)
    await _until_idle(system)


async def test_a_lost_connection_frees_its_memory(system: System) -> None:
    await _until_idle(system)
    other = AsyncClient(system.stack.address)
    stream = other.generate("base", "Once upon a time", max_tokens=1500, ignore_eos=True)
    await stream.__aenter__()
    async for frame in stream:
        if frame.WhichOneof("frame") == "chunk":
            break
    await other.close()
    await _until_idle(system)


async def test_a_deadline_ends_the_stream_and_frees_its_memory(system: System) -> None:
    with pytest.raises(DeadlineError):
        await system.client.complete("base", "Once", max_tokens=2000, ignore_eos=True, timeout=0.5)
    await _until_idle(system)


async def test_seeds_repeat_and_differ(system: System) -> None:
    async def ask(seed: int) -> list[list[int]]:
        done = await system.client.complete("base", "The compiler", seed=seed, max_tokens=16, n=2, ignore_eos=True)
        return done.token_ids

    first, again, other = await asyncio.gather(ask(7), ask(7), ask(1000))
    assert first == again
    assert first != other
    assert first[0] != first[1]
    assert (await ask(8))[0] == first[1]  # choice i draws with seed + i


async def test_the_seed_in_the_summary_repeats_an_unseeded_answer(system: System) -> None:
    first = await system.client.complete("base", "A list is", max_tokens=12, ignore_eos=True)
    again = await system.client.complete("base", "A list is", max_tokens=12, ignore_eos=True, seed=first.summary.seed)
    assert first.token_ids == again.token_ids


async def test_stop_strings_and_limits(system: System) -> None:
    free = await system.client.complete("base", "The", temperature=0, max_tokens=40, ignore_eos=True)
    word = free.text.split()[3]
    cut = await system.client.complete("base", "The", temperature=0, max_tokens=40, ignore_eos=True, stop=[word])
    assert cut.text == free.text[: free.text.index(word)]
    assert cut.finished[0].reason == inference_pb2.FINISH_REASON_STOP
    assert cut.finished[0].stop_string == word
    assert free.finished[0].reason == inference_pb2.FINISH_REASON_LENGTH
    assert len(free.token_ids[0]) == 40


async def test_models_show_rates_and_residency(system: System, four_models: list[str]) -> None:
    await asyncio.gather(*(system.client.complete(m, "a", max_tokens=1) for m in four_models))
    await asyncio.sleep(1.5)
    models = {model.model: model for model in await system.client.models()}
    assert set(four_models) <= set(models)
    assert models["base"].base
    for name in four_models:
        assert models[name].rates.total > 0
        assert models[name].rates.short_rate > 0
    for name in four_models[1:]:
        (residency,) = models[name].residency
        assert residency.tier >= inference_pb2.TIER_HOST
        assert 0 < models[name].delta_bytes < models[name].checkpoint_bytes


async def test_a_fine_tune_talks_through_its_chat_template(system: System, four_models: list[str]) -> None:
    done = await system.client.complete(
        "conj_fr", [{"role": "user", "content": "parler | Indicatif | Présent | 1"}], temperature=0, max_tokens=20
    )
    assert done.text.strip()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"n": 17}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"logit_bias": {99999: 1.0}}, "logit_bias"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ],
)
async def test_bad_parameters_name_their_field(system: System, options: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        await system.client.complete("base", "a", **options)  # type: ignore[arg-type]
    assert field in refused.value.field


async def test_an_over_long_prompt_is_refused_with_the_numbers(system: System) -> None:
    with pytest.raises(InvalidArgumentError, match="2048"):
        await system.client.complete("base", "word " * 4000)


async def test_an_unknown_model_is_not_found(system: System) -> None:
    for name in ("nope", "base@7"):
        with pytest.raises(NotFoundError) as refused:
            await system.client.complete(name, "a")
        assert refused.value.kind == "model"
    with pytest.raises(InvalidArgumentError):
        await system.client.complete("../../etc", "a")


async def test_a_request_without_a_prompt_is_refused(system: System) -> None:
    async with grpc.aio.insecure_channel(system.stack.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            async for _ in stub.Generate(inference_pb2.GenerateRequest(model="base")):
                pass
        error = error_from_rpc(failed.value)
        assert isinstance(error, InvalidArgumentError)
        assert error.field == "prompt"
