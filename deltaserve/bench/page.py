"""A run as a page: one file without scripts, in the look of the quality report. Pure."""

from __future__ import annotations

from deltaserve.bench import plots, rows
from deltaserve.bench.rows import Rows
from deltaserve.bench.summary import Summary
from deltaserve.report.document import document
from deltaserve.report.markup import Child, Html, tag
from deltaserve.report.sections import section
from deltaserve.report.tables import table
from deltaserve.report.units import number, percent

_NAMES = {"ttft": "TTFT", "inter_token": "time between frames", "e2e": "E2E"}


def render(summary: Summary, title: str, hardware: str = "") -> str:
    """Returns the page.

    Args:
        summary: of the run; trusted in nothing, names are escaped.
        title: what was measured.
        hardware: on what, as far as is known.
    """
    objectives = rows.objectives(summary)
    body = tag(
        "main",
        tag("header", tag("p", "Load test", class_="kicker"), tag("h1", tag("bdi", title))),
        tag("div", tag("p", rows.verdict(summary)), class_=f"verdict {'good' if summary.generator.kept_up else 'bad'}"),
        _tiles(summary),
        section("figures", "Requests and rates", _table("Requests and rates", rows.headline(summary))),
        section("latencies", "Latencies", _table("Latencies", rows.latencies(summary))),
        section("objectives", "Objectives", _table("Objectives", objectives)) if objectives else None,
        section("spreads", "How latencies spread", tag("div", *_spreads(summary), class_="halves")),
        section("time", "Over time", tag("div", *_timelines(summary), class_="halves")),
        _models(summary),
        section("settings", "Settings", _settings(summary)),
        tag("footer", tag("p", hardware)) if hardware else None,
    )
    return document(f"{title} · load test", body)


def _tiles(summary: Summary) -> Html:
    total = summary.total
    found = [
        ("Output", f"{number(total.output_rate)}", "tokens/s over the makespan"),
        ("Throughput", f"{number(total.request_rate)}", "requests/s answered to the end"),
        ("TTFT", f"{_ms(total.ttft.p50)} ms", f"p99 {_ms(total.ttft.p99)} ms"),
        ("Inter-token", f"{_ms(total.inter_token.p50)} ms", f"p99 {_ms(total.inter_token.p99)} ms"),
        ("E2E", f"{_ms(total.e2e.p50)} ms", f"p99 {_ms(total.e2e.p99)} ms"),
    ]
    if total.goodput is not None:
        met = percent(total.attainment["all"])
        found.insert(2, ("Goodput", number(total.goodput), f"requests/s; {met} met every objective"))
    tiles = (
        tag("div", tag("dt", name), tag("dd", value, class_="figure"), tag("dd", note, class_="note"))
        for name, value, note in found
    )
    return tag("dl", *tiles, class_="tiles")


def _spreads(summary: Summary) -> list[Html]:
    limits = {"ttft": summary.objectives.ttft, "e2e": summary.objectives.e2e}
    return [
        tag("figure", plots.spread(key.replace("_", "-"), _NAMES[key], values, limits.get(key)))
        for key, values in summary.curves.items()
        if values
    ]


def _timelines(summary: Summary) -> list[Html]:
    line = summary.timeline
    quantities: dict[str, list[float]] = {
        "requests due a second": [due / line.seconds for due in line.due],
        "tokens a second": [tokens / line.seconds for tokens in line.tokens],
        "requests under way": [float(running) for running in line.running],
    }
    return [
        tag("figure", plots.over_time(f"over-time-{i}", name, values, line))
        for i, (name, values) in enumerate(quantities.items())
    ]


def _models(summary: Summary) -> Html:
    plot = plots.by_model(summary.models)
    drawn = tag("figure", plot) if plot is not None else None
    return section("by-model", "Models", drawn, _table("Models; times in milliseconds", rows.models(summary)))


def _settings(summary: Summary) -> Html:
    facts = (
        tag("div", tag("dt", name), tag("dd", str(value)))
        for name, value in summary.settings.items()
        if value is not None and value != ""
    )
    return tag("dl", *facts, class_="facts")


def _table(caption: str, found: Rows) -> Html:
    cells: list[list[Child]] = [list(row) for row in found.rows]
    return table(caption, found.columns, cells)


def _ms(seconds: float | None) -> str:
    return number(None if seconds is None else 1000 * seconds)
