import random
from xml.etree import ElementTree

import pytest

from deltaserve.bench import plots, rows
from deltaserve.bench.figures import Objectives
from deltaserve.bench.page import render
from deltaserve.bench.records import Record
from deltaserve.bench.summary import Summary, summarise
from deltaserve.report.axes import LEFT, PLOT, RIGHT, TOP, WIDTH
from tests.deltaserve.bench.conftest import make_record
from tests.deltaserve.report.conftest import HOSTILE as STRINGS
from tests.deltaserve.report.test_page import check

HOSTILE = " ".join(STRINGS)


def summary_of(records: list[Record], objectives: Objectives | None = None) -> Summary:
    settings = {"rate": 2.0, "prompts": HOSTILE}
    return summarise(records, objectives or Objectives(0.5, 0.1, 2.0), warm_up=0, cpu=[0.1], settings=settings)


def test_a_page_shows_everything_and_runs_nothing(records: list[Record]) -> None:
    for record in records[:5]:
        record.model = HOSTILE
    found = summary_of(records)
    read = check(render(found, HOSTILE, "a machine"))
    text = " ".join(read.texts)
    for heading in ("Latencies", "Objectives", "Over time", "TTFT by model", "Settings"):
        assert heading in text
    assert read.tags.count("svg") == 3 + 3 + 1
    for name in found.models:
        assert name.replace("\x00", "\ufffd") in text or name == HOSTILE


@pytest.mark.parametrize("status", ["OK", "UNAVAILABLE"])
def test_a_page_of_one_request(status: str) -> None:
    record = make_record(status)
    if status != "OK":
        record.frames, record.output_tokens = b"", 0
    page = render(summary_of([record], Objectives()), "one")
    check(page)
    assert "nan" not in page


def test_spread_climbs_from_the_least_to_the_most() -> None:
    values = sorted(random.lognormvariate(-2, 1) for _ in range(101))
    picture = ElementTree.fromstring(plots.spread("k", "TTFT", values, values[70]))
    path = next(e for e in picture.iter("polyline")).get("points", "").split()
    points = [tuple(map(float, point.split(","))) for point in path]
    assert [p[0] for p in points] == sorted(p[0] for p in points)
    assert points[0][1] == TOP + PLOT
    assert points[-1][1] == TOP
    marked = next(e for e in picture.iter("line") if e.get("class") == "mark")
    assert float(marked.get("x1", "")) == pytest.approx(points[70][0], abs=0.1)


def test_over_time_is_as_high_as_its_values(records: list[Record]) -> None:
    line = summary_of(records).timeline
    picture = ElementTree.fromstring(plots.over_time("k", "running", [float(v) for v in line.running], line))
    points = next(e for e in picture.iter("polyline")).get("points", "").split()
    heights = [TOP + PLOT - float(point.split(",")[1]) for point in points[::2]]
    unit = max(heights) / max(line.running)
    assert heights == pytest.approx([value * unit for value in line.running], abs=0.11)
    assert LEFT <= float(points[0].split(",")[0]) < float(points[-1].split(",")[0]) <= WIDTH - RIGHT + 0.1


def test_tables_say_what_the_figures_say(records: list[Record]) -> None:
    found = summary_of(records)
    counted = rows.headline(found).rows[0]
    assert counted[1] == f"{len(records):,}"
    assert f"{found.total.errors['HTTP 503']} HTTP 503" in counted[2]
    table = rows.models(found)
    assert sum(int(row[1]) for row in table.rows) == len(records)
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert len(rows.models(found, 2).rows) == 2
    without = summary_of(records, Objectives())
    assert rows.objectives(without) is None
    assert rows.models(without).columns == table.columns[:-1]
    assert {len(row) for row in rows.models(without).rows} == {len(table.columns) - 1}
    assert [row[0] for row in (rows.objectives(found) or table).rows] == ["TTFT", "inter-token", "E2E", "all of them"]
