"""Served logits against transformers' own models with merged weights, float32: within 1e-3, greedy tokens identical."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from deltaserve.delta.checkpoint import Checkpoint
from tests.services.worker.engine.conftest import (
    ALL_LOGITS,
    Rig,
    assert_equals_oracle,
    merged_model,
    pack_tensors,
    random_model,
)

PROMPTS = [[5, 9, 2, 77, 30], [1] * 3 + list(range(40, 70)), [95], [8, 8, 3, 41, 60, 12, 90]]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64, "rope_theta": 5e5,
}  # fmt: skip
VARIANTS = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama head_dim, no gqa": ("llama", {"head_dim": 32, "num_key_value_heads": 4}),
    "llama one kv head": ("llama", {"num_key_value_heads": 1}),
    "llama linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "llama dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}}),
    "llama yarn": ("llama", {"rope_parameters": YARN}),
    "llama llama3": ("llama", {"rope_parameters": LLAMA3}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral window": ("mistral", {"sliding_window": 10}),
    "qwen2": ("qwen2", {}),
    "qwen2 tied, windows": (
        "qwen2",
        {"tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3 tied, biases": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True, "attention_bias": True}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_base_and_delta_in_one_batch_equal_the_merged_models(
    variant: str, tmp_path: Path, make_rig: Callable[..., Rig], pack: Callable[..., Path]
):
    model_type, options = VARIANTS[variant]
    base = random_model(tmp_path, model_type, **options)
    delta = pack(base, "int4")
    rig = make_rig(base, max_step_tokens=17)  # the long prompt comes in chunks, beside rows that decode
    rig.load("t@1", delta)
    for i, prompt in enumerate(PROMPTS):
        rig.add(i, prompt, ["", "t@1"][i % 2], **ALL_LOGITS)
        rig.add(10 + i, prompt, ["t@1", ""][i % 2], **ALL_LOGITS)
    rig.run()
    oracles = [merged_model(base, None), merged_model(base, delta)]
    for i, prompt in enumerate(PROMPTS):
        assert_equals_oracle(rig, i, prompt, oracles[i % 2])
        assert_equals_oracle(rig, 10 + i, prompt, oracles[1 - i % 2])


@pytest.mark.parametrize("decoded_bytes", [0, 1 << 30])
@pytest.mark.parametrize("codec", ["sign1", "int2", "int3", "int4", "dense"])
def test_every_codec_alone_packed_and_decoded(codec, decoded_bytes, llama, make_rig, pack):
    rig = make_rig(llama, decoded_bytes=decoded_bytes)
    rig.load("t@1", pack(llama, codec), "decoded" if decoded_bytes else "resident")
    for i, prompt in enumerate(PROMPTS):
        rig.add(i, prompt, "t@1", **ALL_LOGITS)
    rig.run()
    oracle = merged_model(llama, pack(llama, codec))
    for i, prompt in enumerate(PROMPTS):
        assert_equals_oracle(rig, i, prompt, oracle)


@pytest.mark.parametrize("tied", [False, True])
def test_many_models_in_one_batch_some_decoded_with_vocabularies_of_their_own(tied, tmp_path, make_rig, pack):
    base = random_model(tmp_path, "llama", tie_word_embeddings=tied)
    kinds = {"a@1": ("sign1", 96), "b@1": ("int2", 104), "c@1": ("int4", 80), "d@3": ("dense", 96), "e@1": ("int4", 99)}
    folders = {name: pack(base, codec, vocab=vocab, seed=i) for i, (name, (codec, vocab)) in enumerate(kinds.items())}
    one_copy = 4 * (3 * (64 * 128 + 64 * 64 + 3 * 64 * 112) + 104 * 64)
    rig = make_rig(base, decoded_bytes=2 * one_copy)
    for name, folder in folders.items():
        rig.load(name, folder)
    while sum(use.decoded for use in rig.engine.deltas.uses(lambda _: 0)) < 2:
        rig.step()
    prompts = {}
    for i, name in enumerate(["", *kinds] * 3):
        top = kinds[name][1] - 1 if name else 95
        prompts[i] = (name, [top, *PROMPTS[i % 2], top])
        prompts[i] = (name, [min(token, top) for token in prompts[i][1]])
        rig.add(i, prompts[i][1], name, **ALL_LOGITS)
    rig.run()
    oracles = {name: merged_model(base, folder) for name, folder in folders.items()} | {"": merged_model(base, None)}
    for i, (name, prompt) in prompts.items():
        assert_equals_oracle(rig, i, prompt, oracles[name])


def test_a_preempted_sequence_continues_as_if_nothing_had_happened(llama, make_rig, pack):
    rig = make_rig(llama, kv_bytes=4 * 3 * 2 * 2 * 16 * 4 * 24)  # 23 blocks of 4 tokens
    rig.load("t@1", pack(llama, "int4"))
    prompts = [list(range(i, i + 12)) for i in range(4)]
    for i, prompt in enumerate(prompts):
        rig.add(i, prompt, ["", "t@1"][i % 2], max_tokens=20, **ALL_LOGITS)
    rig.run()
    oracles = [merged_model(llama, None), merged_model(llama, pack(llama, "int4"))]
    for i, prompt in enumerate(prompts):
        assert len(rig.tokens(i)) == 20
        assert_equals_oracle(rig, i, prompt, oracles[i % 2])


def test_bfloat16_follows_float32(llama, make_rig, pack):
    tokens = []
    for dtype in ("float32", "bfloat16"):
        rig = make_rig(llama, dtype=dtype)
        rig.load("t@1", pack(llama, "int4"))
        rig.add(1, PROMPTS[1], "t@1", max_tokens=1, **ALL_LOGITS)
        rig.run()
        tokens.append(rig.logprobs(1)[0])
    exact = dict(zip(tokens[0].top_ids, tokens[0].top_values, strict=True))
    close = dict(zip(tokens[1].top_ids, tokens[1].top_values, strict=True))
    spread = max(exact.values()) - min(exact.values())
    assert max(abs(exact[t] - close[t]) for t in exact) < 0.05 * spread


@pytest.mark.zoo
def test_a_real_fine_tune_answers_like_the_merged_model(tmp_path, make_rig):
    zoo = Path(os.environ.get("DELTASERVE_ZOO", Path(__file__).parents[5] / "shared" / "zoo"))
    if not zoo.is_dir():
        pytest.skip(f"no model zoo at {zoo}")
    base, tuned = Checkpoint.open(zoo / "base"), Checkpoint.open(zoo / "conj_fr")
    folder = pack_tensors(
        tmp_path / "conj_fr", base, {name: tuned.read(name).float() for name in tuned.tensors}, "int4"
    )
    rig = make_rig(zoo / "base", kv_bytes=32 << 20, block_size=16)
    rig.load("conj_fr@1", folder)
    rows = [json.loads(line) for line in (zoo / "conj_fr" / "test.jsonl").read_text().splitlines()[:6]]
    tokenizer = AutoTokenizer.from_pretrained(zoo / "conj_fr")
    prompts = [tokenizer(row["prompt"], add_special_tokens=False).input_ids for row in rows]
    for i, prompt in enumerate(prompts):
        rig.add(i, prompt, ["conj_fr@1", ""][i % 2], stop_token_ids=[0], **ALL_LOGITS)
    rig.run()
    oracles = [merged_model(zoo / "base", folder), merged_model(zoo / "base", None)]
    for i, prompt in enumerate(prompts):
        assert_equals_oracle(rig, i, prompt, oracles[i % 2])
