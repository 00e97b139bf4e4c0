"""Served logits equal those of the merged model in `transformers`, alone and mixed with other models in one batch."""

import asyncio

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from deltaserve.client import Completion
from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.merge import merged_state_dict
from deltaserve.delta.reader import DeltaReader
from tests.e2e.conftest import MODELS, System, prompts

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]

CODECS = ["sign1", "int2", "int4"]
TOKENS = 8


@pytest.fixture(scope="module")
def vocab() -> int:
    return int(AutoConfig.from_pretrained(MODELS / "base").vocab_size)


async def _codec_models(system: System) -> list[str]:
    known = {model.model for model in await system.client.models()}
    for codec in CODECS:
        if f"conj_fr-{codec}" not in known:
            source = str(MODELS / "conj_fr")
            await system.publish(f"conj_fr-{codec}", source, codec=codec, calibration_samples=8)
    return ["base", *(f"conj_fr-{codec}" for codec in CODECS)]


def _oracle(system: System, model: str) -> PreTrainedModel:
    """The base, or base + delta merged, as `transformers` runs it in float32."""
    base = MODELS / "base"
    oracle = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if model != "base":
        delta = DeltaReader.open(system.store / "deltas" / model / "1")
        missing, unexpected = oracle.load_state_dict(merged_state_dict(Checkpoint.open(base), delta), strict=False)
        assert not unexpected
        assert missing in ([], ["lm_head.weight"])  # tied
        oracle.tie_weights()
    return oracle.eval()


async def _served(system: System, model: str, prompt: str, vocab: int) -> tuple[list[int], torch.Tensor, list[int]]:
    """Returns prompt ids, logits [TOKENS, vocab] and greedy tokens as served."""
    tokenized = await system.client.tokenize(model, prompt)
    rows = []
    stream = system.client.generate(
        model, prompt, temperature=0, max_tokens=TOKENS, ignore_eos=True, top_logprobs=vocab, logits=True
    )
    tokens: list[int] = []
    async with stream:
        async for frame in stream:
            for logprobs in frame.chunk.logprobs:
                row = torch.full((vocab,), float("nan"))
                row[[entry.token_id for entry in logprobs.top]] = torch.tensor([entry.value for entry in logprobs.top])
                rows.append(row)
            tokens += frame.chunk.token_ids
    return list(tokenized.token_ids), torch.stack(rows), tokens


def _check(oracle: PreTrainedModel, prompt: list[int], logits: torch.Tensor, tokens: list[int]) -> None:
    with torch.no_grad():
        expected = oracle(torch.tensor([prompt + tokens[:-1]])).logits[0, len(prompt) - 1 :]
    assert torch.isfinite(logits).all()
    assert (logits - expected).abs().max().item() <= 1e-3
    assert tokens == expected.argmax(-1).tolist()


async def test_each_model_alone(system: System, vocab: int) -> None:
    for model in await _codec_models(system):
        oracle = _oracle(system, model)
        for prompt in prompts("conj_fr", 3):
            _check(oracle, *await _served(system, model, prompt, vocab))


async def test_all_models_mixed_in_one_batch(system: System, vocab: int) -> None:
    models = await _codec_models(system)
    asked = [(model, prompt) for prompt in prompts("conj_fr", 6) for model in models]
    answers = await asyncio.gather(*(_served(system, model, prompt, vocab) for model, prompt in asked))
    oracles = {model: _oracle(system, model) for model in models}
    for (model, _), answer in zip(asked, answers, strict=True):
        _check(oracles[model], *answer)


async def test_greedy_text_does_not_depend_on_the_batch(system: System, four_models: list[str]) -> None:
    asked = [(model, prompt) for model in four_models for prompt in prompts(model, 4)]

    async def ask(model: str, prompt: str) -> Completion:
        return await system.client.complete(model, prompt, temperature=0, max_tokens=24)

    together = await asyncio.gather(*(ask(*pair) for pair in asked))
    alone = [await ask(*pair) for pair in asked]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
