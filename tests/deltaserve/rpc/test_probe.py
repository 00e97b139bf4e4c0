import asyncio
import sys

from deltaserve.rpc.probe import probe
from deltaserve.rpc.servers import serving


async def test_the_probe_follows_health() -> None:
    async with serving("127.0.0.1:0", lambda _: None, []) as host:
        address = f"127.0.0.1:{host.port}"
        assert await asyncio.to_thread(probe, address) == "NOT_SERVING"
        await host.set_serving(True)
        assert await asyncio.to_thread(probe, address) == "SERVING"
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "deltaserve.rpc.probe", address)
        assert await process.wait() == 0
    assert await asyncio.to_thread(probe, address) == "UNAVAILABLE"
