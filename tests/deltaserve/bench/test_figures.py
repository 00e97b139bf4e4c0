import numpy as np
import pytest

from deltaserve.bench.figures import Objectives, figures, gaps, meets
from deltaserve.bench.records import CANCELLED, OK, Record
from tests.deltaserve.bench.conftest import make_record


def test_counts_add_up(records: list[Record]) -> None:
    found = figures(records, Objectives())
    assert found.requests == len(records) == found.ok + found.cancelled + sum(found.errors.values())
    assert found.errors.keys() == {"UNAVAILABLE", "HTTP 503"}
    assert found.output_tokens + found.tokens_of_failed == sum(r.output_tokens for r in records)
    assert found.goodput is None
    assert found.attainment == {}


def test_rates_are_over_the_makespan(records: list[Record]) -> None:
    found = figures(records, Objectives())
    makespan = max(r.ended for r in records) - min(r.due for r in records)
    good = [r for r in records if r.status in {OK, CANCELLED}]
    assert found.seconds == makespan
    assert found.request_rate * makespan == pytest.approx(found.ok)
    assert found.output_rate * makespan == pytest.approx(sum(r.output_tokens for r in good))
    assert found.prompt_rate * makespan == pytest.approx(sum(r.prompt_tokens for r in good))
    assert found.frame_tokens == pytest.approx(1.0)


def test_latencies_count_from_when_a_request_was_due(records: list[Record]) -> None:
    found = figures(records, Objectives())
    good = [r for r in records if r.status in {OK, CANCELLED}]
    firsts = [r.times[0] - r.due for r in good]
    ends = [r.ended - r.due for r in records if r.status == OK]
    assert found.ttft.p99 == np.percentile(firsts, 99, method="inverted_cdf")
    assert found.e2e.p50 == np.percentile(ends, 50, method="inverted_cdf")
    assert found.ttft.count == len(good)
    assert found.e2e.count == found.ok


def test_gaps_are_within_requests(records: list[Record]) -> None:
    found = list(gaps(records))
    expected = np.concatenate([np.diff(np.frombuffer(r.frames)) for r in records])
    assert found == pytest.approx(expected.tolist())


def test_objectives_are_judged_on_all_but_the_cancelled(records: list[Record]) -> None:
    objectives = Objectives(ttft=0.5, inter_token=0.05, e2e=1.5)
    found = figures(records, objectives)
    judged = [r for r in records if r.status != CANCELLED]
    met = [
        r.status == OK and r.times[0] - r.due <= 0.5 and r.ended - r.due <= 1.5
        and (len(r.times) < 2 or (r.times[-1] - r.times[0]) / (r.output_tokens - 1) <= 0.05)
        for r in judged
    ]  # fmt: skip
    assert 0 < sum(met) < len(met)
    assert found.attainment["all"] == pytest.approx(sum(met) / len(judged))
    assert found.goodput == pytest.approx(sum(met) / found.seconds)
    assert found.attainment["all"] <= min(found.attainment[name] for name in ("ttft", "inter_token", "e2e"))


def test_a_failure_meets_nothing() -> None:
    failed = make_record("NOT_FOUND")
    assert meets(failed, Objectives(1e9, 1e9, 1e9)) == {"ttft": False, "inter_token": False, "e2e": False}
    assert meets(failed, Objectives()) == {}
    found = figures([failed], Objectives(ttft=1e9))
    assert (found.ok, found.goodput, found.attainment["all"]) == (0, 0.0, 0.0)
    assert found.ttft.count == 0


def test_a_merged_frame_counts_its_tokens() -> None:
    record = make_record()
    record.output_tokens = 1 + 3 * (len(record.times) - 1)
    found = figures([record], Objectives())
    assert found.frame_tokens == pytest.approx(record.output_tokens / len(record.times))
    if len(record.times) > 1:
        assert record.per_token == pytest.approx((record.times[-1] - record.times[0]) / (record.output_tokens - 1))


def test_tiers_are_of_answered_requests(records: list[Record]) -> None:
    found = figures(records, Objectives())
    assert sum(found.tiers.values()) == sum(r.status == OK and r.tier != "" for r in records)
    waited = [r.load for r in records if r.status == OK and r.tier]
    assert found.load.most == max(waited)
