"""The whole of a run as one JSON document; everything that is shown is made from it. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import msgspec

from deltaserve.bench.figures import Figures, Objectives, figures, first_tokens, gaps
from deltaserve.bench.percentiles import Distribution, curve, distribution
from deltaserve.bench.records import CANCELLED, OK, Record
from deltaserve.errors import InvalidArgumentError

LATE_SECONDS = 0.01
_BINS = 60


class Generator(msgspec.Struct):
    """How well the load generator itself kept up.

    Attributes:
        processes: how many there were.
        cpu: share of one core that the busiest of them used.
        late: seconds between when requests were due and when they were sent.
        late_share: share of requests sent more than LATE_SECONDS late.
    """

    processes: int
    cpu: float
    late: Distribution
    late_share: float

    @property
    def kept_up(self) -> bool:
        """Whether the figures are the server's rather than the generator's."""
        return self.late_share <= 0.01 and self.cpu < 0.9


class Timeline(msgspec.Struct):
    """A run over its time, in equal bins.

    Attributes:
        seconds: length of a bin.
        due: requests that were due in each; `tokens`: that came; `running`: requests under way at its end.
    """

    seconds: float
    due: list[int]
    tokens: list[float]
    running: list[int]


class Summary(msgspec.Struct):
    """A run.

    Attributes:
        version: of this document.
        settings: what was asked for, as options.
        objectives: what attainment and goodput refer to.
        warm_up: requests that were due before this many seconds are sent but not counted.
        total: figures of all; `models`: by model, the most asked for first.
        generator: how well the load generator kept up.
        timeline: of all requests, warm-up included.
        curves: percentiles 0 to 100 of `ttft`, `inter_token`, `e2e`, in seconds.
    """

    version: int
    settings: dict[str, str | float | int | bool | None]
    objectives: Objectives
    warm_up: float
    total: Figures
    models: dict[str, Figures]
    generator: Generator
    timeline: Timeline
    curves: dict[str, list[float]]


def summarise(
    records: Sequence[Record],
    objectives: Objectives,
    *,
    warm_up: float,
    cpu: Sequence[float],
    settings: Mapping[str, str | float | int | bool | None],
) -> Summary:
    """Returns what a run comes to.

    Args:
        records: of all processes.
        objectives: to judge by.
        warm_up: seconds that are not counted.
        cpu: share of a core that each generator process used.
        settings: told as they are.

    Raises:
        InvalidArgumentError: no request is left after the warm-up.
    """
    counted = [record for record in records if record.due >= warm_up]
    if not counted:
        raise InvalidArgumentError(
            f"all {len(records)} requests were due within the warm-up of {warm_up:g} s; shorten it", field="warm_up"
        )
    by_model: dict[str, list[Record]] = defaultdict(list)
    for record in counted:
        by_model[record.model].append(record)
    good = [record for record in counted if record.status in {OK, CANCELLED}]
    late = [record.sent - record.due for record in counted]
    return Summary(
        version=1,
        settings=dict(settings),
        objectives=objectives,
        warm_up=warm_up,
        total=figures(counted, objectives),
        models={m: figures(of, objectives) for m, of in sorted(by_model.items(), key=lambda i: (-len(i[1]), i[0]))},
        generator=Generator(
            len(cpu), max(cpu), distribution(late), sum(seconds > LATE_SECONDS for seconds in late) / len(late)
        ),
        timeline=timeline(records),
        curves={
            "ttft": curve(first_tokens(good)),
            "inter_token": curve(gaps(good)),
            "e2e": curve(record.e2e for record in good if record.status == OK),
        },
    )


def timeline(records: Sequence[Record]) -> Timeline:
    """Returns records over time, in at most 60 bins."""
    width = max([1e-6, *(record.ended for record in records)]) / _BINS
    due, tokens, change = [0] * _BINS, [0.0] * _BINS, [0] * (_BINS + 1)
    for record in records:
        due[_bin(record.due, width)] += 1
        change[_bin(record.due, width)] += 1
        change[_bin(record.ended, width)] -= 1
        times = record.times.tolist() if record.frames else []
        for time in times:
            tokens[_bin(time, width)] += record.output_tokens / len(times)
    running, now = [], 0
    for step in change[:_BINS]:
        now += step
        running.append(now)
    return Timeline(width, due, tokens, running)


def _bin(seconds: float, width: float) -> int:
    return min(max(int(seconds / width), 0), _BINS - 1)
