import copy
import json
import random
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltaserve.report.page import render
from tests.deltaserve.report.conftest import HOSTILE

Make = Callable[..., dict[str, Any]]
ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "main", "header", "footer", "section", "article", "div", "p",
    "h1", "h2", "ul", "li", "dl", "dt", "dd", "pre", "code", "bdi", "b", "i", "small", "strong", "span", "mark", "br",
    "wbr", "table", "caption", "thead", "tbody", "tr", "th", "td", "details", "summary", "figure", "svg", "desc",
    "rect", "line", "text", "circle", "polyline",
}  # fmt: skip


class Reader(HTMLParser):
    """Collects elements, attributes and texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.update(name for name, _ in attrs)
        if tag not in {"meta", "br", "wbr"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def check(page: str) -> Reader:
    """Asserts that a page is well nested, and can neither run nor fetch anything."""
    read = Reader(page)
    assert not read.open
    assert set(read.tags) <= ALLOWED
    assert not {a for a in read.attributes if a.startswith("on")} | (
        read.attributes & {"src", "href", "style", "action"}
    )
    style = page[page.index("<style>") : page.index("</style>")]
    assert not re.search(r"url\(|@import|@font-face", style)
    page.encode()
    return read


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def test_a_whole_report(make_report: Make):
    report = make_report()
    page = render(report, "french@3")
    text = " ".join(check(page).texts).replace("\u202f", " ")
    for shown in ("french@3", "Refused.", "99.3 %", "0.00188", "10.0×", "86.0 %", "−0.5 points", "13.1 GB", "200 rows"):
        assert shown in text
    for prompt in report["generations"]["prompts"]:
        assert prompt["prompt"] in text
        assert prompt["fine_tune"]["text"] in text
    worst = max(report["tensors"], key=lambda tensor: tensor["error"])
    assert text.index(re.search(r"\d+", worst["name"])[0], text.index("Tensors with the largest errors"))  # type: ignore[index]
    assert page == render(json.loads(json.dumps(report)), "french@3")


def test_every_part_may_be_missing(make_report: Make):
    report = make_report()
    for key in report:
        check(render({k: v for k, v in report.items() if k != key}, "m"))
        check(render({key: report[key]}, "m"))
        check(render(report | {key: None}, "m"))
    assert "m · quality report" in check(render({}, "m")).texts


def test_version_1(make_report: Make):
    report = make_report()
    for key in ("layers", "generations", "allocation"):
        del report[key]
    for key in ("kl_p50", "kl_p99", "kl_histogram", "counted"):
        del report["quality"][key]
    for tensor in report["tensors"]:
        del tensor["bits_per_parameter"]
    text = " ".join(check(render(report | {"version": 1}, "m")).texts)
    assert "Error by layer" in text
    assert "Side by side" not in text
    assert "could not be read" not in text


def test_verdicts(make_report: Make):
    def said(**changes: Any) -> str:
        return " ".join(check(render(make_report() | changes, "m")).texts)

    assert "Passed." in said(gate={"passed": True, "failures": []})
    assert "No quality policy" in said(gate={"passed": True, "failures": []}, policy={})
    assert "KL is 9 nats" in said(gate={"passed": False, "failures": ["KL is 9 nats"]})
    assert "Left out: too large" in said(generations={"prompts": [], "left_out": "too large"})


def test_hostile_strings_stay_text(make_report: Make):
    pool = [*HOSTILE] * 3
    random.shuffle(pool)
    report = make_report(name=lambda: random.choice(pool) + random.choice(pool))
    report["tensors"][0] |= {"name": HOSTILE[0], "codec": HOSTILE[1]}
    report["sizes"]["by_class"][HOSTILE[1]] = report["sizes"]["by_class"]["norm"]
    report["allocation"]["choices"][HOSTILE[2]] = 3
    report["quality"]["counted"][HOSTILE[0]] = 1
    report["policy"][HOSTILE[1]] = 2.0
    read = check(render(report, HOSTILE[1]))
    assert read.tags.count("h1") == 1
    assert any("<script>alert(1)</script>" in text for text in read.texts)


def test_figures_that_are_no_numbers(make_report: Make):
    for bad in (float("nan"), float("inf"), None, 0.0, -1.0):
        report = make_report()
        report["quality"] |= {"kl": bad, "kl_p50": bad, "kl_p99": bad, "top1_agreement": bad}
        report["accuracy"] |= {"compressed": bad}
        for part in (*report["layers"], *report["tensors"]):
            part["error"] = bad if bad is not None else 0.1
        for attempt in report["allocation"]["attempts"]:
            attempt |= {"bits": bad if bad is not None else 1.0, "kl": bad}
        check(render(report, "m"))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from((10**400, -1, 1e-320))
    | st.floats()
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(st.data())
def test_anything_in_place_of_anything(make_report: Make, data: st.DataObject):
    report = make_report(layers=2, seed=0)
    for _ in range(data.draw(st.integers(1, 4))):
        node: Any = report
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = data.draw(st.sampled_from(keys))
            if isinstance(node[key], dict | list) and node[key] and data.draw(st.booleans()):
                node = node[key]
                continue
            node[key] = data.draw(json_values)
            break
    before = copy.deepcopy(report)
    check(render(report, "m"))
    assert repr(report) == repr(before)
