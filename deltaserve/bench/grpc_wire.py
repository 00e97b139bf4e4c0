"""Requests over gRPC, by the SDK."""

from __future__ import annotations

from deltaserve.bench.recorder import Recorder
from deltaserve.bench.workload import Planned
from deltaserve.client import AsyncClient
from deltaserve.v1 import inference_pb2 as pb

_TIERS = {value: name.removeprefix("TIER_").lower() for name, value in pb.Tier.items() if value}


class GrpcWire:
    """One channel to a router."""

    def __init__(self, address: str) -> None:
        self._client = AsyncClient(address, patience=0)

    async def open(self) -> None:
        """Connects."""
        await self._client.models()

    async def ask(self, planned: Planned, recorder: Recorder) -> None:
        """Streams one generation; see Wire."""
        stream = self._client.generate(
            planned.model,
            planned.prompt,
            max_tokens=planned.max_tokens,
            min_tokens=planned.min_tokens or None,
            ignore_eos=planned.ignore_eos or None,
        )
        async with stream:  # leaving it cancels the call
            async for frame in stream:
                if frame.HasField("chunk") and recorder.tokens(len(frame.chunk.token_ids)):
                    return
        if (summary := stream.summary) is not None:
            usage, load = summary.usage, summary.timings.load.ToMicroseconds() / 1e6
            tier = _TIERS.get(summary.source_tier, "")
            recorder.told(usage.prompt_tokens, usage.completion_tokens, tier, load)

    async def models(self) -> list[str]:
        """Returns the base and the published fine-tunes."""
        return [model.model for model in await self._client.models()]

    async def close(self) -> None:
        """Closes the channel."""
        await self._client.close()
