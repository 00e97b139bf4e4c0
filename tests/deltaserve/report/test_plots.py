import math
import random
import re
from xml.etree import ElementTree

import pytest

from deltaserve.report import plots
from deltaserve.report.fields import Attempt, ClassSize, Histogram, Layer

EDGES = [10 ** (step / 4) for step in range(-24, 5)]


def bars(picture: str, kind: str = "bar") -> list[ElementTree.Element]:
    return [e for e in ElementTree.fromstring(picture).iter("rect") if kind in e.get("class", "").split()]


def attribute(element: ElementTree.Element, name: str) -> float:
    return float(element.get(name, "nan"))


def test_scales():
    linear, log = plots.Scale(0, 10, 100, 200), plots.Scale(1e-3, 10, 0, 400, log=True)
    assert [linear(v) for v in (0, 5, 10, 99)] == [100, 150, 200, 200]
    assert [log(v) for v in (0.001, 0.1, 10, 0)] == pytest.approx([0, 200, 400, 0])


def test_bars_of_the_histogram_are_as_high_as_their_counts():
    counts = [0] * 30
    for bin_ in range(4, 20):
        counts[bin_] = random.randrange(1, 500)
    drawn = bars(plots.kl_histogram(Histogram(EDGES, counts), 1e-4, 1e-2))
    heights = [attribute(bar, "height") for bar in drawn]
    assert len(drawn) == 18  # the filled ones and one beside them
    unit = max(heights) / max(counts)
    assert heights == pytest.approx([count * unit for count in counts[3:21]], abs=0.02)


def test_marks_lie_between_the_edges_of_their_bins():
    counts = [5] * 30
    value = 10 ** random.uniform(-5.9, 0.9)
    bin_ = next(i for i, edge in enumerate(EDGES) if edge > value)
    picture = plots.kl_histogram(Histogram(EDGES, counts), value, None)
    mark = next(e for e in ElementTree.fromstring(picture).iter("line") if e.get("class") == "mark")
    bar = bars(picture)[bin_]
    assert attribute(bar, "x") - 1.1 <= attribute(mark, "x1") <= attribute(bar, "x") + attribute(bar, "width") + 1.1


@pytest.mark.parametrize("filled", [[], [0], [29], [0, 29], [14]])
def test_histograms_with_few_bins(filled: list[int]):
    counts = [3 if i in filled else 0 for i in range(30)]
    picture = plots.kl_histogram(Histogram(EDGES, counts), 1e-7, math.inf)
    assert len(bars(picture)) >= 7
    assert "nan" not in picture


@pytest.mark.parametrize("count", [1, 8, 126])
def test_layers(count: int):
    layers = [Layer(i, random.random() / 2, random.uniform(0.5, 1)) for i in range(count)]
    drawn = bars(plots.layer_errors(layers))
    heights = [attribute(bar, "height") for bar in drawn]
    unit = max(heights) / max(layer.error for layer in layers)
    assert heights == pytest.approx([layer.error * unit for layer in layers], abs=0.02)
    assert all(attribute(bar, "x") + attribute(bar, "width") <= plots.WIDTH for bar in drawn)


def test_layers_without_errors():
    assert len(bars(plots.layer_errors([Layer(0, 0.0, 0.0), Layer(1, 0.0)]))) == 2


def test_sizes_share_one_scale():
    sizes = {name: ClassSize(8.0, 2.0, 1, 1, 8 * size, size) for name, size in (("a", 900), ("b", 300))}
    picture = plots.class_sizes(sizes)
    whole, packed = ([attribute(bar, "width") for bar in bars(picture, kind)] for kind in ("checkpoint", "delta"))
    assert whole == pytest.approx([440, 440 / 3], abs=0.01)
    assert packed == pytest.approx([55, 55 / 3], abs=0.01)


def test_attempts_need_two_points():
    assert plots.attempts([Attempt(1.0, 0.1), Attempt(2.0, None)]) is None
    picture = plots.attempts([Attempt(1.0, 0.1), Attempt(2.0, 0.004), Attempt(2.0, 0.0)])
    assert picture is not None
    heights = [attribute(dot, "cy") for dot in ElementTree.fromstring(picture).iter("circle")]
    assert len(heights) == 2
    assert heights[0] < heights[1]


def test_every_picture_says_what_it_shows():
    picture = plots.layer_errors([Layer(0, 0.25)])
    root = ElementTree.fromstring(picture)
    ids = {e.get("id") for e in root.iter() if e.get("id")}
    assert set(root.get("aria-labelledby", "").split()) == ids
    assert re.search(r"largest mean is 0.250 in layer 0", picture)
