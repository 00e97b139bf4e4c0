"""A channel whose calls carry an API key."""

from __future__ import annotations

from typing import Any, cast

import grpc


class _Keyed:
    """Stands before a channel; stubs only make calls of it."""

    def __init__(self, channel: grpc.aio.Channel, api_key: str) -> None:
        self._channel = channel
        self._metadata = (("authorization", f"Bearer {api_key}"),)

    def unary_unary(self, *args: Any, **options: Any) -> Any:
        return self._call(self._channel.unary_unary(*args, **options))

    def unary_stream(self, *args: Any, **options: Any) -> Any:
        return self._call(self._channel.unary_stream(*args, **options))

    def stream_unary(self, *args: Any, **options: Any) -> Any:
        return self._call(self._channel.stream_unary(*args, **options))

    def stream_stream(self, *args: Any, **options: Any) -> Any:
        return self._call(self._channel.stream_stream(*args, **options))

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    def _call(self, call: Any) -> Any:
        def keyed(*args: Any, metadata: Any = (), **options: Any) -> Any:
            return call(*args, metadata=(*self._metadata, *metadata), **options)

        return keyed


def with_key(channel: grpc.aio.Channel, api_key: str | None) -> grpc.aio.Channel:
    """Returns a channel whose calls carry `authorization: Bearer <api_key>`; None: the channel as it is."""
    return channel if api_key is None else cast("grpc.aio.Channel", _Keyed(channel, api_key))
