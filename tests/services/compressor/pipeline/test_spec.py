import json
from pathlib import Path

import pytest

from deltaserve.errors import InvalidArgumentError
from services.compressor.pipeline.spec import load_spec

PATHS = {"base": "/b", "tuned": "/t", "work": "/w"}


def test_defaults(tmp_path: Path):
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(PATHS | {"options": {"codec": "sign1"}, "policy": {"max_kl": 0.1}}))
    spec = load_spec(path)
    assert spec.options.codec == "sign1"
    assert spec.options.embedding_codec == "int4"
    assert spec.out == Path("/w/out")
    assert spec.calibration is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": {"codec": "int5"}}, "codec"),
        ({"options": {"group_size": 24}}, "group_size is 24"),
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
