"""The page of a run in a real browser: nothing overflows, nothing is cut, nothing is fetched."""

from collections.abc import Callable
from typing import Any

import pytest

from deltaserve.bench.figures import Objectives
from deltaserve.bench.page import render
from deltaserve.bench.records import Record
from deltaserve.bench.summary import summarise
from tests.deltaserve.report.test_browser import browser, open_page  # noqa: F401 - fixtures


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_and_is_quiet(
    records: list[Record],
    open_page: Callable[..., tuple[dict[str, Any], str]],  # noqa: F811 - the fixture
    width: int,
) -> None:
    summary = summarise(records, Objectives(0.5, 0.1, 2.0), warm_up=0, cpu=[0.1], settings={"rate": 2.0})
    found, console = open_page(render(summary, "127.0.0.1:50051"), width)
    assert found["content"] <= found["width"] <= width
    assert found["cut"] == []
    assert len(found["plots"]) == 7
    assert (found["fetched"], found["foreign"], console) == (0, 0, "")
