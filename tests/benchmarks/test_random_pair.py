from pathlib import Path

import pytest
import torch

from benchmarks.random_pair import SHAPES, config_of, generate
from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.classes import EMBEDDING
from deltaserve.delta.compatibility import check_compatible


def test_the_fine_tune_belongs_to_the_base_and_moves_a_little(tmp_path: Path):
    parameters = generate(tmp_path / "base", tmp_path / "tuned", config_of("tiny"), torch.device("cpu"))
    base, tuned = Checkpoint.open(tmp_path / "base"), Checkpoint.open(tmp_path / "tuned")
    check_compatible(base.config, base.tensors, tuned.config, tuned.tensors)
    assert parameters == sum(base.read(name).numel() for name in base.tensors)
    for name in base.tensors:
        before, after = base.read(name).float(), tuned.read(name).float()
        if before.dim() == 2:
            assert 0.02 < float((after - before).std() / before.std()) < 0.05
        assert not torch.equal(before, after)
    move = tuned.read(EMBEDDING).float() - base.read(EMBEDDING).float()
    sizes = torch.linalg.svdvals(move)
    assert sizes[0] ** 2 > 0.2 * sizes.square().sum()


@pytest.mark.parametrize(("shape", "billions"), [("1.3b", 1.35), ("8b", 8.03)])
def test_shapes_have_their_size(shape: str, billions: float):
    from deltaserve.delta.architectures import expected_shapes

    count = sum(torch.Size(size).numel() for size in expected_shapes(config_of(shape)).values())
    assert count / 1e9 == pytest.approx(billions, abs=0.01)


def test_layers_may_be_fewer():
    assert config_of("8b", 3) == config_of("8b") | {"num_hidden_layers": 3}
    assert SHAPES["8b"]["num_hidden_layers"] == 32
