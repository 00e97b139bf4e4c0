"""Merged weights: what serving base + delta must equal, loadable by transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.coding import code_delta, code_dense
from deltaserve.delta.fingerprint import fingerprint
from deltaserve.delta.merge import merged_state_dict
from deltaserve.delta.packed import fit_rows
from deltaserve.delta.reader import check_delta_against_base
from deltaserve.errors import InvalidArgumentError

from .conftest import WriteModel, random_weights, tiny_config
from .packing_up import write_delta


def test_dense_is_the_fine_tune(pair: tuple[Checkpoint, Checkpoint], tmp_path: Path) -> None:
    reader = write_delta(*pair, tmp_path, "dense", "dense")
    merged = merged_state_dict(pair[0], reader, torch.bfloat16)
    assert all(torch.equal(merged[name], pair[1].read(name)) for name in pair[1].tensors)


@pytest.mark.parametrize(("codec", "most"), [("sign1", 0.65), ("int2", 0.15), ("int3", 0.04), ("int4", 0.012)])
def test_merged_weights_come_near_the_fine_tune(
    pair: tuple[Checkpoint, Checkpoint], tmp_path: Path, codec: str, most: float
) -> None:
    base, tuned = pair
    merged = merged_state_dict(base, write_delta(base, tuned, tmp_path, codec))
    name = "model.layers.1.mlp.down_proj.weight"
    delta = tuned.read(name).float() - base.read(name).float()
    error = merged[name] - tuned.read(name).float()
    assert 0 < float(error.square().sum() / delta.square().sum()) < most


@pytest.mark.parametrize("rows", [40, 61])
@pytest.mark.parametrize("embedding_codec", ["int4", "dense"])
def test_resized_vocabularies_merge(write_model: WriteModel, tmp_path: Path, rows: int, embedding_codec: str) -> None:
    config = tiny_config(vocab_size=rows)
    base = write_model("base", tiny_config(), random_weights(tiny_config(), 0))
    tuned = write_model("tuned", config, random_weights(config, 0))
    reader = write_delta(base, tuned, tmp_path, "int4", embedding_codec)
    check_delta_against_base(reader.manifest, base.config, base.tensors, fingerprint(base))
    merged = merged_state_dict(base, reader)["model.embed_tokens.weight"]
    assert merged.shape == (rows, 36)
    assert torch.allclose(merged, tuned.read("model.embed_tokens.weight").float(), atol=0.03)


def test_untied_head_of_a_tied_base_merges_and_loads(write_model: WriteModel, tmp_path: Path) -> None:
    config = tiny_config(tie_word_embeddings=False)
    base = write_model("base", tiny_config(), random_weights(tiny_config(), 0))
    tuned = write_model("tuned", config, random_weights(config, 1))
    reader = write_delta(base, tuned, tmp_path, "int4")
    assert reader.entry("lm_head.weight").base == "model.embed_tokens.weight"
    check_delta_against_base(reader.manifest, base.config, base.tensors, fingerprint(base))
    keys = {key: value for key, value in config.items() if key not in ("architectures", "model_type")}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**keys))
    model.load_state_dict(merged_state_dict(base, reader))


def test_fit_rows_pads_with_zeros_and_cuts() -> None:
    base = torch.arange(6.0).view(3, 2)
    assert torch.equal(fit_rows(base, 2), base[:2])
    assert torch.equal(fit_rows(base, 5), torch.cat([base, torch.zeros(2, 2)]))


def test_packed_tensors_know_delta_and_merged() -> None:
    base, tuned = torch.randn(4, 16), torch.randn(5, 16)
    whole = code_dense("lm_head.weight", tuned)
    assert torch.equal(whole.merged(None), tuned)
    assert torch.equal(whole.delta(base), tuned - fit_rows(base, 5))
    coded = code_delta("lm_head.weight", tuned, torch.float32, "int4", base="lm_head.weight")
    assert torch.equal(coded.delta(None), coded.decode())
    assert torch.equal(coded.merged(base), fit_rows(base, 5) + coded.decode())
    with pytest.raises(ValueError, match="without its base"):
        whole.delta(None)
    with pytest.raises(ValueError, match="without its base"):
        coded.merged(None)


def test_non_finite_tensors_are_not_coded() -> None:
    bad = torch.full((4, 16), float("nan"))
    with pytest.raises(InvalidArgumentError, match="NaN"):
        code_delta("lm_head.weight", bad, torch.float32, "int4", base="lm_head.weight")
    with pytest.raises(InvalidArgumentError, match="NaN"):
        code_dense("lm_head.weight", bad)
