from collections.abc import Callable
from typing import Any

import pytest

from deltaserve.report.fields import parse

Make = Callable[..., dict[str, Any]]


def test_everything_is_read(make_report: Make):
    report = make_report(layers=3)
    found = parse(report)
    assert not found.unreadable
    assert found.quality is not None
    assert found.quality.kl_histogram is not None
    assert found.quality.kl_histogram.counts == report["quality"]["kl_histogram"]["counts"]
    assert [layer.error for layer in found.layers] == [layer["error"] for layer in report["layers"]]
    assert found.accuracy is not None
    assert found.accuracy.change == pytest.approx(-0.5)
    assert found.allocation is not None
    assert found.allocation.attempts[0].accuracy_drop is None


def test_a_malformed_part_leaves_the_others(make_report: Make):
    report = make_report()
    report |= {"accuracy": "good", "gate": {"failures": 3}, "layers": [{"layer": "x"}], "unknown": 1}
    found = parse(report)
    assert found.unreadable == ["accuracy", "layers", "gate"]
    assert found.quality is not None
    assert len(found.layers) == 8  # from the tensors' names


@pytest.mark.parametrize(
    "histogram",
    [
        {"edges": [1.0, 2.0], "counts": [1, 2]},
        {"edges": [0.0, 2.0], "counts": [1, 2, 3]},
        {"edges": [2.0, 1.0], "counts": [1, 2, 3]},
        {"edges": [1.0], "counts": [1, 2]},
        {"edges": [1.0, float("inf")], "counts": [1, 2, 3]},
        {"edges": [1.0, 2.0], "counts": [1, -2, 3]},
    ],
)
def test_histograms_that_cannot_be_drawn(make_report: Make, histogram: dict[str, Any]):
    report = make_report()
    report["quality"]["kl_histogram"] = histogram
    assert parse(report).unreadable == ["quality"]


def test_layers_of_version_1_come_from_its_tensors(make_report: Make):
    report = make_report(layers=3)
    del report["layers"]
    errors = [t["error"] for t in report["tensors"] if ".layers.2." in t["name"]]
    layer = parse(report).layers[2]
    assert layer.error == pytest.approx(sum(errors) / 4)
    assert layer.worst_error == max(errors)
