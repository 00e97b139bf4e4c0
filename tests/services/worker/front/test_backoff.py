"""How long a delta that fails is left alone."""

import random

import pytest

from deltaserve.errors import DataLossError
from services.worker.front.backoff import Backoff


def test_times_grow_from_the_third_failure_on_and_end() -> None:
    backoff, now = Backoff(), random.uniform(0, 1e6)
    found = []
    for _ in range(12):
        found.append(backoff.failed("m@1", DataLossError("bad"), now))
        now += found[-1]
    assert found == [0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60]


def test_only_that_delta_waits_and_only_until_its_time() -> None:
    backoff, error = Backoff(), DataLossError("bad")
    for _ in range(3):
        backoff.failed("m@1", error, 10.0)
    with pytest.raises(DataLossError) as raised:
        backoff.check("m@1", 10.9)
    assert raised.value is error
    backoff.check("m@1", 11.0)
    backoff.check("m@2", 10.0)


def test_success_forgets() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.failed("m@1", DataLossError("bad"), 0.0)
    backoff.succeeded("m@1")
    backoff.check("m@1", 0.0)
    assert backoff.failed("m@1", DataLossError("bad"), 0.0) == 0.0
