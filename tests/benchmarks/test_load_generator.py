"""The trivial servers that the load generator is measured against give what is asked for."""

import pytest

from benchmarks.load_generator import send, served


@pytest.mark.parametrize("protocol", ["gRPC", "HTTP"])
async def test_servers_send_a_frame_a_token(protocol: str) -> None:
    async with served(protocol) as target:
        summary = await send(target, 20.0, 5, 1, 2.0)
    total = summary.total
    assert total.requests == total.ok > 0
    assert total.output_tokens == 5 * total.requests
    assert total.frame_tokens == 1.0
    assert total.inter_token.count == 4 * total.requests
