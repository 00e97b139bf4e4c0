"""A LoRA adapter uploaded as PEFT saved it answers like the merged model, in one batch with the base and a delta."""

import asyncio
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from deltaserve.client import Completion
from deltaserve.delta.checkpoint import Checkpoint
from tests.deltaserve.delta.adapters import ALL_LINEARS, linears, make_adapter
from tests.e2e.conftest import MODELS, System, prompts
from tests.e2e.test_logits import _check, _oracle, _served

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_served_logits_are_those_of_the_merged_model(system: System, tmp_path: Path) -> None:
    base = Checkpoint.open(MODELS / "base")
    made = make_adapter(tmp_path / "lora", base, dict.fromkeys(linears(base, *ALL_LINEARS), 8), size=0.03)
    job = await system.publish("lora", made.folder, calibration_samples=8)
    assert json.loads(job.report_json)["quality"]["kl"] < 1e-6
    await system.publish("beside-lora", MODELS / "g2p")
    merged = AutoModelForCausalLM.from_pretrained(MODELS / "base", dtype=torch.float32)
    assert not merged.load_state_dict(made.tuned, strict=False).unexpected_keys
    merged.tie_weights()
    oracles = {"lora": merged.eval(), "base": _oracle(system, "base"), "beside-lora": _oracle(system, "beside-lora")}
    vocab = int(merged.config.vocab_size)
    asked = [(model, prompt) for prompt in prompts("conj_fr", 4) for model in oracles]
    answers = await asyncio.gather(*(_served(system, model, prompt, vocab) for model, prompt in asked))
    for (model, _), answer in zip(asked, answers, strict=True):
        _check(oracles[model], *answer)
    completions: dict[str, Completion] = {
        model: await system.client.complete(model, prompts("conj_fr", 1)[0], temperature=0, max_tokens=8)
        for model in ("lora", "base")
    }
    assert completions["lora"].token_ids != completions["base"].token_ids
