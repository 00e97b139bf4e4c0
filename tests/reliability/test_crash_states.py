"""Power cuts at every file operation: whatever is left opens, verifies, and has all that was acknowledged."""

import asyncio
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.reliability_cases.crash_states import CrashState, Op, crash_states, recording
from benchmarks.reliability_cases.crash_subjects import (
    check_store,
    check_upload,
    go_on_with_store,
    live_store,
    live_upload,
)
from benchmarks.reliability_cases.tiny import Tiny, make_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def _all(ops: list[Op], each: int, folder: Path, check: Callable[[Path, CrashState], object]) -> int:
    """Checks states; returns how many different ones there were."""
    seen = set()
    for state in crash_states(ops, random.Random(), each):
        key = hash((frozenset(state.files.items()), state.folders, state.acknowledged))
        if key in seen:
            continue
        seen.add(key)
        folder.mkdir()
        check(state.write(folder), state)
        shutil.rmtree(folder)
    return len(seen)


def test_every_state_of_the_store_opens_and_verifies(tmp_path: Path, tiny: Tiny) -> None:
    root = tmp_path / "store"
    root.mkdir()
    with recording(root) as recorder:
        asyncio.run(live_store(root, tiny, recorder))

    async def check(folder: Path, state: CrashState) -> None:
        await check_store(folder, state.acknowledged)
        if random.random() < 0.1:
            await go_on_with_store(folder, tiny)

    found = _all(recorder.ops, 2, tmp_path / "after", lambda folder, state: asyncio.run(check(folder, state)))
    assert found >= 80


def test_every_state_of_an_upload_goes_on(tmp_path: Path) -> None:
    root = tmp_path / "uploads"
    root.mkdir()
    with recording(root) as recorder:
        live_upload(root, recorder)
    found = _all(recorder.ops, 3, tmp_path / "after", lambda folder, state: check_upload(folder, state.acknowledged))
    assert found >= 50
