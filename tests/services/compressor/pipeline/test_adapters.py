"""LoRA adapters through the whole pipeline, against transformers with W + s·B·A, and against PEFT itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.classes import EMBEDDING, LM_HEAD
from deltaserve.delta.compatibility import check_delta_against_base
from deltaserve.delta.fingerprint import fingerprint
from deltaserve.delta.manifest import Manifest
from deltaserve.delta.merge import merged_state_dict
from deltaserve.delta.reader import DeltaReader
from deltaserve.errors import InvalidArgumentError
from tests.deltaserve.delta.adapters import ALL_LINEARS, linears, make_adapter
from tests.services.compressor.pipeline.conftest import VOCABULARY, lines, make_model, save, save_tokenizer

Compress = Callable[..., Manifest]
LABELLED = [{"prompt": f"<s1>{i}", "targets": [str(i * i)]} for i in range(10)]
TOKENS = torch.randint(0, 264, (3, 20), generator=torch.Generator().manual_seed(0))


def served(base: Path, out: Path, **config: Any) -> Any:
    """Returns transformers' model with the base and the packed delta merged, float32."""
    opened, reader = Checkpoint.open(base), DeltaReader.open(out)
    check_delta_against_base(reader.manifest, opened.config, opened.tensors, fingerprint(opened))
    return loaded(reader.manifest.config, merged_state_dict(opened, reader))


def loaded(config: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Returns transformers' model of these weights, float32."""
    import transformers

    model_class = getattr(transformers, config["architectures"][0])
    model = model_class(model_class.config_class(**{**config, "dtype": "float32"})).float().eval()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert set(missing) <= ({LM_HEAD} if config["tie_word_embeddings"] else set())
    model.tie_weights()
    return model


@torch.no_grad()
def assert_same_logits(one: Any, other: Any) -> None:
    expected = other(TOKENS).logits
    torch.testing.assert_close(one(TOKENS).logits, expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.1


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("LlamaForCausalLM", {}),
        ("LlamaForCausalLM", {"tie_word_embeddings": False}),
        ("Qwen2ForCausalLM", {"tie_word_embeddings": False}),
        ("Qwen3ForCausalLM", {"head_dim": 16}),
    ],
)
def test_what_is_served_is_the_base_with_the_adapter_merged(
    tmp_path: Path, compress: Compress, architecture: str, config: dict[str, Any]
) -> None:
    folder = save(make_model(architecture, **config), tmp_path / "base")
    base = Checkpoint.open(folder)
    ends = [] if base.tied else ["model.embed_tokens", "lm_head"]
    ranks = dict.fromkeys([*linears(base, *ALL_LINEARS), *ends], 4)
    norm = {"model.norm.weight": base.read("model.norm.weight") * 2}
    alphas = dict.fromkeys(ranks, 12.0)
    made = make_adapter(tmp_path / "a", base, ranks, alphas=alphas, whole=norm, modules_to_save=["norm"])
    evaluation = lines(tmp_path / "e.jsonl", LABELLED)
    manifest = compress((folder, made.folder), evaluation=evaluation)
    assert_same_logits(served(folder, tmp_path / "work" / "out"), loaded(base.config, made.tuned))
    report = manifest.report
    assert report is not None
    assert report["quality"]["kl"] < 1e-7
    assert report["quality"]["top1_agreement"] == 1.0
    assert report["quality"]["perplexity"]["base"] != report["quality"]["perplexity"]["fine_tune"]
    assert report["accuracy"]["rows"] == 10
    codecs = {entry.name: entry.codec for entry in manifest.tensors}
    assert {codecs.pop(f"{module}.weight") for module in ranks} == {"lowrank"}
    assert codecs.pop("model.norm.weight") == "dense"
    assert set(codecs.values()) == {"same"}
    assert manifest.sizes.checkpoint_bytes == sum(header.bytes for header in base.tensors.values())
    assert manifest.compression["adapter"]["lora_alpha"] == 16
    assert all(tensor["error"] < 1e-9 for tensor in report["tensors"])


def test_a_lora_of_a_tied_embedding_serves_an_untied_head(tmp_path: Path, compress: Compress) -> None:
    folder = save(make_model(), tmp_path / "base")
    base = Checkpoint.open(folder)
    made = make_adapter(tmp_path / "a", base, {"model.embed_tokens": 8})
    manifest = compress((folder, made.folder))
    config = {**base.config, "tie_word_embeddings": False}
    assert_same_logits(served(folder, tmp_path / "work" / "out"), loaded(config, made.tuned))
    entries = {entry.name: entry for entry in manifest.tensors}
    assert (entries[LM_HEAD].codec, entries[LM_HEAD].base) == ("same", EMBEDDING)


def test_tokenizer_and_template_are_the_adapter_s_if_it_brings_them(tmp_path: Path, compress: Compress) -> None:
    folder = save(make_model(), tmp_path / "base")
    made = make_adapter(tmp_path / "a", Checkpoint.open(folder), {"model.layers.0.mlp.up_proj": 2})
    files = {entry.path: entry.source for entry in compress((folder, made.folder)).files}
    assert files["tokenizer.json"] == files["config.json"] == "base"
    save_tokenizer(made.folder)
    (made.folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    files = {entry.path: entry.source for entry in compress((folder, made.folder)).files}
    assert (files["chat_template.jinja"], files["tokenizer.json"], files["config.json"]) == ("delta", "base", "base")
    assert "adapter_config.json" not in files


def test_another_adapter_or_scaling_in_the_same_work_folder_is_coded_anew(tmp_path: Path, compress: Compress) -> None:
    folder = save(make_model(), tmp_path / "base")
    made = make_adapter(tmp_path / "a", Checkpoint.open(folder), {"model.layers.0.mlp.up_proj": 2})
    first = compress((folder, made.folder))
    assert compress((folder, made.folder)).tensors == first.tensors
    made.change(lora_alpha=4)
    second = compress((folder, made.folder))
    assert second.tensors != first.tensors
    assert [t.sha256 for t in second.tensors if t.codec == "same"] == [
        t.sha256 for t in first.tensors if t.codec == "same"
    ]


def test_infinite_factors_are_refused(tmp_path: Path, compress: Compress) -> None:
    folder = save(make_model(), tmp_path / "base")
    made = make_adapter(
        tmp_path / "a", Checkpoint.open(folder), {"model.layers.0.mlp.up_proj": 2}, dtype=torch.float32, size=1e20
    )
    with pytest.raises(InvalidArgumentError, match=r"up_proj.*NaN or infinite"):
        compress((folder, made.folder))


PEFT_CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "patterns": (
        {},
        {"target_modules": "all-linear", "rank_pattern": {"up_proj": 6}, "alpha_pattern": {"layers.1.mlp.up_proj": 3}},
    ),
    "rslora, saved norm": (
        {"tie_word_embeddings": False},
        {"target_modules": ["q_proj", "v_proj"], "use_rslora": True, "modules_to_save": ["norm", "lm_head"]},
    ),
    "untied ends": (
        {"tie_word_embeddings": False},
        {"target_modules": ["embed_tokens", "lm_head", "down_proj"]},
    ),
    "tied embedding": ({}, {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied head": ({}, {"target_modules": ["lm_head", "q_proj"]}),
    "trained tied embedding": ({}, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "tied together": (
        {}, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("case", "dtype"), [*((case, torch.float32) for case in PEFT_CONFIGS), ("untied ends", torch.bfloat16)]
)
def test_adapters_that_peft_wrote_serve_what_peft_computes(
    tmp_path: Path, compress: Compress, case: str, dtype: torch.dtype
) -> None:
    import transformers

    model_config, lora = PEFT_CONFIGS[case]
    folder = save(make_model(**model_config), tmp_path / "base")
    tuned = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = train(tuned, tmp_path / "a", dtype, **lora)
    manifest = compress((folder, tmp_path / "a"))
    assert_same_logits(served(folder, tmp_path / "work" / "out"), model)
    assert manifest.report is not None
    assert manifest.report["quality"]["kl"] < 1e-7


def test_a_vocabulary_that_was_resized_before_training(tmp_path: Path, compress: Compress) -> None:
    import transformers

    folder = save(make_model(), tmp_path / "base")
    tuned = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tuned.resize_token_embeddings(VOCABULARY + 5)
    model = train(tuned, tmp_path / "a", torch.float32, target_modules=["q_proj"])
    manifest = compress((folder, tmp_path / "a"))
    assert manifest.config["vocab_size"] == VOCABULARY + 5
    assert_same_logits(served(folder, tmp_path / "work" / "out"), model)


def train(tuned: Any, folder: Path, dtype: torch.dtype, **lora: Any) -> Any:
    """Makes PEFT adapt a model, with random numbers for what it would have learnt, and save that in a dtype."""
    peft = pytest.importorskip("peft", reason="PEFT IS NOT INSTALLED: its own adapters are not compared with")
    from safetensors.torch import load_file, save_file

    model = peft.get_peft_model(tuned, peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **lora))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, parameter in sorted((n, p) for n, p in model.named_parameters() if p.requires_grad):
            noise = 0.1 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_((parameter + noise).to(dtype))
    model.eval().save_pretrained(folder)
    path = folder / "adapter_model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)
    return model
