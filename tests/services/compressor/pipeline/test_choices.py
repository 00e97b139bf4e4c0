import pytest
import torch

from deltaserve.delta.codecs import EncodeOptions, get_codec
from services.compressor.pipeline.choices import EXACT, Choice, Chooser, candidates, uniform

SHAPE = (64, 96)


@pytest.mark.parametrize(
    ("choice", "label"),
    [
        (Choice("int2"), "int2"),
        (Choice("int2", {"group_size": 128}), "int2/128"),
        (Choice("lowrank", {"rank": 8}), "lowrank/8"),
        (Choice("lowrank_sign1", {"rank": 2}), "lowrank_sign1/2"),
        (Choice("sign1", {"columns": 1}), "sign1/columns"),
        (Choice(EXACT), "exact"),
    ],
)
def test_labels(choice: Choice, label: str):
    assert choice.label == label


def test_labels_of_candidates_differ():
    labels = [choice.label for choice in candidates((512, 512), 128, embedding=False, asked=Choice("int3"))]
    assert len(set(labels)) == len(labels)


def test_exact_codes_do_not_look_at_inputs():
    calibrated = {name: Choice(name).calibrated for name in (EXACT, "dense", "same", "sign1", "int4", "lowrank_int2")}
    assert [name for name, looks in calibrated.items() if looks] == ["sign1", "int4", "lowrank_int2"]


@pytest.mark.parametrize("embedding", [False, True])
def test_bytes_are_those_of_the_planes(embedding: bool):
    delta, name = torch.randn(SHAPE), "model.layers.0.mlp.up_proj.weight"
    for choice in candidates(SHAPE, 16, embedding=embedding, asked=Choice("sparse24_int2")):
        if choice.codec == EXACT:
            assert choice.stored_bytes(SHAPE, "BF16") == Choice("dense").stored_bytes(SHAPE, "BF16")
            continue
        planes = get_codec(choice.codec).encode(delta, None, choice.params, EncodeOptions())
        header = len(planes) * len(name)
        stored = sum(plane.nbytes for plane in planes.values())
        assert 0 < choice.stored_bytes(SHAPE, "BF16", name) - stored - header <= 150 * len(planes)
        assert choice.stored_bytes(SHAPE, "BF16") == choice.stored_bytes(SHAPE, "BF16", name) - header


def test_bytes_of_tensors_kept_whole_are_of_their_dtype():
    sizes = [Choice(EXACT).stored_bytes(SHAPE, dtype) for dtype in ("BF16", "F32")]
    assert sizes[1] - sizes[0] == 2 * 64 * 96
    assert Choice("same").stored_bytes(SHAPE, "F32", "name") == 0


@pytest.mark.parametrize("codec", ["ternary", "int2", "int3", "int4"])
@pytest.mark.parametrize(("group", "grouped"), [(0, False), (16, True), (80, True), (96, False), (128, False)])
def test_groups_are_of_codecs_that_have_them_and_of_longer_rows(codec: str, group: int, grouped: bool):
    choice = uniform(codec, group, SHAPE)
    assert choice == Choice(codec, {"group_size": group} if grouped else {})
    get_codec(codec).check_params(choice.params, SHAPE)


@pytest.mark.parametrize("codec", ["sign1", "sparse24_int4", "dense", EXACT])
def test_other_codecs_have_no_groups(codec: str):
    assert uniform(codec, 16, SHAPE) == Choice(codec)


def test_a_chooser_goes_by_class():
    chooser = Chooser("sign1", "int4", 16)
    assert chooser.choice("linear", SHAPE) == Choice("sign1")
    assert chooser.choice("embedding", SHAPE) == chooser.choice("lm_head", SHAPE) == Choice("int4", {"group_size": 16})


@pytest.mark.parametrize("embedding", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (16, 1000), (64, 96), (512, 512), (2000, 48)])
@pytest.mark.parametrize("group", [0, 16, 128])
def test_every_candidate_takes_the_shape(shape: tuple[int, int], group: int, embedding: bool):
    found = candidates(shape, group, embedding=embedding, asked=Choice("int3"))
    assert Choice(EXACT) in found
    assert all(found.count(choice) == 1 for choice in found)
    for choice in found:
        if choice.codec != EXACT:
            get_codec(choice.codec).check_params(choice.params, shape)
    ranks = {choice.params["rank"] for choice in found if choice.codec == "lowrank"}
    assert all(8 * rank <= min(shape) for rank in ranks)
    assert bool(ranks) == (min(shape) >= 16 and not embedding)


def test_what_was_asked_for_is_a_candidate_once():
    without = candidates(SHAPE, 16, embedding=False, asked=None)
    assert Choice("sparse24_int4") not in without
    assert candidates(SHAPE, 16, embedding=False, asked=Choice("sparse24_int4")) == [*without, Choice("sparse24_int4")]
    for known in (Choice("sign1"), Choice("int4", {"group_size": 16}), Choice("dense"), Choice(EXACT)):
        assert candidates(SHAPE, 16, embedding=False, asked=known) == without  # dense: EXACT is never larger
