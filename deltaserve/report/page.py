"""The whole page of a quality report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltaserve.report import sections
from deltaserve.report.document import document
from deltaserve.report.fields import parse
from deltaserve.report.markup import tag

PAGE_FILE = "report.html"


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
    return document(f"{title} · quality report", body)
