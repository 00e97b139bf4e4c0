import random

import msgspec
import pytest

from deltaserve.bench.figures import Objectives, figures
from deltaserve.bench.records import OK, Record
from deltaserve.bench.summary import LATE_SECONDS, Summary, summarise, timeline
from deltaserve.errors import InvalidArgumentError


def summary_of(records: list[Record], warm_up: float = 0.0, objectives: Objectives | None = None) -> Summary:
    settings = {"rate": 2.0, "trace": None}
    return summarise(records, objectives or Objectives(), warm_up=warm_up, cpu=[0.1, 0.4], settings=settings)


def test_models_add_up_to_the_whole(records: list[Record]) -> None:
    found = summary_of(records, objectives=Objectives(ttft=0.6))
    for name in ("requests", "ok", "cancelled", "output_tokens", "prompt_tokens", "tokens_of_failed"):
        assert sum(getattr(one, name) for one in found.models.values()) == getattr(found.total, name)
    asked = [one.requests for one in found.models.values()]
    assert asked == sorted(asked, reverse=True)
    met = sum(one.attainment["ttft"] * (one.requests - one.cancelled) for one in found.models.values())
    assert met == pytest.approx(found.total.attainment["ttft"] * (found.total.requests - found.total.cancelled))


def test_the_warm_up_is_not_counted(records: list[Record]) -> None:
    found = summary_of(records, 20.0)
    kept = [r for r in records if r.due >= 20.0]
    assert 0 < len(kept) < len(records)
    assert found.total == figures(kept, Objectives())
    with pytest.raises(InvalidArgumentError, match="shorten"):
        summary_of(records, 1e9)


def test_the_timeline_holds_every_request_and_token(records: list[Record]) -> None:
    found = timeline(records)
    assert sum(found.due) == len(records)
    assert sum(found.tokens) == pytest.approx(sum(r.output_tokens for r in records))
    assert found.running[-1] == 0
    assert found.seconds * len(found.due) == pytest.approx(max(r.ended for r in records))
    i = random.randrange(len(found.running) - 1)
    edge = (i + 1) * found.seconds
    assert found.running[i] == sum(r.due < edge <= r.ended for r in records)


def test_a_generator_that_is_late_says_so(records: list[Record]) -> None:
    for record in records:
        record.sent = record.due
    assert summary_of(records).generator.kept_up
    late = random.sample(records, len(records) // 10)
    for record in late:
        record.sent = record.due + 2 * LATE_SECONDS
    found = summary_of(records).generator
    assert found.late_share == pytest.approx(len(late) / len(records))
    assert found.late.most == pytest.approx(2 * LATE_SECONDS)
    assert not found.kept_up
    assert (found.processes, found.cpu) == (2, 0.4)


def test_json_and_back(records: list[Record]) -> None:
    found = summary_of(records, objectives=Objectives(e2e=1.0))
    assert msgspec.json.decode(msgspec.json.encode(found), type=Summary) == found
    assert found.curves["e2e"][100] == max(r.e2e for r in records if r.status == OK)
