"""LoRA adapters by their own factors in one batch with the base and a compressed fine-tune, against W + s·B·A."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from deltaserve.delta.adapted import AdaptedCheckpoint
from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.classes import EMBEDDING
from deltaserve.delta.fingerprint import fingerprint
from deltaserve.delta.manifest import BaseRef
from deltaserve.delta.reader import DeltaReader
from deltaserve.delta.writer import DeltaWriter, Identity
from tests.deltaserve.delta.adapters import ALL_LINEARS, Made, linears, make_adapter
from tests.services.worker.engine.conftest import (
    ALL_LOGITS,
    VOCAB,
    Rig,
    assert_equals_oracle,
    merged_model,
    random_model,
)

PROMPTS = [[5, 9, 2, 77, 30], [1] * 3 + list(range(40, 70)), [95], [8, 8, 3, 41, 60, 12, 90]]


def pack_adapter(folder: Path, made: Made, base: Checkpoint) -> Path:
    """Packs an adapter as the pipeline does."""
    adapted = AdaptedCheckpoint.open(made.folder, base)
    writer = DeltaWriter(folder / "parts")
    writer.add_part("all", [adapted.packed(name) for name in adapted.tensors])
    reference = BaseRef(fingerprint=fingerprint(base), architecture=base.architecture)
    identity = Identity("a", "1", "2026-01-01T00:00:00Z", reference, adapted.config)
    writer.finish(folder / "out", identity, files={}, base_files={}, compression={})
    return folder / "out"


def oracle(base_folder: Path, made: Made) -> PreTrainedModel:
    """Returns transformers' own model of W + s·B·A, float32."""
    config = AutoConfig.from_pretrained(base_folder)
    config.vocab_size = len(made.tuned[EMBEDDING])
    config.tie_word_embeddings = "lm_head.weight" not in made.tuned
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    missing, unexpected = model.load_state_dict(made.tuned, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    return model.eval()


VARIANTS: dict[str, tuple[dict[str, Any], list[str], int]] = {
    "linears, untied": ({}, [], VOCAB),
    "linears, tied": ({"tie_word_embeddings": True}, [], VOCAB),
    "embedding and head, untied": ({}, ["model.embed_tokens", "lm_head"], VOCAB),
    "embedding, tied": ({"tie_word_embeddings": True}, ["model.embed_tokens"], VOCAB),
    "head, tied": ({"tie_word_embeddings": True}, ["lm_head"], VOCAB),
    "resized, tied": ({"tie_word_embeddings": True}, [], VOCAB + 4),
}


@pytest.mark.parametrize("decoded_bytes", [0, 1 << 30])
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adapter_beside_the_base_and_another_delta(
    variant: str, decoded_bytes: int, tmp_path: Path, make_rig: Callable[..., Rig], pack: Callable[..., Path]
) -> None:
    options, ends, vocab = VARIANTS[variant]
    folder = random_model(tmp_path / "base", "llama", attention_bias=True, **options)
    base = Checkpoint.open(folder)
    whole = {"model.norm.weight": base.read("model.norm.weight") * 1.5}
    if vocab != VOCAB:
        whole[EMBEDDING] = torch.cat([base.read(EMBEDDING), torch.randn(vocab - VOCAB, 64)])
    ranks = dict.fromkeys([*linears(base, *ALL_LINEARS), *ends], 4)
    made = make_adapter(tmp_path / "a", base, ranks, alphas={"lm_head": 6.0}, whole=whole, modules_to_save=["norm"])
    packed = pack_adapter(tmp_path / "packed", made, base)
    assert {"lowrank", "same", "dense"} <= {entry.codec for entry in DeltaReader.open(packed).manifest.tensors}
    rig = make_rig(folder, decoded_bytes=decoded_bytes, max_step_tokens=17)
    other = pack(folder, "int4")
    for name, delta in (("a@1", packed), ("t@1", other)):
        rig.load(name, delta, "decoded" if decoded_bytes else "resident")
    models = {"": merged_model(folder, None), "t@1": merged_model(folder, other), "a@1": oracle(folder, made)}
    asked = [(name, prompt) for prompt in PROMPTS for name in models]
    for i, (name, prompt) in enumerate(asked):
        rig.add(i, prompt, name, **ALL_LOGITS)
    rig.run()
    for i, (name, prompt) in enumerate(asked):
        assert_equals_oracle(rig, i, prompt, models[name])
