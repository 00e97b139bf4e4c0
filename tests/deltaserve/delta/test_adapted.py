"""Adapters read as fine-tunes, against the formula W + s·B·A."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deltaserve.delta.adapted import AdaptedCheckpoint, open_fine_tune
from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.classes import EMBEDDING, LM_HEAD
from deltaserve.delta.compatibility import check_compatible
from deltaserve.errors import DeltaServeError, FormatError, InvalidArgumentError, UnsupportedModelError
from tests.deltaserve.delta.adapters import ALL_LINEARS, PREFIX, Made, linears, make_adapter
from tests.deltaserve.delta.conftest import WriteModel, random_weights, tiny_config

UP = "model.layers.1.mlp.up_proj"
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def base(write_model: WriteModel) -> Checkpoint:
    config = tiny_config()
    return write_model("base", config, random_weights(config, 0))


@pytest.fixture
def untied(write_model: WriteModel) -> Checkpoint:
    config = tiny_config(tie_word_embeddings=False)
    return write_model("untied", config, random_weights(config, 0))


def opened(made: Made, base: Checkpoint) -> AdaptedCheckpoint:
    adapted = open_fine_tune(made.folder, base)
    assert isinstance(adapted, AdaptedCheckpoint)
    check_compatible(base.config, base.tensors, adapted.config, adapted.tensors)
    adapted.check_contents()
    return adapted


def check(made: Made, base: Checkpoint) -> dict[str, str]:
    """Holds an adapter to its oracle, both as it is read and as it is packed; returns the codecs."""
    adapted = opened(made, base)
    assert set(adapted.tensors) == set(made.tuned)
    codecs = {}
    for name, expected in made.tuned.items():
        packed = adapted.packed(name)
        weights = None if packed.entry.base is None else base.read(packed.entry.base)
        torch.testing.assert_close(adapted.read(name).float(), expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(packed.merged(weights), expected, atol=1e-6, rtol=1e-6)
        assert tuple(packed.entry.shape) == tuple(adapted.tensors[name].shape) == tuple(expected.shape)
        assert packed.entry.dtype == adapted.tensors[name].dtype
        codecs[name] = packed.entry.codec
    return codecs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("infix", ["", ".default"])
def test_all_linears(tmp_path: Path, base: Checkpoint, dtype: torch.dtype, infix: str) -> None:
    modules = linears(base, *ALL_LINEARS)
    assert len(modules) == 14
    made = make_adapter(tmp_path / "a", base, dict.fromkeys(modules, 4), dtype=dtype, infix=infix)
    codecs = check(made, base)
    assert {codecs[f"{module}.weight"] for module in modules} == {"lowrank"}
    assert {codec for name, codec in codecs.items() if name.removesuffix(".weight") not in modules} == {"same"}


@pytest.mark.parametrize(
    ("alpha", "rslora", "stored"), [(16, False, torch.bfloat16), (5, False, torch.float32), (16, True, torch.float32)]
)
def test_factors_keep_their_dtype_when_scaling_is_exact(
    tmp_path: Path, base: Checkpoint, alpha: float, rslora: bool, stored: torch.dtype
) -> None:
    made = make_adapter(tmp_path / "a", base, {UP: 8}, alphas={UP: alpha}, use_rslora=rslora)
    check(made, base)
    planes = opened(made, base).packed(f"{UP}.weight").planes
    assert {plane.dtype for plane in planes.values()} == {stored}
    own = load_file(made.folder / "adapter_model.safetensors")[f"{PREFIX}{UP}.lora_A.weight"]
    assert torch.equal(planes["right"].float(), own.float())


def test_scaling_that_would_overflow_is_stored_wide(tmp_path: Path, base: Checkpoint) -> None:
    made = make_adapter(tmp_path / "a", base, {UP: 2}, dtype=torch.float16, alphas={UP: 2.0**21})
    assert opened(made, base).packed(f"{UP}.weight").planes["left"].dtype == torch.float32
    tensors = load_file(made.folder / "adapter_model.safetensors")
    b, a = (tensors[f"{PREFIX}{UP}.lora_{letter}.weight"].float() for letter in "BA")
    expected = base.read(f"{UP}.weight").float() + 2.0**20 * (b @ a)
    torch.testing.assert_close(opened(made, base).read(f"{UP}.weight"), expected)


def test_ranks_and_alphas_by_pattern(tmp_path: Path, base: Checkpoint) -> None:
    ranks = {module: 2 if "layers.0" in module else 6 for module in linears(base, *ALL_LINEARS)}
    alphas = {module: 3.0 for module in ranks if module.endswith("down_proj")}
    made = make_adapter(tmp_path / "a", base, ranks, alphas=alphas)
    made.change(r=6, rank_pattern={r"^model\.layers\.0\..*": 2}, alpha_pattern={"mlp.down_proj": 3})
    check(made, base)
    made.change(
        rank_pattern={"layers.0.(self_attn|mlp).(q|k|v|o|gate|up|down)_proj": 2}, alpha_pattern={"down_proj": 3}
    )
    check(made, base)


def test_the_first_pattern_counts_and_a_name_matches_only_after_a_dot(tmp_path: Path, base: Checkpoint) -> None:
    made = make_adapter(tmp_path / "a", base, {UP: 4}, alphas={UP: 8.0})
    made.change(alpha_pattern={"p_proj": 99, "up_proj": 8, "mlp.up_proj": 98})
    check(made, base)


def test_embedding_and_head_of_an_untied_base(tmp_path: Path, untied: Checkpoint) -> None:
    codecs = check(make_adapter(tmp_path / "a", untied, {"model.embed_tokens": 3, "lm_head": 5, Q: 2}), untied)
    assert codecs[EMBEDDING] == codecs[LM_HEAD] == "lowrank"


@pytest.mark.parametrize("modules", [["model.embed_tokens"], ["lm_head"], ["model.embed_tokens", "lm_head"]])
def test_either_end_of_a_tied_base_unties_it(tmp_path: Path, base: Checkpoint, modules: list[str]) -> None:
    made = make_adapter(tmp_path / "a", base, dict.fromkeys(modules, 3))
    codecs = check(made, base)
    assert {codecs[f"{module}.weight"] for module in modules} == {"lowrank"}
    adapted = opened(made, base)
    assert not adapted.tied
    assert adapted.config["tie_word_embeddings"] is False
    assert adapted.packed(LM_HEAD).entry.base == EMBEDDING


def test_modules_saved_whole_are_exact(tmp_path: Path, untied: Checkpoint) -> None:
    norm, head = untied.read("model.norm.weight") + 1, untied.read(LM_HEAD).clone()
    head[3] = 0.5
    whole = {
        f"{UP}.modules_to_save.default.weight": 2 * untied.read(f"{UP}.weight"),
        "model.norm.weight": norm, "lm_head.modules_to_save.weight": head, f"{Q}.weight": untied.read(f"{Q}.weight"),
    }  # fmt: skip
    made = make_adapter(tmp_path / "a", untied, {}, whole=whole, modules_to_save=["lm_head", "norm", "up_proj"])
    made.tuned.update({f"{UP}.weight": made.tuned.pop(f"{UP}.modules_to_save.default.weight")})
    made.tuned.update({LM_HEAD: made.tuned.pop("lm_head.modules_to_save.weight")})
    codecs = check(made, untied)
    changed = {f"{UP}.weight": "dense", "model.norm.weight": "dense", LM_HEAD: "sparse_exact", f"{Q}.weight": "same"}
    assert {name: codecs[name] for name in changed} == changed


def test_a_saved_base_layer_is_the_base_s_or_replaces_it(tmp_path: Path, untied: Checkpoint) -> None:
    key, module = "model.embed_tokens.base_layer.weight", "model.embed_tokens"
    made = make_adapter(tmp_path / "a", untied, {module: 3}, whole={key: untied.read(EMBEDDING)})
    del made.tuned[key]
    assert check(made, untied)[EMBEDDING] == "lowrank"
    other = untied.read(EMBEDDING) + 1
    made = make_adapter(tmp_path / "b", untied, {module: 3}, whole={key: other})
    tensors = load_file(made.folder / "adapter_model.safetensors")
    a, b = (tensors[f"{PREFIX}{module}.lora_embedding_{letter}"].float() for letter in "AB")
    expected = (other.float() + 16 / 3 * (b @ a).T).to(torch.bfloat16)  # of its dtype: such a tensor is stored whole
    packed = opened(made, untied).packed(EMBEDDING)
    assert torch.equal(packed.merged(untied.read(EMBEDDING)), expected.float())


def test_a_resized_vocabulary_of_a_tied_base_stays_tied(tmp_path: Path, base: Checkpoint) -> None:
    larger = torch.cat([base.read(EMBEDDING), torch.randn(3, 36).bfloat16()])
    made = make_adapter(tmp_path / "a", base, {UP: 2}, whole={EMBEDDING: larger, LM_HEAD: larger.clone()})
    del made.tuned[LM_HEAD]
    assert check(made, base)[EMBEDDING] == "sparse_exact"
    adapted = opened(made, base)
    assert adapted.tied
    assert adapted.config["vocab_size"] == 53
    made = make_adapter(tmp_path / "b", base, {UP: 2}, whole={EMBEDDING: larger, LM_HEAD: larger + 1})
    with pytest.raises(InvalidArgumentError, match="differ, and the base ties them"):
        opened(made, base)


@pytest.mark.parametrize("head", [True, False])
def test_a_trained_embedding_of_a_tied_base_is_peft_s(tmp_path: Path, base: Checkpoint, head: bool) -> None:
    trained = base.read(EMBEDDING) + 0.5
    whole = {EMBEDDING: trained} | ({LM_HEAD: base.read(EMBEDDING) - 0.5} if head else {})
    saved = ["embed_tokens", *(["lm_head"] if head else [])]
    made = make_adapter(tmp_path / "a", base, {UP: 2}, whole=whole, modules_to_save=saved)
    made.tuned.setdefault(LM_HEAD, base.read(EMBEDDING).float())
    codecs = check(made, base)
    assert codecs[LM_HEAD] == ("dense" if head else "same")
    if not head:
        made.change(ensure_weight_tying=True)
        assert opened(made, base).tied


def test_side_files_are_the_adapter_s_and_the_configs_the_base_s(tmp_path: Path, base: Checkpoint) -> None:
    made = make_adapter(tmp_path / "a", base, {UP: 2})
    assert set(opened(made, base).side_files()) == {"config.json"}
    (made.folder / "chat_template.jinja").write_text("{{ messages }}")
    (made.folder / "config.json").write_text("{}")  # some trainers leave the base's there
    files = opened(made, base).side_files()
    assert files["chat_template.jinja"].parent == made.folder
    assert files["config.json"].parent == base.folder


REFUSED: list[tuple[dict[str, Any], type[DeltaServeError], str]] = [
    ({"peft_type": "IA3"}, UnsupportedModelError, "'IA3'.*merge_and_unload"),
    ({"peft_type": None}, UnsupportedModelError, "peft_type is 'None'"),
    ({"use_dora": True}, UnsupportedModelError, "use_dora"),
    ({"fan_in_fan_out": True}, UnsupportedModelError, "fan_in_fan_out"),
    ({"megatron_config": {"a": 1}}, UnsupportedModelError, "megatron_config"),
    ({"trainable_token_indices": [1]}, UnsupportedModelError, "trainable_token_indices"),
    ({"layer_replication": [[0, 1]]}, UnsupportedModelError, "layer_replication"),
    ({"init_lora_weights": "pissa_niter_4"}, UnsupportedModelError, "path_initial_model_for_weight_conversion"),
    ({"init_lora_weights": "olora"}, UnsupportedModelError, "init_lora_weights"),
    ({"init_lora_weights": 1}, UnsupportedModelError, "init_lora_weights"),
    ({"use_rslora": "no"}, FormatError, "use_rslora is 'no'"),
    ({"ensure_weight_tying": 1}, FormatError, "ensure_weight_tying is '1'"),
    ({"r": 0}, FormatError, "r has 0"),
    ({"r": True}, FormatError, "r has True"),
    ({"lora_alpha": None}, FormatError, "lora_alpha has None"),
    ({"lora_alpha": float("inf")}, FormatError, "lora_alpha has inf"),
    ({"rank_pattern": {UP: "4"}}, FormatError, "rank_pattern has 4"),
    ({"rank_pattern": {}, "r": 4}, InvalidArgumentError, "rank 4 .* call for"),
    ({"rank_pattern": [1]}, FormatError, "rank_pattern is"),
    ({"rank_pattern": {"(a+)+$": 2}}, FormatError, "Write the modules out by name"),
    ({"rank_pattern": {"(u|u)(u|u)(p|p)(p|p)": 2}}, FormatError, "Write the modules out by name"),
    ({"alpha_pattern": {f".*{i}": 2 for i in range(17)}}, FormatError, "Write the modules out by name"),
    ({"bias": "some"}, FormatError, "bias is 'some'"),
    ({"modules_to_save": "lm_head"}, FormatError, "modules_to_save is lm_head"),
]


@pytest.mark.parametrize(("settings", "kind", "message"), REFUSED)
def test_configs_that_are_refused(
    tmp_path: Path, base: Checkpoint, settings: dict[str, Any], kind: type[DeltaServeError], message: str
) -> None:
    made = make_adapter(tmp_path / "a", base, {UP: 3, Q: 3})
    made.change(**settings)
    with pytest.raises(kind, match=message):
        opened(made, base)


def renamed(tensors: dict[str, torch.Tensor], old: str, new: str) -> None:
    tensors[PREFIX + new] = tensors.pop(PREFIX + old)


TENSORS: dict[str, tuple[Any, str]] = {
    "A without B": (lambda t: t.pop(f"{PREFIX}{UP}.lora_B.weight"), "lora_A and no lora_B"),
    "B without A": (lambda t: t.pop(f"{PREFIX}{UP}.lora_A.weight"), "lora_B and no lora_A"),
    "shape of A": (lambda t: t.update({f"{PREFIX}{UP}.lora_A.weight": torch.zeros(3, 35)}), r"\[3, 35\].*\[3, 36\]"),
    "shape of B": (lambda t: t.update({f"{PREFIX}{UP}.lora_B.weight": torch.zeros(9, 3)}), r"\[9, 3\].*\[44, 3\]"),
    "rank": (lambda t: t.update({f"{PREFIX}{UP}.lora_A.weight": torch.zeros(4, 36)}), r"rank 3 .*\[3, 36\]"),
    "convolution": (lambda t: t.update({f"{PREFIX}{UP}.lora_A.weight": torch.zeros(3, 36, 1, 1)}), r"\[3, 36, 1, 1\]"),
    "integers": (lambda t: t.update({f"{PREFIX}{UP}.lora_A.weight": torch.zeros(3, 36).int()}), "I32.*BF16"),
    "float8": (
        lambda t: t.update({f"{PREFIX}{UP}.lora_A.weight": torch.zeros(3, 36).to(torch.float8_e4m3fn)}), "F8_E4M3",
    ),
    "layer": (
        lambda t: [renamed(t, f"{UP}.lora_{x}.weight", f"model.layers.7.mlp.up_proj.lora_{x}.weight") for x in "AB"],
        "layers.7.mlp.*0 to 1",
    ),
    "module": (
        lambda t: [renamed(t, f"{UP}.lora_{x}.weight", f"model.layers.1.mlp.fc1.lora_{x}.weight") for x in "AB"],
        "fc1.* not in the base",
    ),
    "norm": (
        lambda t: [renamed(t, f"{UP}.lora_{x}.weight", f"model.norm.lora_{x}.weight") for x in "AB"], "a norm of the",
    ),
    "embedding by lora_A": (
        lambda t: [renamed(t, f"{UP}.lora_{x}.weight", f"model.embed_tokens.lora_{x}.weight") for x in "AB"],
        "expected lora_embedding_A",
    ),
    "dora": (lambda t: t.update({f"{PREFIX}{UP}.lora_magnitude_vector": torch.zeros(44)}), "DoRA"),
    "lora bias": (lambda t: t.update({f"{PREFIX}{UP}.lora_B.bias": torch.zeros(44)}), "no part of a LoRA"),
    "no prefix": (lambda t: t.update({f"{UP}.lora_A.weight": torch.zeros(3, 36)}), "no part of a LoRA"),
    "twice": (lambda t: t.update({f"{PREFIX}{UP}.lora_A.default.weight": torch.zeros(3, 36)}), "expected one of them"),
    "whole shape": (lambda t: t.update({f"{PREFIX}{Q}.weight": torch.zeros(3, 36)}), r"q_proj.*\[3, 36\]"),
    "base layer of no matrix": (
        lambda t: t.update({f"{PREFIX}{UP}.base_layer.weight": torch.zeros(3)}), "expected a matrix",
    ),
    "nan": (lambda t: t[f"{PREFIX}{UP}.lora_A.weight"].fill_(float("nan")), "NaN or infinite"),
    "infinity": (lambda t: t[f"{PREFIX}{UP}.lora_B.weight"][0].fill_(float("inf")), "3 of 132.*NaN or infinite"),
    "nothing": (lambda t: t.clear(), "no tensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_are_refused(tmp_path: Path, base: Checkpoint, case: str) -> None:
    change, message = TENSORS[case]
    made = make_adapter(tmp_path / "a", base, {UP: 3})
    path = made.folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises((InvalidArgumentError, UnsupportedModelError), match=message):
        opened(made, base)


def test_a_rank_above_what_the_shape_allows(tmp_path: Path, base: Checkpoint) -> None:
    made = make_adapter(tmp_path / "a", base, {"model.layers.0.self_attn.k_proj": 19})
    with pytest.raises(InvalidArgumentError, match="has rank 19; expected at most 18"):
        opened(made, base)


def test_trained_biases_are_refused_and_absent_ones_are_not(tmp_path: Path, write_model: WriteModel) -> None:
    config = tiny_config(attention_bias=True)
    base = write_model("b", config, random_weights(config, 0))
    check(make_adapter(tmp_path / "x", base, {Q: 2}, bias="lora_only"), base)
    bias = {f"{Q}.base_layer.bias": torch.zeros(36).bfloat16()}
    made = make_adapter(tmp_path / "y", base, {Q: 2}, whole=bias, bias="lora_only")
    with pytest.raises(UnsupportedModelError, match="bias is 'lora_only'"):
        opened(made, base)


def test_folders_that_are_no_adapter(tmp_path: Path, base: Checkpoint) -> None:
    made = make_adapter(tmp_path / "a", base, {UP: 2})
    weights, config = made.folder / "adapter_model.safetensors", made.folder / "adapter_config.json"
    (made.folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(InvalidArgumentError, match="expected one of them"):
        open_fine_tune(made.folder, base)
    (made.folder / "model.safetensors").unlink()
    weights.rename(made.folder / "adapter_model.bin")
    with pytest.raises(InvalidArgumentError, match=r"adapter_model\.bin.*safetensors"):
        open_fine_tune(made.folder, base)
    (made.folder / "adapter_model.bin").rename(weights)
    config.write_text(json.dumps([]))
    with pytest.raises(FormatError, match="list; expected an object"):
        open_fine_tune(made.folder, base)
    config.unlink()
    with pytest.raises(InvalidArgumentError, match=r"without its adapter_config\.json"):
        open_fine_tune(made.folder, base)
