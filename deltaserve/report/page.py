"""The whole page: one file without scripts that asks nothing of any network."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from deltaserve.report import sections
from deltaserve.report.fields import parse
from deltaserve.report.markup import Html, join, tag

PAGE_FILE = "report.html"

# no script, no request: even if escaping had a hole, nothing in a report could run or call home
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render(report: Mapping[str, Any], title: str) -> str:
    """Returns a quality report as an HTML document.

    Args:
        report: parsed JSON of version 1 or 2, trusted in nothing; docs/quality-report.md. Parts may be missing.
        title: what was compressed, e.g. `model@revision`.
    """
    found = parse(report)
    halves = (sections.comparison, sections.sizes, sections.spread, sections.layers)
    grid = [part for part in (make(found) for make in halves) if part is not None]
    body = tag(
        "main",
        tag("header", tag("p", "Quality report", class_="kicker"), tag("h1", tag("bdi", title))),
        sections.verdict(found),
        sections.tiles(found),
        tag("div", *grid, class_="halves") if grid else None,
        sections.allocation(found),
        sections.generations(found),
        sections.worst(found),
        sections.footer(found),
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} · quality report"),
        tag("style", _css()),
    )
    return f"<!doctype html>\n{tag('html', join([head, tag('body', body)]), lang='en')}\n"


@cache
def _css() -> Html:
    return Html(files(__package__).joinpath("page.css").read_text(encoding="utf-8"))
