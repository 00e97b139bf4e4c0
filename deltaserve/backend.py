"""The clients behind a store: a folder or memory of this machine, or S3, GCS, Azure through obstore."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from obstore.store import ObjectStore, from_url

from deltaserve.patience import Patience

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig


@dataclass(frozen=True, slots=True)
class Backend:
    """Clients of one store. None but `parts` tries anything again by itself: see deltaserve.patience.

    Attributes:
        reads: for what reads, lists and deletes.
        creates: for create-only puts.
        parts: for uploads in parts.
        root: of a local store: its writes are ours, since obstore's do not fsync.
    """

    reads: ObjectStore
    creates: ObjectStore
    parts: ObjectStore
    root: Path | None = None

    @classmethod
    def local(cls, store: ObjectStore, root: Path | None = None) -> Backend:
        """Returns clients of a store in this process."""
        return cls(store, store, store, root)

    @classmethod
    def remote(cls, uri: str, patience: Patience) -> Backend:
        """Returns clients of a store behind HTTP. Raises BaseError, ValueError."""
        parts_retried: RetryConfig = {"max_retries": 5, "retry_timeout": timedelta(seconds=patience.seconds)}

        def client(seconds: float, retries: RetryConfig) -> ObjectStore:
            options: ClientConfig = {"timeout": timedelta(seconds=seconds), "allow_http": _allows_http(os.environ)}
            return from_url(uri, client_options=options, retry_config=retries)

        once: RetryConfig = {"max_retries": 0}
        return cls(
            client(patience.read_seconds, once),
            client(patience.write_seconds, once),
            client(patience.write_seconds, parts_retried),
        )


def _allows_http(environ: Mapping[str, str]) -> bool:
    """Tells whether the environment allows unencrypted requests; client options hide its own words for it."""
    said = any(environ.get(v, "").lower() in {"true", "1", "yes"} for v in ("AWS_ALLOW_HTTP", "AZURE_ALLOW_HTTP"))
    endpoints = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT")
    return said or any(environ.get(v, "").startswith("http://") for v in endpoints)
