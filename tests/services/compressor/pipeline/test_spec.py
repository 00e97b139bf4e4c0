import json
from pathlib import Path

import pytest

from deltaserve.errors import InvalidArgumentError
from services.compressor.pipeline.spec import PRESET_BITS, Options, load_spec

PATHS = {"base": "/b", "tuned": "/t", "work": "/w"}


def test_defaults(tmp_path: Path):
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(PATHS | {"options": {"codec": "sign1"}, "policy": {"max_kl": 0.1}}))
    spec = load_spec(path)
    assert spec.options.codec == spec.options.linear_codec == "sign1"
    assert spec.options.embedding_codec is None
    assert spec.options.fixed_embedding_codec == "int4"
    assert spec.options.budget is None
    assert not spec.options.allocates
    assert spec.out == Path("/w/out")
    assert spec.calibration is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": {"codec": "int5"}}, "codec"),
        ({"options": {"group_size": 24}}, "group_size is 24"),
        ({"options": {"codec": "int4", "preset": "tiny"}}, "codec and preset are set; expected at most one"),
        ({"options": {"preset": "tiny", "bits_per_param": 2.0}}, "preset and bits_per_param are set"),
        (
            {"options": {"bits_per_param": 2.0, "smallest": True}, "policy": {"max_kl": 1}},
            "bits_per_param and smallest",
        ),
        ({"options": {"codec": "int2", "preset": "exact", "smallest": True}}, "codec and preset and smallest"),
        ({"options": {"bits_per_param": -1.0}}, "bits_per_param is -1"),
        ({"options": {"bits_per_param": 0.0}}, "bits_per_param is 0"),
        ({"options": {"preset": "huge"}}, "preset"),
        ({"options": {"smallest": True}}, "smallest looks for .*; set max_kl"),
        ({"options": {"smallest": True}, "policy": {"max_bits_per_param": 2.0}}, "smallest looks for"),
        ({"options": {"calibration_samples": 0}}, "calibration_samples is 0"),
        ({"policy": {"max_loss": 1}}, "max_loss"),
        ({"base": 7}, "base"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_malformed(tmp_path: Path, changes: dict[str, object], message: str):
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(PATHS | changes))
    with pytest.raises(InvalidArgumentError, match=message):
        load_spec(path)


@pytest.mark.parametrize(
    ("options", "linear", "embedding", "budget", "allocates"),
    [
        ({}, "int4", "int4", None, False),
        ({"codec": "ternary", "embedding_codec": "int3"}, "ternary", "int3", None, False),
        ({"preset": "exact"}, "exact", "exact", None, False),
        ({"preset": "exact", "embedding_codec": "int4"}, "exact", "int4", None, False),
        ({"preset": "tiny"}, "int4", "int4", PRESET_BITS["tiny"], True),
        ({"preset": "balanced"}, "int4", "int4", PRESET_BITS["balanced"], True),
        ({"preset": "faithful"}, "int4", "int4", PRESET_BITS["faithful"], True),
        ({"bits_per_param": 2.5}, "int4", "int4", 2.5, True),
        ({"smallest": True}, "int4", "int4", None, True),
    ],
)
def test_what_options_stand_for(
    tmp_path: Path, options: dict[str, object], linear: str, embedding: str, budget: float | None, allocates: bool
):
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(PATHS | {"options": options, "policy": {"min_agreement": 0.5}}))
    found = load_spec(path).options
    assert (found.linear_codec, found.fixed_embedding_codec) == (linear, embedding)
    assert (found.budget, found.allocates) == (budget, allocates)


@pytest.mark.parametrize("bits", [float("nan"), float("inf")])
def test_budgets_that_are_no_numbers(bits: float):
    with pytest.raises(InvalidArgumentError, match="bits_per_param"):
        Options(bits_per_param=bits).check()


@pytest.mark.parametrize("policy", [{"max_kl": 0.1}, {"min_agreement": 0.9}, {"max_accuracy_drop": 1.0}])
def test_smallest_with_a_policy(tmp_path: Path, policy: dict[str, float]):
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(PATHS | {"options": {"smallest": True}, "policy": policy}))
    assert load_spec(path).policy.judges_quality
