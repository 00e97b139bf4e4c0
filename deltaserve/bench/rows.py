"""The tables of a run as text, for a terminal and for a page. A column whose name begins with `>` holds numbers."""

from __future__ import annotations

from dataclasses import dataclass

from deltaserve.bench.figures import Figures
from deltaserve.bench.percentiles import Distribution
from deltaserve.bench.summary import LATE_SECONDS, Summary
from deltaserve.report.units import NONE, number, percent

_OBJECTIVES = {"ttft": "TTFT", "inter_token": "inter-token", "e2e": "E2E", "all": "all of them"}


@dataclass(frozen=True, slots=True)
class Rows:
    """A table."""

    columns: tuple[str, ...]
    rows: list[list[str]]


def headline(summary: Summary) -> Rows:
    """Returns counts and rates."""
    total = summary.total
    rows = [
        ["requests", f"{total.requests:,}", _outcomes(total)],
        ["makespan", f"{number(total.seconds)} s", "from the first request due to the last answer's end"],
        ["throughput", f"{number(total.request_rate)} requests/s", "answered to the end"],
        ["output", f"{number(total.output_rate)} tokens/s", f"{total.output_tokens:,} tokens"],
        ["prompts", f"{number(total.prompt_rate)} tokens/s", f"{total.prompt_tokens:,} tokens"],
    ]
    if total.goodput is not None:
        rows.append(["goodput", f"{number(total.goodput)} requests/s", "met every objective"])
    if total.tiers:
        found = ", ".join(f"{tier} {count:,}" for tier, count in total.tiers.items())
        rows.append(["deltas found in", found, f"p99 of waiting for them {number(_ms(total.load.p99))} ms"])
    return Rows(("", ">", ""), rows)


def latencies(summary: Summary) -> Rows:
    """Returns the distributions of latencies in milliseconds."""
    total = summary.total
    named = (
        ("TTFT", total.ttft),
        ("inter-token, frame to frame", total.inter_token),
        ("time a token, by request", total.per_token),
        ("E2E", total.e2e),
        ("sent late (generator)", summary.generator.late),
    )
    rows = [[name, *(number(_ms(v)) for v in (d.mean, d.p50, d.p90, d.p99, d.most)), f"{d.count:,}"]
            for name, d in named]  # fmt: skip
    return Rows(("milliseconds", ">mean", ">p50", ">p90", ">p99", ">most", ">count"), rows)


def objectives(summary: Summary) -> Rows | None:
    """Returns attainment; None when no objective is set."""
    limits = {"ttft": summary.objectives.ttft, "inter_token": summary.objectives.inter_token,
              "e2e": summary.objectives.e2e}  # fmt: skip
    rows = []
    for name, share in summary.total.attainment.items():
        limit = limits.get(name)
        rows.append([_OBJECTIVES[name], f"{number(_ms(limit))} ms" if limit is not None else "", percent(share)])
    return Rows(("objective", ">at most", ">met by"), rows) if rows else None


def models(summary: Summary, most: int | None = None) -> Rows:
    """Returns a row for each model, the most asked for first, or for the first `most`."""
    columns = ("model", ">requests", ">failed", ">tokens/s", ">TTFT p50", ">p99", ">inter-token p50", ">p99",
               ">E2E p50", ">p99", ">objectives met")  # fmt: skip
    shown = len(columns) - (not summary.total.attainment)  # nothing can meet what is not set
    found = list(summary.models.items())[:most]
    return Rows(columns[:shown], [[name, *_model(one)][:shown] for name, one in found])


def verdict(summary: Summary) -> str:
    """Returns whether the generator kept up, in a sentence."""
    generator = summary.generator
    used = f"{percent(generator.cpu, 0)} of a core"
    late = f"{percent(generator.late_share)} of requests more than {1000 * LATE_SECONDS:.0f} ms late"
    if generator.kept_up:
        return f"The generator kept up: {used}, {late}."
    advice = "use more --processes" if generator.cpu > 0.5 else "this machine is too busy, or was asked for a burst"
    return f"The generator did not keep up: {used}, {late}. Latencies are partly its own: {advice}."


def _model(one: Figures) -> list[str]:
    pairs = (one.ttft, one.inter_token, one.e2e)
    met = one.attainment.get("all")
    return [
        f"{one.requests:,}", f"{sum(one.errors.values()):,}", number(one.output_rate),
        *(number(_ms(v)) for d in pairs for v in _ends(d)), percent(met) if met is not None else NONE,
    ]  # fmt: skip


def _ends(found: Distribution) -> tuple[float | None, float | None]:
    return found.p50, found.p99


def _outcomes(total: Figures) -> str:
    parts = [f"{total.ok:,} answered"]
    if total.cancelled:
        parts.append(f"{total.cancelled:,} left by clients as planned")
    parts += [f"{count:,} {status}" for status, count in total.errors.items()]
    return ", ".join(parts)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds
