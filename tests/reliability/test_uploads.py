"""Uploads over connections that are cut at random places."""

import random
from pathlib import Path

import pytest

from benchmarks.reliability_cases.tiny import make_tiny
from benchmarks.reliability_cases.uploads import CHUNK, cut_upload


@pytest.mark.timeout(120)
async def test_an_upload_that_is_cut_again_and_again_arrives_whole(tmp_path: Path) -> None:
    found = await cut_upload(tmp_path, make_tiny(tmp_path / "tiny"), random.Random(), cuts=6)
    assert found.cuts == 6
    assert found.most_again <= CHUNK
    assert found.received <= found.size + found.cuts * CHUNK
