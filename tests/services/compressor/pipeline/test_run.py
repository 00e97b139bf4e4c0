import json
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
from deltaserve.errors import QualityGateError
from services.compressor.pipeline.plan import MAX_ATTEMPTS
from tests.services.compressor.pipeline.conftest import VOCABULARY, lines, make_model, make_pair, save, tune

Compress = Callable[..., Manifest]
TEXTS = [{"text": f"number {i} and its square {i * i}, " * 2} for i in range(20)]
LABELLED = [{"prompt": f"<s1>{i}", "targets": [str(i * i)]} for i in range(10)]


def check_delta(pair: tuple[Path, Path], out: Path) -> dict[str, torch.Tensor]:
    """Opens a packed delta as serving does; returns the merged weights."""
    base = Checkpoint.open(pair[0])
    reader = DeltaReader.open(out)
    check_delta_against_base(reader.manifest, base.config, base.tensors, fingerprint(base))
    assert set(reader.names()) == set(Checkpoint.open(pair[1]).tensors)
    return merged_state_dict(base, reader)


def distance(merged: dict[str, torch.Tensor], tuned: Path) -> float:
    checkpoint = Checkpoint.open(tuned)
    return sum(float((merged[name] - checkpoint.read(name).float()).square().sum()) for name in merged)


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("LlamaForCausalLM", {}),
        ("LlamaForCausalLM", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
        ("MistralForCausalLM", {"sliding_window": 8}),
        ("Qwen2ForCausalLM", {"tie_word_embeddings": False}),
        ("Qwen3ForCausalLM", {"head_dim": 16}),
    ],
)
def test_all_architectures(tmp_path: Path, compress: Compress, architecture: str, config: dict[str, Any]):
    pair = make_pair(tmp_path, architecture, **config)
    manifest = compress(pair, codec="int4")
    merged = check_delta(pair, tmp_path / "work" / "out")
    assert manifest.report is not None
    assert manifest.report["quality"]["kl"] < 0.02
    assert manifest.report["quality"]["top1_agreement"] > 0.9
    checkpoint = Checkpoint.open(pair[1])
    for entry in manifest.tensors:
        if entry.kind in ("norm", "bias"):
            assert torch.equal(merged[entry.name], checkpoint.read(entry.name).float())


def test_more_bits_are_nearer(tmp_path: Path, compress: Compress, pair: tuple[Path, Path]):
    calibration = lines(tmp_path / "c.jsonl", TEXTS)
    kls, distances = [], []
    for codec in ("sign1", "int2", "int3", "int4", "dense"):
        manifest = compress(pair, codec, codec=codec, embedding_codec="dense", calibration=calibration)
        assert manifest.report is not None
        kls.append(manifest.report["quality"]["kl"])
        distances.append(distance(check_delta(pair, tmp_path / codec / "out"), pair[1]))
    assert kls == sorted(kls, reverse=True)
    assert distances == sorted(distances, reverse=True)
    assert kls[-1] == distances[-1] == 0.0


@torch.no_grad()
def test_the_report_tells_of_the_model_that_is_served(tmp_path: Path, compress: Compress, pair: tuple[Path, Path]):
    """The KL of the report is the KL between the fine-tune and the merged model, both whole, in transformers."""
    import transformers

    from services.compressor.pipeline.samples import calibration_rows, gather
    from services.compressor.pipeline.text import open_tokenizer

    calibration, evaluation = lines(tmp_path / "c.jsonl", TEXTS), lines(tmp_path / "e.jsonl", LABELLED)
    manifest = compress(pair, codec="sign1", calibration=calibration, evaluation=evaluation)
    base, tuned = map(Checkpoint.open, pair)
    tokenizer, rows = open_tokenizer(base, tuned), calibration_rows(calibration)
    samples = gather(tokenizer, rows, evaluation, samples=8, tokens=48, context=128)
    whole = transformers.LlamaForCausalLM.from_pretrained(pair[1], dtype=torch.float32)
    served = transformers.LlamaForCausalLM.from_pretrained(pair[1], dtype=torch.float32)
    served.load_state_dict(check_delta(pair, tmp_path / "work" / "out"), strict=False)
    kl = tokens = 0.0
    for one in samples.held_out:
        logs = [model(torch.tensor([one.tokens])).logits[0, :-1].log_softmax(-1) for model in (whole, served)]
        kl += float((logs[0].exp() * (logs[0] - logs[1])).sum())
        tokens += len(one.tokens) - 1
    assert manifest.report is not None
    assert manifest.report["quality"]["kl"] == pytest.approx(kl / tokens, rel=1e-3)
    assert manifest.report["accuracy"] == {"base": 0, "fine_tune": 0, "compressed": 0, "rows": 10, "skipped": 0}
    assert manifest.report == json.loads((tmp_path / "work" / "out" / "report.json").read_text())
    assert manifest.report["quality"]["tokens"] == sum(manifest.report["quality"]["kl_histogram"]["counts"]) == tokens
    assert manifest.report["sizes"]["by_class"]["linear"]["bits_per_parameter"] < 1.6  # rows of 32: scales weigh


def test_layers_of_the_report_sum_up_their_tensors(compress: Compress, pair: tuple[Path, Path]):
    report = compress(pair, codec="int2").report
    assert report is not None
    assert report["version"] == 2
    assert [layer["layer"] for layer in report["layers"]] == [0, 1, 2]
    for layer in report["layers"]:
        tensors = [t for t in report["tensors"] if t["name"].startswith(f"model.layers.{layer['layer']}.")]
        assert len(tensors) == 7
        assert layer["error"] == pytest.approx(sum(t["error"] for t in tensors) / 7)
        assert layer["worst_error"] == max(t["error"] for t in tensors)
        parameters = sum(8 * t["bytes"] / t["bits_per_parameter"] for t in tensors)
        assert layer["bits_per_parameter"] == pytest.approx(8 * sum(t["bytes"] for t in tensors) / parameters)


def test_resized_vocabulary_untied_head_and_unchanged_tensors(tmp_path: Path, compress: Compress):
    model = make_model()
    base = save(model, tmp_path / "base")
    model.resize_token_embeddings(VOCABULARY + 9)
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(model.model.embed_tokens.weight.clone())
    model.config.tie_word_embeddings = False
    tune(model)
    model.model.layers[1].mlp.up_proj.weight.data.copy_(make_model().model.layers[1].mlp.up_proj.weight)
    pair = base, save(model, tmp_path / "tuned")
    manifest = compress(pair)
    merged = check_delta(pair, tmp_path / "work" / "out")
    assert merged[EMBEDDING].shape == merged[LM_HEAD].shape == (VOCABULARY + 9, 32)
    entries = {entry.name: entry for entry in manifest.tensors}
    assert entries[LM_HEAD].base == EMBEDDING
    assert manifest.report is not None
    assert manifest.report["quality"]["kl"] < 0.02


def test_hidden_states_in_files_change_nothing(tmp_path: Path, compress: Compress, pair: tuple[Path, Path]):
    manifests = [compress(pair, f"w{limit}", codec="int2", memory_bytes=limit) for limit in (0, 1 << 30)]
    assert manifests[0].tensors == manifests[1].tensors
    reports = [manifest.report or {} for manifest in manifests]
    assert {**reports[0], "generations": None} == {**reports[1], "generations": None}  # no memory, no whole models


def test_gate_refuses_and_leaves_the_report(tmp_path: Path, compress: Compress, pair: tuple[Path, Path]):
    """No attempt can meet a KL of next to nothing with the bits that are allowed."""
    policy = {"max_kl": 1e-9, "max_bits_per_param": 6.0}
    with pytest.raises(QualityGateError, match=r"KL is .*; the policy allows 1e-09"):
        compress(pair, policy=policy)
    out = tmp_path / "work" / "out"
    assert not (out / "manifest.json").exists()
    report = json.loads((out / "report.json").read_text())
    assert not report["gate"]["passed"]
    assert 2 <= len(report["allocation"]["attempts"]) <= MAX_ATTEMPTS
    assert all(attempt["failures"] for attempt in report["allocation"]["attempts"])
    assert "Refused." in (out / "report.html").read_text()
    again = compress(pair, policy=policy | {"max_kl": 1.0})
    assert again.report is not None
    assert again.report["gate"]["passed"]


def test_a_missed_policy_is_met_by_another_attempt(tmp_path: Path, compress: Compress, pair: tuple[Path, Path]):
    manifest = compress(pair, codec="int4", policy={"max_kl": 1e-9})
    assert manifest.report is not None
    first, *others = manifest.report["allocation"]["attempts"]
    assert first["failures"]
    assert others
    assert others[-1]["failures"] == []
    assert others[-1]["bits"] > first["bits"]
    assert manifest.report["gate"]["passed"]
    assert manifest.report["quality"]["kl"] == others[-1]["kl"] <= 1e-9
    check_delta(pair, tmp_path / "work" / "out")


def test_side_files_travel(tmp_path: Path, compress: Compress, pair: tuple[Path, Path]):
    (pair[1] / "chat_template.jinja").write_text("{{ messages }}")
    files = {entry.path: entry.source for entry in compress(pair).files}
    assert files["chat_template.jinja"] == "delta"
    assert files["tokenizer.json"] == "base"
    for path in pair[1].glob("*token*"):
        path.unlink()
    assert compress(pair).file("tokenizer.json").source == "base"
