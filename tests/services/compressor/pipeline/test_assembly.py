from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.manifest import DELTA_FILE, Manifest
from services.compressor.pipeline.assembly import Assembly
from services.compressor.pipeline.pair import Pair
from tests.services.compressor.pipeline.conftest import make_spec


@pytest.mark.parametrize("kind", ["as the base's", "none", "own"])
def test_side_bytes_are_those_that_a_result_stores_beside_its_payload(
    tmp_path: Path, compress: Callable[..., Manifest], pair: tuple[Path, Path], kind: str
):
    if kind == "none":
        for path in pair[1].glob("*token*"):
            path.unlink()
    if kind == "own":
        (pair[1] / "chat_template.jinja").write_text("{{ messages }}")
        path = pair[1] / "tokenizer_config.json"
        path.write_text(path.read_text() + "\n")
    manifest = compress(pair)
    both = Pair(Checkpoint.open(pair[0]), Checkpoint.open(pair[1]), torch.device("cpu"))
    side = Assembly(make_spec(pair, tmp_path / "work"), both, "fingerprint").side_bytes()
    own = {entry.path: entry.size for entry in manifest.files if entry.source == "delta" and entry.path != DELTA_FILE}
    assert side == sum(own.values())
    assert (side > 0) == (kind == "own")
    assert kind != "own" or {"chat_template.jinja", "tokenizer_config.json"} <= set(own)
