"""Errors as one line that says what to do."""

from __future__ import annotations

import re

import grpc

from deltaserve.errors import DeltaServeError, QuotaError, UnavailableError


def explain(error: DeltaServeError | OSError) -> str:
    """Returns the message for a person, with what to do next where the error itself does not say it."""
    if not isinstance(error, DeltaServeError):
        return str(error)
    text = error.message
    if error.code is grpc.StatusCode.UNAVAILABLE and "failed to connect" in text:
        found = re.search(r"ipv[46]:(\S+:\d+)", text)
        return (
            f"no server answers{f' at {found[1]}' if found else ''}; "
            "start one with `deltaserve up --base DIR`, or name one with --server HOST:PORT"
        )
    retry = error.retry_seconds if isinstance(error, QuotaError | UnavailableError) else None
    return f"{text} (try again in {retry:g} s)" if retry else text
