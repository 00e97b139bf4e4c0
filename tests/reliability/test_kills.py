"""Services killed under load: right tokens or a proper status, and no acknowledged upload lost."""

import random
from pathlib import Path

import pytest

from benchmarks.reliability_cases.kills import under_fire
from benchmarks.reliability_cases.tiny import make_tiny


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_kills_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    tiny = make_tiny(tmp_path / "tiny")
    tally = await under_fire(tmp_path, tiny, random.Random(), kills=3, seconds=60, streams=3, pace=5)
    assert tally.killed
    assert tally.streams["same tokens"]
    assert not tally.wrong
