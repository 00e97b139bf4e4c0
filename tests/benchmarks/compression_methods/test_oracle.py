"""The product's `sparse24` codecs against the benchmark's own implementation of ΔCompress.

Both follow SparseGPT with a row's min-max grid. In float32 their factors of H are rounded otherwise, so that a weight
between two codes, or two of equal saliency, may go either way, and what follows it in its row with it.
"""

import pytest
import torch

from benchmarks.compression_methods import sparse_gpt
from deltaserve.delta.calibration import Curvature, relative_error
from deltaserve.delta.codecs import EncodeOptions, get_codec


def gram_of(columns: int, dead: int = 0) -> torch.Tensor:
    inputs = torch.randn(3 * columns, columns) @ (
        torch.eye(columns) + 0.5 * torch.randn(columns, columns) / columns**0.5
    )
    inputs[:, columns - dead :] = 0
    return inputs.T @ inputs / len(inputs)


def product(delta: torch.Tensor, gram: torch.Tensor, bits: int) -> torch.Tensor:
    codec = get_codec(f"sparse24_int{bits}")
    planes = codec.encode(delta, Curvature(gram), {}, EncodeOptions())
    return codec.decode(planes, delta.shape, {}, torch.float32)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("columns", [64, 128, 320])
def test_both_code_alike(bits: int, columns: int):
    delta, gram = 0.01 * torch.randn(96, columns), gram_of(columns)
    ours, theirs = product(delta, gram, bits), sparse_gpt.compress(delta, gram, bits)
    alike = (ours - theirs).abs() <= 1e-6 * delta.abs().max()
    assert float(alike.all(dim=1).float().mean()) > 0.9  # whole rows, with all that was fed back in them
    assert float(alike.float().mean()) > 0.98
    assert float(((ours != 0) == (theirs != 0)).float().mean()) > 0.98
    errors = [relative_error(delta, coded, Curvature(gram)) for coded in (ours, theirs)]
    assert errors[0] == pytest.approx(errors[1], rel=0.01)


@pytest.mark.parametrize("bits", [2, 4])
def test_both_leave_out_inputs_that_never_come(bits: int):
    """The original counts a dead input's curvature as one in the mean that damping follows; ours as the zero it is."""
    delta, gram = 0.01 * torch.randn(48, 128), gram_of(128, dead=8)
    ours, theirs = product(delta, gram, bits), sparse_gpt.compress(delta, gram, bits)
    assert not bool(ours[:, 120:].any())
    assert not bool(theirs[:, 120:].any())
    errors = [relative_error(delta, coded, Curvature(gram)) for coded in (ours, theirs)]
    assert errors[0] == pytest.approx(errors[1], rel=0.05)
