"""Client channels with the options that were verified to matter (keepalive spellings and limits)."""

from __future__ import annotations

import grpc

MAX_MESSAGE_BYTES = 64 << 20

_LIMITS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]


def edge_channel(address: str) -> grpc.aio.Channel:
    """A channel from a client to a service, across networks we do not know: patient keepalive."""
    return grpc.aio.insecure_channel(
        address,
        options=[
            *_LIMITS,
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 0),
        ],
    )


def internal_channel(address: str) -> grpc.aio.Channel:
    """A channel between services: a frozen peer is noticed in about a second, a lost one is retried quickly."""
    return grpc.aio.insecure_channel(
        address,
        options=[
            *_LIMITS,
            ("grpc.keepalive_time_ms", 1_000),
            ("grpc.keepalive_timeout_ms", 1_000),
            ("grpc.http2.ping_timeout_ms", 1_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.min_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            # channels to one address must not share a connection: each has its own keepalive
            ("grpc.use_local_subchannel_pool", 1),
        ],
    )
