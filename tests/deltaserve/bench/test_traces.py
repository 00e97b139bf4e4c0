import json
import random
from pathlib import Path

import pytest

from deltaserve.bench.traces import read_trace, replay, write_trace
from deltaserve.bench.workload import Planned
from deltaserve.errors import FormatError, InvalidArgumentError

ROW = {"id": 0, "prompt": "USER: hi", "timestamp": 1.5, "model": "delta-9", "min_tokens": 7, "max_tokens": 7,
       "ignore_eos": True}  # fmt: skip
PUBLISHED = sorted((Path(__file__).parents[4] / "shared" / "traces").glob("azure*.jsonl"))


def made(count: int = 30) -> list[Planned]:
    times = sorted(random.uniform(0, 60) for _ in range(count))
    return [
        Planned(at, f"delta-{random.randint(1, 12)}", random.choice(["text é\n", [1, 2, 300]]), random.randint(1, 9),
                cancel_after=random.choice([None, 1])) for at in times
    ]  # fmt: skip


def test_what_is_written_is_read(tmp_path: Path) -> None:
    planned = made()
    write_trace(tmp_path / "t.jsonl", planned)
    assert read_trace(tmp_path / "t.jsonl") == planned


def test_rows_of_the_published_kind(tmp_path: Path) -> None:
    later = ROW | {"timestamp": 0.5, "model": "base-model"}
    (tmp_path / "t.jsonl").write_text(f"{json.dumps(ROW)}\n\n{json.dumps(later)}\n")
    first, second = read_trace(tmp_path / "t.jsonl")
    assert (first.at, first.model) == (0.5, "base-model")
    assert second == Planned(1.5, "delta-9", "USER: hi", 7, 7, True)


@pytest.mark.skipif(not PUBLISHED, reason="the published traces are not here")
def test_the_published_traces() -> None:
    for path in PUBLISHED:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found = read_trace(path)
        assert len(found) == len(rows)
        assert sum(one.max_tokens for one in found) == sum(row["max_tokens"] for row in rows)


@pytest.mark.parametrize("line", ["{", "[]", '{"timestamp": 1}', json.dumps(ROW | {"max_tokens": "x"})])
def test_a_malformed_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n{line}\n")
    with pytest.raises(FormatError, match=r"t\.jsonl line 2"):
        read_trace(path)
    path.write_text("\n")
    with pytest.raises(FormatError, match="no request"):
        read_trace(path)


def test_models_stand_for_those_of_the_trace_by_number() -> None:
    trace = [Planned(i, f"delta-{n}", "p", 1) for i, n in enumerate((10, 2, 9, 2))]
    assert [one.model for one in replay(trace, ["a", "b"], 1.0, None)] == ["a", "a", "b", "a"]
    assert replay(trace, [], 1.0, None) == trace


def test_speed_and_end() -> None:
    trace = made()
    speed = random.uniform(0.5, 20)
    fast = replay(trace, [], speed, 30 / speed)
    assert [one.at for one in fast] == [one.at / speed for one in trace if one.at / speed < 30 / speed]
    with pytest.raises(InvalidArgumentError, match="speed"):
        replay(trace, [], 0.0, None)
    with pytest.raises(InvalidArgumentError, match="no request"):
        replay(trace, [], 1e-6, 1.0)
