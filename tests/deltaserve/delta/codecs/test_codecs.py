"""All codecs: round trips, planes as announced, gain one, errors as expected, hostile planes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaserve.delta.calibration import Curvature, relative_error, weighted
from deltaserve.delta.codecs import CODECS, EncodeOptions, get_codec
from deltaserve.delta.codecs.gain import MAX_BOOST, row_scale
from deltaserve.delta.coding import code_delta, code_exact, exact_codec
from deltaserve.delta.dtypes import SAFETENSORS_DTYPES
from deltaserve.errors import FormatError, InvalidArgumentError

DELTA_CODECS = [name for name, codec in CODECS.items() if codec.form == "delta"]
DEFAULTS = EncodeOptions()
INTS = ["ternary", "int2", "int3", "int4"]
VECTORS = ["vector8", "vector12", "vector16", "vector24"]
UNBIASED = ["sign1", *INTS, *VECTORS[:2]]  # scaled for gain one
SPARSE24 = ["sparse24_int2", "sparse24_int4"]


def params_of(name: str, shape: tuple[int, ...], group: int = 0) -> dict[str, int]:
    if name.startswith("tiered"):
        return {"rows": max(1, shape[0] // 3)} | ({"group_size": group} if group else {})
    rank = {"rank": min(*shape, 4)} if name.startswith("lowrank") else {}
    return rank | ({"group_size": group} if group and name.removeprefix("lowrank_") in INTS else {})


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
    params: dict[str, int] | None = None,
) -> torch.Tensor:
    codec, params = get_codec(name), params or params_of(name, tuple(delta.shape), group)
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
    decoded = round_trip(name, delta, curvature, group)
    assert decoded.shape == delta.shape
    assert bool(torch.isfinite(decoded).all())
    coarse = name.rpartition("_")[2] in ("sign1", "ternary", *VECTORS)
    assert relative_error(delta, decoded, curvature) < (MAX_BOOST**2 if coarse else 1.0 + 1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sign1", 0.363),
        ("vector8", 0.322),
        ("vector12", 0.478),
        ("vector16", 0.579),
        ("vector24", 0.700),
        ("ternary", 0.190),
        ("int2", 0.119),
        ("int3", 0.0374),
        ("int4", 0.0116),
        ("sparse24_int4", 0.1445),
        ("same", 1.0),
    ],
)
def test_error_of_gaussian_deltas(name: str, expected: float) -> None:
    torch.manual_seed(0)
    delta = torch.randn(16, 4096)
    decoded = round_trip(name, delta, options=EncodeOptions(unbiased=False))
    assert relative_error(delta, decoded, None) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("name", UNBIASED)
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
    assert float(decoded[[0, 3]].abs().max()) < (1e-4 if name.startswith("lowrank") else 1e-30)
    assert bool((decoded[[1, 2, 4, 5]] != 0).any()) == (name != "same")


@pytest.mark.parametrize("name", DELTA_CODECS)
@pytest.mark.parametrize("size", [1e-9, 1e-6, 1e3, 1e9])
def test_scales_beyond_fp16_stay_finite(name: str, size: float) -> None:
    delta = size * torch.randn(4, 64)
    decoded = round_trip(name, delta)
    assert bool(torch.isfinite(decoded).all())
    if size == 1e-6 and name not in ("same", "sparse24_int2"):
        assert relative_error(delta, decoded, None) < (0.7 if get_codec(name).bits >= 1 or name == "lowrank" else 3.0)


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_changes_are_exact(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    base = torch.randn(9, 37).to(torch.bfloat16)
    tuned = base.to(dtype, copy=True)
    where = torch.rand(9, 37) < 0.2
    tuned[where] = torch.randn(int(where.sum())).to(dtype)
    tuned[4] = base[4].to(dtype)
    base[0, 0], tuned[0, 0] = 0.0, -0.0
    packed = code_exact("model.layers.0.mlp.up_proj.weight", tuned, base, "model.layers.0.mlp.up_proj.weight")
    assert packed.entry.codec == "sparse_exact"
    packed.codec.check_planes(packed.planes, packed.shape)
    merged = packed.merged(base)
    assert torch.equal(merged, tuned.float())
    assert bool(torch.signbit(merged[0, 0]))
    torch.testing.assert_close(base.float() + packed.delta(base), tuned.float(), rtol=1e-6, atol=0)
    assert torch.equal(packed.rows(torch.tensor([5, 1, 5])).isnan(), packed.decode().isnan()[[5, 1, 5]])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 0.97, 1.0])
def test_the_exact_codec_is_known_without_coding(share: float) -> None:
    name, base = "model.layers.0.mlp.up_proj.weight", torch.randn(16, 64).bfloat16()
    tuned = torch.where(torch.rand(16, 64) < share, base + 1, base)
    entry = code_exact(name, tuned, base, name).entry
    assert exact_codec(tuned.float(), base.float(), "BF16") == (entry.codec, entry.params)


def test_nan_is_refused_by_the_exact_code() -> None:
    base = torch.randn(4, 16)
    tuned = base.clone()
    tuned[2, 3] = float("nan")
    with pytest.raises(InvalidArgumentError, match="NaN"):
        code_exact("model.layers.0.mlp.up_proj.weight", tuned, base, "")


def test_the_exact_code_is_the_smallest() -> None:
    name, base = "model.layers.0.mlp.up_proj.weight", torch.randn(8, 64).bfloat16()
    assert code_exact(name, base.clone(), base, name).entry.codec == "same"
    assert code_exact(name, base + 1, base, name).entry.codec == "dense"
    norm = torch.randn(8).bfloat16()
    assert code_exact("model.norm.weight", norm, norm + 1, "model.norm.weight").entry.codec == "dense"
    assert code_exact("model.norm.weight", norm, norm, "model.norm.weight").entry.codec == "same"


@pytest.mark.parametrize("name", [name for name in CODECS if name not in ("same", "lowrank", "sparse_exact")])
def test_hostile_scales_and_values_are_refused(name: str) -> None:
    codec, delta = get_codec(name), torch.randn(3, 20)
    for bad in (float("nan"), float("inf"), -1.0):
        planes = codec.encode(delta, None, params_of(name, (3, 20)), EncodeOptions())
        plane = planes["values" if name == "dense" else "scale"]
        plane.view(-1)[1] = bad
        if name == "dense" and bad == -1.0:
            continue
        with pytest.raises(FormatError):
            codec.check_planes(planes, delta.shape)


def test_hostile_changes_are_refused() -> None:
    codec, base = get_codec("sparse_exact"), torch.zeros(3, 20)
    values = torch.full((3, 20), float("nan"))
    values[0, 3], values[2, 19] = 1.0, 2.0
    for plane, place, bad in (("begin", 2, 7), ("begin", 0, -1), ("mask", (1, 0), 4), ("values", 0, float("nan"))):
        planes = codec.encode(values, None, {"changed": 2}, EncodeOptions())
        codec.check_planes(planes, base.shape)
        planes[plane][place] = bad
        with pytest.raises(FormatError):
            codec.check_planes(planes, base.shape)
    with pytest.raises(FormatError, match="the tensor has 2"):
        codec.encode(values, None, {"changed": 3}, EncodeOptions())


@pytest.mark.parametrize("name", ["sign1", "int2", "int3", "int4", *SPARSE24])
def test_set_padding_bits_are_refused(name: str) -> None:
    codec, delta = get_codec(name), torch.randn(3, 18 if name in SPARSE24 else 21)
    planes = codec.encode(delta, None, {}, EncodeOptions())
    planes["signs" if name == "sign1" else "index" if name in SPARSE24 else "codes"][2, -1] |= 0x80
    with pytest.raises(FormatError, match="expected zeros"):
        codec.check_planes(planes, delta.shape)


def test_bytes_that_trits_cannot_make_are_refused() -> None:
    codec, delta = get_codec("ternary"), torch.randn(3, 21)
    for column, bad in ((0, 243), (4, 3)):
        planes = codec.encode(delta, None, {}, EncodeOptions())
        planes["codes"][1, column] = bad
        with pytest.raises(FormatError, match="ternary codes"):
            codec.check_planes(planes, delta.shape)


def test_places_that_do_not_ascend_are_refused() -> None:
    codec, delta = get_codec("sparse24_int2"), torch.randn(3, 8)
    planes = codec.encode(delta, None, {}, EncodeOptions())
    planes["index"][1, 0] = 0b0101  # place 1 twice
    with pytest.raises(FormatError, match="do not ascend"):
        codec.check_planes(planes, delta.shape)


@pytest.mark.parametrize("columns", [4, 5, 6, 7, 130])
def test_two_of_four_are_kept_and_the_largest_without_calibration(columns: int) -> None:
    delta = torch.randn(5, columns)
    decoded = round_trip("sparse24_int4", delta)
    for begin in range(0, columns, 4):
        group = delta[:, begin : begin + 4].abs()
        dropped = group.argsort(dim=1, descending=True)[:, 2:]
        assert bool((decoded[:, begin : begin + 4].gather(1, dropped) == 0).all())


def test_column_scales_pay_where_columns_differ() -> None:
    torch.manual_seed(0)
    delta = torch.randn(64, 96) * torch.logspace(-1, 1, 96)
    plain = relative_error(delta, round_trip("sign1", delta), None)
    scaled = relative_error(delta, round_trip("sign1", delta, params={"columns": 1}), None)
    assert scaled < 0.7 * plain


@pytest.mark.parametrize("calibrated", [False, True])
def test_low_rank_deltas_are_recovered(calibrated: bool) -> None:
    torch.manual_seed(0)
    delta = 0.01 * torch.randn(40, 3) @ torch.randn(3, 64)
    decoded = round_trip("lowrank", delta, curvature_of(64) if calibrated else None)
    assert relative_error(delta, decoded, None) < 1e-5


def test_low_rank_of_large_matrices_is_near_the_best_and_the_same_every_time() -> None:
    torch.manual_seed(0)
    delta = torch.randn(1100, 12) @ torch.randn(12, 1200) + 0.3 * torch.randn(1100, 1200)
    first, second = (round_trip("lowrank", delta, params={"rank": 12}) for _ in range(2))
    assert torch.equal(first, second)
    best = torch.linalg.svdvals(delta)[12:].square().sum()
    assert float((delta - first).square().sum()) < 1.01 * float(best)


@pytest.mark.parametrize("name", [name for name in DELTA_CODECS if name != "same"])
def test_rows_decode_alone(name: str) -> None:
    delta = torch.randn(7, 48)
    params = {"columns": 1} if name == "sign1" else params_of(name, (7, 48))
    packed = code_delta("model.layers.0.mlp.up_proj.weight", delta, torch.bfloat16, name, base="b", params=params)
    whole, rows = packed.decode(), torch.tensor([6, 0, 0, 3])
    torch.testing.assert_close(packed.rows(rows), whole[rows], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(packed.rows(slice(2, 5)), whole[2:5], rtol=1e-6, atol=1e-7)


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
        ("sign1", {"columns": 2}, (4, 4)),
        ("vector8", {"group_size": 16}, (4, 4)),
        ("vector12", {}, (4,)),
        ("ternary", {"group_size": 8}, (4, 4)),
        ("sparse24_int2", {"group_size": 16}, (4, 4)),
        ("lowrank", {}, (4, 4)),
        ("lowrank", {"rank": 5}, (4, 9)),
        ("lowrank", {"rank": 1, "dtype": 3}, (4, 9)),
        ("lowrank_sign1", {}, (4, 4)),
        ("lowrank_int2", {"rank": 5}, (4, 9)),
        ("lowrank_int2", {"rank": 1, "group_size": 8}, (4, 16)),
        ("lowrank_ternary", {"rank": 1, "dtype": 1}, (4, 9)),
        ("lowrank_sign1", {"rank": 1}, (4,)),
        ("sparse_exact", {}, (4, 4)),
        ("sparse_exact", {"changed": 17}, (4, 4)),
        ("sparse_exact", {"changed": 1}, (4,)),
        ("same", {"x": 1}, (4,)),
        ("tiered_int2", {}, (4, 4)),
        ("tiered_int2", {"rows": 5}, (4, 4)),
        ("tiered_sign1", {"rows": 1, "columns": 1}, (4, 4)),
    ],
)
def test_bad_parameters_and_shapes_are_refused(name: str, params: dict[str, int], shape: tuple[int, ...]) -> None:
    with pytest.raises(FormatError):
        get_codec(name).check_params(params, shape)


def test_unknown_codec_is_refused_with_the_choices() -> None:
    with pytest.raises(InvalidArgumentError, match="expected one of sign1, ternary, int2, int3, int4, vector8"):
        get_codec("int5")


def test_listed_rows_are_the_dearest_and_coded_better() -> None:
    torch.manual_seed(0)
    delta, power = torch.randn(64, 96), torch.ones(64)
    dear = torch.tensor([3, 17, 40, 63])
    power[dear] = 100.0
    for inner in ("sign1", "vector8", "ternary", "int2"):
        codec, params = get_codec(f"tiered_{inner}"), {"rows": 4}
        planes = codec.encode(delta, None, params, EncodeOptions(row_power=power))
        assert torch.equal(planes["rows"].long(), dear)
        errors = (delta - codec.decode(planes, delta.shape, params, torch.float32)).square().mean(dim=1)
        assert float(errors[dear].max()) < 0.2 * float(errors.median())


def test_lists_of_rows_that_do_not_ascend_are_refused() -> None:
    codec, delta = get_codec("tiered_sign1"), torch.randn(9, 16)
    for bad in ([2, 2], [5, 1], [-1, 3], [3, 9]):
        planes = codec.encode(delta, None, {"rows": 2}, EncodeOptions())
        planes["rows"] = torch.tensor(bad, dtype=torch.int32)
        with pytest.raises(FormatError, match="do not ascend"):
            codec.check_planes(planes, delta.shape)
