"""Tasks beside blocks, and cancellations that must not be lost."""

from __future__ import annotations

import asyncio

import pytest

from deltaserve.alongside import alongside


async def test_the_task_ends_with_the_block() -> None:
    seen: list[str] = []

    async def work() -> None:
        try:
            seen.append("began")
            await asyncio.Event().wait()
        finally:
            seen.append("ended")

    async with alongside(work()):
        await asyncio.sleep(0)
        assert seen == ["began"]
    assert seen == ["began", "ended"]


async def test_what_the_task_raised_stays_with_it() -> None:
    async def work() -> None:
        raise ValueError("broken")

    async with alongside(work()):
        await asyncio.sleep(0)
    with pytest.raises(KeyError):
        async with alongside(work()):
            await asyncio.sleep(0)
            raise KeyError("the block's own")


async def test_a_cancellation_while_the_task_ends_is_not_lost() -> None:
    release = asyncio.Event()
    ending = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await release.wait()

    went_on = False

    async def caller() -> None:
        nonlocal went_on
        async with alongside(work()):
            await asyncio.sleep(0)
        went_on = True

    task = asyncio.create_task(caller())
    await ending.wait()
    task.cancel()  # the caller is waiting for its task now
    await asyncio.wait({task}, timeout=60)
    release.set()
    assert task.cancelled()
    assert not went_on
