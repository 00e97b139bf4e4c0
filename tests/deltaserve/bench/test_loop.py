import asyncio
import resource

import pytest

from deltaserve.bench.loop import run_loop


def test_the_file_limit_is_as_high_as_it_may_be() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))

    async def limit() -> tuple[int, int]:
        await asyncio.sleep(0)
        return resource.getrlimit(resource.RLIMIT_NOFILE)

    try:
        assert run_loop(limit()) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_errors_come_out() -> None:
    async def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        run_loop(fail())
