"""Adapters read as fine-tunes, against the formula W + s·B·A."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deltaserve.delta.adapted import AdaptedCheckpoint, open_fine_tune
from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.classes import EMBEDDING, LM_HEAD
from deltaserve.delta.compatibility import check_compatible
from deltaserve.errors import InvalidArgumentError
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
