"""A task that runs beside a block and ends with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any


@contextlib.asynccontextmanager
async def alongside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs `work` beside the block, and cancels and awaits it at the block's end; how it ended does not matter.

    Awaiting a cancelled task under `suppress(CancelledError)` would also swallow a cancellation of the caller that
    comes in that moment, and the caller would go on for ever; `asyncio.wait` lets it through.
    """
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # else asyncio complains that nobody asked
