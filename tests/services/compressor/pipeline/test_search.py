"""Presets, budgets and the search for the smallest size, through whole runs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.manifest import Manifest
from deltaserve.delta.merge import merged_state_dict
from deltaserve.delta.reader import DeltaReader
from deltaserve.errors import QualityGateError
from services.compressor.pipeline.plan import MAX_ATTEMPTS
from services.compressor.pipeline.spec import PRESET_BITS
from tests.services.compressor.pipeline.conftest import make_pair, make_spec
from tests.services.compressor.pipeline.test_resume import finish, result, start

Compress = Callable[..., Manifest]
Folders = tuple[Path, Path]
WIDE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
FREE = {"codec": None}  # conftest's default codec, not set


@pytest.fixture
def wide(tmp_path: Path) -> Folders:
    """A fine-tune of matrices that are large beside their headers."""
    return make_pair(tmp_path, **WIDE)


def bits(manifest: Manifest) -> float:
    return 8 * manifest.sizes.delta_bytes / manifest.sizes.parameters


def codecs(manifest: Manifest) -> set[str]:
    return {entry.codec for entry in manifest.tensors if entry.kind in ("linear", "embedding", "lm_head")}


@pytest.mark.parametrize("preset", ["balanced", "faithful"])
def test_a_preset_keeps_its_budget_and_uses_it(compress: Compress, wide: Folders, preset: str):
    manifest = compress(wide, **FREE, preset=preset)
    budget = PRESET_BITS[preset]  # type: ignore[index]
    assert 0.9 * budget < bits(manifest) <= budget
    allocation = (manifest.report or {})["allocation"]
    assert allocation["preset"] == preset
    assert allocation["budget_bits"] == budget
    assert len(allocation["attempts"]) == 1
    assert sum(allocation["choices"].values()) == 2 * 7 + 1
    assert allocation["predicted_kl"] > 0.0


def test_tiny_is_the_smallest_there_is_where_headers_weigh(compress: Compress, wide: Folders):
    """One bit codes of these matrices take more than 1.1 bits with scales and headers: what is least is stored."""
    tiny, balanced = (compress(wide, preset, **FREE, preset=preset) for preset in ("tiny", "balanced"))
    assert bits(tiny) < 0.8 * bits(balanced)
    assert (tiny.report or {})["quality"]["kl"] > (balanced.report or {})["quality"]["kl"]


def test_exact_is_exact(tmp_path: Path, compress: Compress, wide: Folders):
    manifest = compress(wide, **FREE, preset="exact")
    base, tuned = map(Checkpoint.open, wide)
    merged = merged_state_dict(base, DeltaReader.open(tmp_path / "work" / "out"))
    for name in tuned.tensors:
        assert tuned.read(name).dtype == torch.bfloat16
        assert torch.equal(merged[name].bfloat16().view(torch.int16), tuned.read(name).view(torch.int16))
        assert torch.equal(merged[name].float(), tuned.read(name).float())
    assert codecs(manifest) <= {"same", "sparse_exact", "dense"}
    quality = (manifest.report or {})["quality"]
    assert (quality["kl"], quality["top1_agreement"]) == (0.0, 1.0)


def test_more_bits_a_parameter_are_nearer(compress: Compress, wide: Folders):
    budgets = (1.8, 2.5, 3.5, 4.5, 17.0)
    found = [compress(wide, f"b{budget}", **FREE, bits_per_param=budget) for budget in budgets]
    kls = [(manifest.report or {})["quality"]["kl"] for manifest in found]
    predicted = [(manifest.report or {})["allocation"]["predicted_kl"] for manifest in found]
    assert all(bits(manifest) <= budget for manifest, budget in zip(found, budgets, strict=True))
    assert kls == sorted(kls, reverse=True)
    assert predicted == sorted(predicted, reverse=True)
    assert kls[-1] == predicted[-1] == 0.0
    for seen, expected in zip(kls[:-1], predicted[:-1], strict=True):
        assert 1 / 3 < seen / expected < 3


def test_an_embedding_codec_is_kept_under_a_budget(compress: Compress, wide: Folders):
    manifest = compress(wide, **FREE, bits_per_param=3.0, embedding_codec="int2")
    (embedding,) = [entry.codec for entry in manifest.tensors if entry.kind == "embedding"]
    assert embedding == "int2"
    assert bits(manifest) <= 3.0


def test_the_smallest_that_meets_a_policy(tmp_path: Path, compress: Compress, wide: Folders):
    limit = 0.01
    manifest = compress(wide, **FREE, smallest=True, policy={"max_kl": limit})
    report = manifest.report or {}
    attempts = report["allocation"]["attempts"]
    assert report["gate"]["passed"]
    assert limit / 4 < report["quality"]["kl"] <= limit
    assert 1 <= len(attempts) <= MAX_ATTEMPTS
    assert bits(manifest) == min(a["bits"] for a in attempts if not a["failures"])
    assert report["quality"]["kl"] in [a["kl"] for a in attempts]  # coded again to the same bits, if not the last
    looser = compress(wide, "looser", **FREE, smallest=True, policy={"max_kl": 4 * limit})
    assert bits(looser) < bits(manifest)
    DeltaReader.open(tmp_path / "work" / "out")


def test_a_missed_policy_is_met_and_published(compress: Compress, wide: Folders):
    first = compress(wide, "first", codec="int2", policy={})
    limit = (first.report or {})["quality"]["kl"] / 3
    manifest = compress(wide, codec="int2", policy={"max_kl": limit})
    report = manifest.report or {}
    attempts = report["allocation"]["attempts"]
    assert attempts[0]["kl"] == (first.report or {})["quality"]["kl"]
    assert attempts[0]["failures"]
    assert not attempts[-1]["failures"]
    assert report["quality"]["kl"] == attempts[-1]["kl"] <= limit
    assert bits(first) < bits(manifest) == attempts[-1]["bits"] < 6.0
    assert len(codecs(manifest)) > 1


def test_a_policy_that_nothing_meets_leaves_its_attempts(tmp_path: Path, compress: Compress, wide: Folders):
    with pytest.raises(QualityGateError, match="agreement"):
        compress(wide, codec="int2", policy={"min_agreement": 1.0, "max_bits_per_param": 3.0})
    out = tmp_path / "work" / "out"
    report = json.loads((out / "report.json").read_text())
    assert not (out / "manifest.json").exists()
    assert 2 <= len(report["allocation"]["attempts"]) <= MAX_ATTEMPTS
    assert all(attempt["failures"] for attempt in report["allocation"]["attempts"])
    assert report["gate"]["failures"] == report["allocation"]["attempts"][-1]["failures"]


@pytest.mark.parametrize(("options", "least"), [({"codec": "int2"}, 2), ({"codec": None, "smallest": True}, 1)])
def test_a_finished_run_again_makes_no_other_attempt(
    tmp_path: Path, compress: Compress, wide: Folders, options: dict[str, object], least: int
):
    first, second = (compress(wide, **options, policy={"max_kl": 0.004}) for _ in range(2))
    assert second.tensors == first.tensors
    assert (second.report or {})["allocation"] == (first.report or {})["allocation"]
    attempts = json.loads((tmp_path / "work" / "state.json").read_text())["attempts"]
    assert len(attempts) == len((first.report or {})["allocation"]["attempts"]) >= least


def test_the_smallest_that_passed_is_delivered_though_it_was_not_the_last(
    tmp_path: Path, compress: Compress, wide: Folders
):
    """What a run leaves whose last attempts went down too far: its parts are those of the last."""
    asked = {**FREE, "smallest": True, "policy": {"max_kl": 0.01}}
    compress(wide, **asked)
    path = tmp_path / "work" / "state.json"
    state = json.loads(path.read_text())
    last = state["attempts"][-1]
    choice = {"codec": "int4", "params": {"group_size": 16}}
    passed = last | {"choices": dict.fromkeys(last["choices"], choice), "bits": 0.5, "predicted_kl": 0.25}
    missed = last | {"failures": ["KL"]}
    path.write_text(json.dumps(state | {"attempts": [passed, *[missed] * (MAX_ATTEMPTS - 1)]}))
    manifest = compress(wide, **asked)
    assert codecs(manifest) == {"int4"}
    report = manifest.report or {}
    assert report["allocation"]["predicted_kl"] == 0.25
    assert report["allocation"]["choices"] == {"int4/16": len(last["choices"])}
    assert len(report["allocation"]["attempts"]) == MAX_ATTEMPTS
    assert report["quality"]["kl"] < last["kl"]
    assert len(json.loads(path.read_text())["attempts"]) == MAX_ATTEMPTS


@pytest.mark.parametrize("options", [{"codec": "int2"}, {"codec": None, "bits_per_param": 1.9}])
def test_killed_in_the_second_attempt_and_still_bit_identical(tmp_path: Path, options: dict[str, object]):
    pair = make_pair(tmp_path, **WIDE)
    whole, killed = (
        make_spec(pair, tmp_path / name, threads=1, policy={"max_kl": 0.004}, **options) for name in ("whole", "killed")
    )
    told = finish(whole)
    assert max(line["attempt"] for line in told) >= 2  # type: ignore[type-var]
    process = start(killed)
    assert process.stdout is not None
    for line in process.stdout:
        said = json.loads(line)
        if said["attempt"] == 2 and said["layers_done"] == 1:
            break
    process.kill()
    process.communicate()
    assert not (killed.out / "manifest.json").exists()  # what missed the policy is not left as a result
    profile = (killed.work / "parts" / "profile.json").stat().st_mtime_ns
    told_again = finish(killed)
    assert min(line["attempt"] for line in told_again if line["stage"] != "preparing") == 2
    assert (killed.work / "parts" / "profile.json").stat().st_mtime_ns == profile
    assert result(killed) == result(whole)
