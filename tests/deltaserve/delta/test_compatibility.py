"""Which fine-tunes and deltas belong to a base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import transformers

from deltaserve.delta.architectures import expected_shapes
from deltaserve.delta.compatibility import base_tensor_of, check_compatible, check_complete
from deltaserve.delta.maths import maths_of
from deltaserve.errors import BaseMismatchError, FormatError, InvalidArgumentError, UnsupportedModelError

from .conftest import tiny_config


@dataclass(frozen=True)
class Declared:
    dtype: str
    shape: tuple[int, ...]


def table(config: dict[str, Any], **changes: Any) -> dict[str, Declared]:
    return {name: Declared("BF16", shape) for name, shape in expected_shapes(config).items()} | changes


def check(
    tuned: dict[str, Any], tensors: dict[str, Declared] | None = None, base: dict[str, Any] | None = None
) -> None:
    base = base or tiny_config()
    check_compatible(base, table(base), tuned, table(tuned) if tensors is None else tensors)


TINY_KEYS = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_expected_shapes_are_those_of_transformers(family: str, tied: bool, bias: bool) -> None:
    keys = TINY_KEYS | {"tie_word_embeddings": tied}
    if family in ("Llama", "Qwen3"):
        keys |= {"attention_bias": bias, "head_dim": 12}
    if family == "Llama":
        keys |= {"mlp_bias": bias}
    model = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**keys))
    config = model.config.to_dict() | {"architectures": [f"{family}ForCausalLM"]}
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    if tied:
        shapes.pop("lm_head.weight")
    assert expected_shapes(config) == shapes


def test_equal_and_harmlessly_different_configs_are_compatible() -> None:
    check(tiny_config())
    check(
        tiny_config(torch_dtype="float16", dtype="float16", bos_token_id=7, transformers_version="9", use_cache=False)
    )
    check(tiny_config(rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}))
    check(tiny_config(attention_bias=False, mlp_bias=None))


@pytest.mark.parametrize("rows", [40, 50, 61])
def test_vocabularies_may_be_resized(rows: int) -> None:
    check(tiny_config(vocab_size=rows))


def test_an_untied_head_of_a_tied_base_is_a_delta_of_the_embedding() -> None:
    tuned = tiny_config(tie_word_embeddings=False)
    check(tuned)
    assert base_tensor_of("lm_head.weight", table(tiny_config())) == "model.embed_tokens.weight"
    assert base_tensor_of("lm_head.weight", table(tuned)) == "lm_head.weight"
    assert base_tensor_of("model.norm.weight", table(tuned)) == "model.norm.weight"


def test_a_stored_head_in_spite_of_tying_is_allowed() -> None:
    config = tiny_config()
    check(config, table(config) | {"lm_head.weight": Declared("BF16", (50, 36))})


def test_tying_what_the_base_does_not_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="untied"):
        check(tiny_config(), base=tiny_config(tie_word_embeddings=False))


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 40},
        {"num_hidden_layers": 3},
        {"num_key_value_heads": 4},
        {"head_dim": 8},
        {"hidden_act": "gelu"},
        {"rms_norm_eps": 1e-6},
        {"rope_theta": 500000.0},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"attention_bias": True},
        {"mlp_bias": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_maths_is_refused_with_both_values(change: dict[str, Any]) -> None:
    with pytest.raises(BaseMismatchError, match="in the fine-tune and") as caught:
        check(tiny_config(**change))
    assert caught.value.metadata["expected"] != caught.value.metadata["found"]


def test_another_architecture_is_refused() -> None:
    with pytest.raises(BaseMismatchError, match="MistralForCausalLM; the base is a LlamaForCausalLM"):
        check(tiny_config(architectures=["MistralForCausalLM"]))
    with pytest.raises(UnsupportedModelError, match="GemmaForCausalLM"):
        check(tiny_config(architectures=["GemmaForCausalLM"]), {})


QWEN = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}


def test_windows_are_compared_by_what_they_do() -> None:
    old = tiny_config(**QWEN, use_sliding_window=False, sliding_window=131072, max_window_layers=28)
    new = tiny_config(**QWEN, sliding_window=None, layer_types=["full_attention"] * 2)
    assert maths_of(old) == maths_of(new)
    windowed = tiny_config(**QWEN, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    assert maths_of(windowed)["sliding windows by layer"] == [None, 8]
    with pytest.raises(BaseMismatchError, match="sliding windows"):
        check(windowed, base=new)


def test_rope_is_compared_by_what_it_does() -> None:
    llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    old = tiny_config(rope_scaling={"type": "llama3", **llama3})
    new = tiny_config(rope_theta=None, rope_parameters={"rope_type": "llama3", "rope_theta": 10000, **llama3})
    assert maths_of(old) == maths_of(new)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"model.norm.weight": Declared("BF16", (35,))}, r"shape \[35\]; its config calls for \[36\]"),
        ({"model.norm.weight": Declared("I8", (36,))}, "dtype 'I8'"),
        ({"extra.weight": Declared("BF16", (36,))}, r"unexpected 1 \['extra.weight'\]"),
    ],
)
def test_wrong_tensors_are_named(changes: dict[str, Declared], word: str) -> None:
    with pytest.raises(InvalidArgumentError, match=word):
        check(tiny_config(), table(tiny_config()) | changes)


def test_missing_tensors_are_named() -> None:
    tensors = table(tiny_config())
    del tensors["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(InvalidArgumentError, match=r"missing 1 \['model.layers.1.mlp.up_proj.weight'\]"):
        check(tiny_config(), tensors)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": None},
        {"vocab_size": -1},
        {"num_hidden_layers": 1 << 20},
        {"num_hidden_layers": "2"},
        {"architectures": "LlamaForCausalLM"},
        {"architectures": []},
    ],
    ids=str,
)
def test_malformed_configs_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match=r"config\.json"):
        check_complete(tiny_config(**change), {}, "fine-tune")


@pytest.mark.parametrize(
    "change", [{"rope_scaling": 1}, {"rope_theta": "x"}, {"rope_theta": 10**400}], ids=lambda c: str(c)[:40]
)
def test_malformed_rope_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="rope"):
        check(tiny_config(**change))


def test_layers_are_counted_before_anything_is_made_for_each() -> None:
    with pytest.raises(FormatError, match="num_hidden_layers"):
        check(tiny_config(num_hidden_layers=10**12))
