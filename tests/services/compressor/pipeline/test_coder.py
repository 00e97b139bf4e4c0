from pathlib import Path

import msgspec
import pytest
import torch

from deltaserve.delta.calibration import Moments
from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.codecs.intn import GROUP_SIZE
from deltaserve.delta.codecs.lowrank import RANK
from services.compressor.pipeline import coder as coder_module
from services.compressor.pipeline.choices import Choice
from services.compressor.pipeline.coder import Coder, Statistics
from services.compressor.pipeline.pair import Pair

NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize("codec", ["sign1", "int2", "int4", "lowrank_int2", "dense"])
@pytest.mark.parametrize("calibrated", [True, False])
def test_rows_may_be_coded_in_blocks(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, codec: str, calibrated: bool
):
    models = Pair(Checkpoint.open(pair[0]), Checkpoint.open(pair[1]), torch.device("cpu"))
    params = {RANK: 2} if codec.startswith("lowrank") else {GROUP_SIZE: 16} if codec.startswith("int") else {}
    coder = Coder(models, {NAME: Choice(codec, params)})
    moments = Moments(32)
    inputs = torch.randn(100, 32)
    moments.add(inputs, inputs + 0.01 * torch.randn(100, 32))
    statistics = Statistics.of(moments) if calibrated else None
    base, tuned = models.base_tensor(NAME), models.tuned_tensor(NAME)
    whole = coder.code(NAME, base, tuned, statistics)
    monkeypatch.setattr(coder_module, "_CHUNK_ELEMENTS", 7 * 32)
    blocks = coder.code(NAME, base, tuned, statistics)
    if codec.startswith("lowrank"):  # factors follow from all rows at once: products of blocks round otherwise
        assert msgspec.structs.replace(blocks.packed.entry, sha256="") == msgspec.structs.replace(
            whole.packed.entry, sha256=""
        )
        torch.testing.assert_close(blocks.served, whole.served, rtol=0, atol=float((tuned - base).abs().max()))
    else:
        assert blocks.packed.entry == whole.packed.entry
        assert all(torch.equal(blocks.packed.planes[p], whole.packed.planes[p]) for p in whole.packed.planes)
    torch.testing.assert_close(whole.served, whole.packed.merged(base), atol=0, rtol=0)
    assert blocks.error == pytest.approx(whole.error, rel=0.2)
    assert (whole.error == 0) == (codec == "dense")


def test_what_inputs_are_needed_for(pair: tuple[Path, Path]):
    models = Pair(Checkpoint.open(pair[0]), Checkpoint.open(pair[1]), torch.device("cpu"))
    choices = {"a": Choice("exact"), "b": Choice("same"), "c": Choice("dense"), "d": Choice("lowrank", {"rank": 2})}
    coder = Coder(models, choices)
    assert [coder.calibrated(name) for name in choices] == [False, False, False, True]


@pytest.mark.parametrize("codec", ["lowrank_sign1", "lowrank_ternary", "lowrank_int2", "exact", "same"])
def test_what_is_served_is_what_is_stored(pair: tuple[Path, Path], codec: str):
    models = Pair(Checkpoint.open(pair[0]), Checkpoint.open(pair[1]), torch.device("cpu"))
    choice = Choice(codec, {"rank": 2} if codec.startswith("lowrank") else {})
    base, tuned = models.base_tensor(NAME), models.tuned_tensor(NAME)
    coded = Coder(models, {NAME: choice}).code(NAME, base, tuned)
    assert torch.equal(coded.served, coded.packed.merged(base))
    assert torch.equal(coded.served, tuned) == (codec == "exact")
    assert torch.equal(coded.served, base) == (codec == "same")
    low, high = {"exact": (0.0, 0.0), "same": (1.0, 1.0)}.get(codec, (0.02, 0.6))
    assert low <= coded.error <= high
