"""All codecs: round trips, planes as announced, gain one, errors as expected, hostile planes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaserve.delta.calibration import Curvature, relative_error, weighted
from deltaserve.delta.codecs import CODECS, EncodeOptions, get_codec
from deltaserve.delta.codecs.gain import MAX_BOOST, row_scale
from deltaserve.delta.dtypes import SAFETENSORS_DTYPES
from deltaserve.errors import FormatError, InvalidArgumentError

DELTA_CODECS = [name for name, codec in CODECS.items() if not codec.replaces]
DEFAULTS = EncodeOptions()
INTS = ["int2", "int3", "int4"]


def curvature_of(columns: int) -> Curvature:
    torch.manual_seed(2)
    inputs = torch.randn(4 * columns, columns) @ (torch.eye(columns) + 0.2 * torch.randn(columns, columns))
    return Curvature(inputs.T @ inputs / len(inputs))


def round_trip(
    name: str,
    delta: torch.Tensor,
    curvature: Curvature | None = None,
    group: int = 0,
    options: EncodeOptions = DEFAULTS,
) -> torch.Tensor:
    codec, params = get_codec(name), {"group_size": group} if group else {}
    planes = codec.encode(delta, curvature, params, options)
    specs = codec.plane_specs(delta.shape, "BF16", params)
    assert {plane: (SAFETENSORS_DTYPES[t.dtype], tuple(t.shape)) for plane, t in planes.items()} == {
        plane: (spec.dtype, spec.shape) for plane, spec in specs.items()
    }
    codec.check_planes(planes, delta.shape)
    return codec.decode(planes, delta.shape, params, torch.float32)


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(DELTA_CODECS),
    rows=st.integers(1, 9),
    columns=st.integers(1, 150),
    group=st.sampled_from([0, 16, 48, 128]),
    calibrated=st.booleans(),
)
def test_any_shape_round_trips(name: str, rows: int, columns: int, group: int, calibrated: bool) -> None:
    delta = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * columns))
    curvature = curvature_of(columns) if calibrated else None
    decoded = round_trip(name, delta, curvature, 0 if name == "sign1" else group)
    assert decoded.shape == delta.shape
    assert bool(torch.isfinite(decoded).all())
    assert relative_error(delta, decoded, curvature) < 1.0 + 2.0 * (name == "sign1")


@pytest.mark.parametrize(("name", "expected"), [("sign1", 0.363), ("int2", 0.119), ("int3", 0.0374), ("int4", 0.0116)])
def test_error_of_gaussian_deltas(name: str, expected: float) -> None:
    torch.manual_seed(0)
    delta = torch.randn(16, 4096)
    decoded = round_trip(name, delta, options=EncodeOptions(unbiased=False))
    assert relative_error(delta, decoded, None) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("name", DELTA_CODECS)
def test_gain_is_one_in_every_row(name: str, calibrated: bool) -> None:
    torch.manual_seed(0)
    delta, curvature = 0.01 * torch.randn(24, 256), curvature_of(256) if calibrated else None
    decoded = round_trip(name, delta, curvature)
    gain = weighted(delta, decoded, curvature) / weighted(delta, delta, curvature)
    assert torch.allclose(gain, torch.ones(24), atol=2e-3)


@pytest.mark.parametrize("name", INTS)
def test_feedback_pays(name: str) -> None:
    torch.manual_seed(0)
    delta, curvature = torch.randn(32, 256), curvature_of(256)
    plain = round_trip(name, delta, curvature, 128, EncodeOptions(feedback=False, unbiased=False))
    fed_back = round_trip(name, delta, curvature, 128, EncodeOptions(damping=0.01, unbiased=False))
    assert relative_error(delta, fed_back, curvature) < 0.7 * relative_error(delta, plain, curvature)


def test_sign_scale_is_least_squares_by_brute_force() -> None:
    torch.manual_seed(0)
    delta, curvature = torch.randn(3, 40), curvature_of(40)
    scale = row_scale(delta, delta.sign(), curvature, unbiased=False)
    for row in range(3):
        tries = torch.linspace(0.5, 1.5, 401)[:, None] * scale[row]
        error = tries * delta[row].sign() - delta[row]
        assert int(weighted(error, error, curvature).argmin()) == 200


def test_unbiased_scale_is_clamped_where_signs_say_little() -> None:
    delta = torch.zeros(1, 1000)
    delta[0, 0] = 1.0
    signs = torch.where(delta >= 0, 1.0, -1.0)
    least_squares = row_scale(delta, signs, None, unbiased=False)
    assert float(row_scale(delta, signs, None, unbiased=True)) == pytest.approx(MAX_BOOST * float(least_squares))


def test_rows_whose_codes_point_away_fall_back_to_the_plain_norm() -> None:
    gram = torch.tensor([[1.0, -10.0], [-10.0, 101.0]])
    delta = torch.tensor([[10.0, 0.9]])
    assert float(weighted(delta, delta.sign(), Curvature(gram))) < 0
    scale = row_scale(delta, delta.sign(), Curvature(gram), unbiased=True)
    assert torch.equal(scale, row_scale(delta, delta.sign(), None, unbiased=True))


@pytest.mark.parametrize("name", DELTA_CODECS)
def test_zero_rows_stay_zero(name: str) -> None:
    delta = torch.randn(6, 64)
    delta[[0, 3]] = 0
    decoded = round_trip(name, delta, curvature_of(64))
    assert bool((decoded[[0, 3]] == 0).all())
    assert bool((decoded[[1, 2, 4, 5]] != 0).all())


@pytest.mark.parametrize("name", DELTA_CODECS)
@pytest.mark.parametrize("size", [1e-9, 1e-6, 1e3, 1e9])
def test_scales_beyond_fp16_stay_finite(name: str, size: float) -> None:
    delta = size * torch.randn(4, 64)
    decoded = round_trip(name, delta)
    assert bool(torch.isfinite(decoded).all())
    if size == 1e-6:
        assert relative_error(delta, decoded, None) < 0.7


def test_large_matrices_are_coded_in_pieces_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    delta = torch.randn(50, 64)
    whole = round_trip("int3", delta, group=16)
    monkeypatch.setattr("deltaserve.delta.codecs.intn._CHUNK_ELEMENTS", 64 * 7)
    assert torch.equal(round_trip("int3", delta, group=16), whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dense_is_exact(dtype: torch.dtype) -> None:
    values = torch.randn(7).to(dtype)
    codec = get_codec("dense")
    planes = codec.encode(values, None, {}, EncodeOptions())
    assert torch.equal(codec.decode(planes, (7,), {}, dtype), values)


@pytest.mark.parametrize("name", list(CODECS))
def test_hostile_scales_and_values_are_refused(name: str) -> None:
    codec, delta = get_codec(name), torch.randn(3, 20)
    for bad in (float("nan"), float("inf"), -1.0):
        planes = codec.encode(delta, None, {}, EncodeOptions())
        plane = planes["values" if name == "dense" else "scale"]
        plane.view(-1)[1] = bad
        if name == "dense" and bad == -1.0:
            continue
        with pytest.raises(FormatError):
            codec.check_planes(planes, delta.shape)


@pytest.mark.parametrize("name", DELTA_CODECS)
def test_set_padding_bits_are_refused(name: str) -> None:
    codec, delta = get_codec(name), torch.randn(3, 21)
    planes = codec.encode(delta, None, {}, EncodeOptions())
    planes["signs" if name == "sign1" else "codes"][2, -1] |= 0x80
    with pytest.raises(FormatError, match="expected zeros"):
        codec.check_planes(planes, delta.shape)


@pytest.mark.parametrize(
    ("name", "params", "shape"),
    [
        ("sign1", {"group_size": 16}, (4, 4)),
        ("sign1", {}, (4,)),
        ("int4", {"group_size": 8}, (4, 4)),
        ("int4", {"group_size": -16}, (4, 4)),
        ("int4", {"group": 16}, (4, 4)),
        ("int4", {}, (4, 4, 4)),
        ("dense", {"x": 1}, (4, 4)),
    ],
)
def test_bad_parameters_and_shapes_are_refused(name: str, params: dict[str, int], shape: tuple[int, ...]) -> None:
    with pytest.raises(FormatError):
        get_codec(name).check_params(params, shape)


def test_unknown_codec_is_refused_with_the_choices() -> None:
    with pytest.raises(InvalidArgumentError, match="expected one of sign1, int2, int3, int4, dense"):
        get_codec("int5")
