"""What low-rank parts add to few bits; round trips and the rest of the contract are in test_codecs."""

import pytest
import torch

from deltaserve.delta.calibration import relative_error
from deltaserve.delta.codecs import CODECS, EncodeOptions, get_codec
from deltaserve.delta.codecs.residual import RESIDUALS as ALL
from deltaserve.errors import FormatError
from tests.deltaserve.delta.codecs.test_codecs import curvature_of, round_trip

RESIDUALS = [codec.name for codec in ALL]


def test_names() -> None:
    assert RESIDUALS == ["lowrank_sign1", "lowrank_vector8", "lowrank_ternary", "lowrank_int2"]
    assert set(RESIDUALS) <= set(CODECS)


@pytest.mark.parametrize("name", ["lowrank", *RESIDUALS])
@pytest.mark.parametrize("plane", ["left", "right"])
def test_hostile_factors_are_refused(name: str, plane: str) -> None:
    planes = get_codec(name).encode(torch.randn(6, 8), None, {"rank": 2}, EncodeOptions())
    get_codec(name).check_planes(planes, (6, 8))
    planes[plane][1, 1] = float("inf")
    with pytest.raises(FormatError, match=f"{plane} holds NaN"):
        get_codec(name).check_planes(planes, (6, 8))


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("name", RESIDUALS)
def test_a_direction_that_stands_out_is_kept(name: str, calibrated: bool) -> None:
    torch.manual_seed(0)
    delta = torch.randn(48, 64) + 3 * torch.randn(48, 1) @ torch.randn(1, 64)  # nine tenths of it one direction
    curvature = curvature_of(64) if calibrated else None
    alone = relative_error(delta, round_trip(name.removeprefix("lowrank_"), delta, curvature), curvature)
    kept = relative_error(delta, round_trip(name, delta, curvature, params={"rank": 1}), curvature)
    assert kept < 0.3 * alone


@pytest.mark.parametrize("name", RESIDUALS)
def test_the_rest_is_coded_by_the_inner_codec(name: str) -> None:
    """Of a delta without any direction that stands out nothing is lost, and the factors take what they announce."""
    torch.manual_seed(1)
    delta = torch.randn(64, 128)
    options = EncodeOptions(unbiased=False)
    alone = relative_error(delta, round_trip(name.removeprefix("lowrank_"), delta, options=options), None)
    both = relative_error(delta, round_trip(name, delta, options=options, params={"rank": 4}), None)
    assert 0.7 * alone < both < alone
    sizes = [
        sum(plane.nbytes for plane in get_codec(codec).encode(delta, None, params, options).values())
        for codec, params in ((name, {"rank": 4}), (name.removeprefix("lowrank_"), {}))
    ]
    assert sizes[0] - sizes[1] == 2 * 4 * (64 + 128)
