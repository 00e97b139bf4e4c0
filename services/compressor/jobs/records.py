"""A job as its log keeps it: one record holds all that is known, so the newest record is enough. Free of I/O."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from deltaserve.errors import FormatError

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Stage = Literal["preparing", "compressing", "evaluating", "publishing"]


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a running job is."""

    stage: Stage = "preparing"
    layers_done: int = 0
    layers_total: int = 0
    bytes_out: int = 0
    eta_seconds: float | None = None
    layer_error: float = 0.0
    attempt: int = 0


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One record of a job's log.

    Attributes:
        number: place in the log, from 0. The record with the highest number is the truth.
        spec: JobSpec as its JSON object, with the limits of the server's own policy that apply.
        defaulted: names of those limits: the client did not ask for them.
        owner: identity of the compressor that works on it; empty when none does.
        home: identity of the only compressor that can, since the upload is on its disk; empty when any can.
        created: seconds since the epoch; likewise `updated`.
        attempts: times the job was started.
        revision: revision that publication has reserved; empty before that.
        report: quality report as JSON text.
        error: serialised google.rpc.Status.
        traceparent: of the call that created it; empty when it was not traced.
    """

    job_id: str
    number: int = 0
    spec: dict[str, Any]
    defaulted: tuple[str, ...] = ()
    state: State = "queued"
    owner: str = ""
    home: str = ""
    created: float
    updated: float
    attempts: int = 0
    progress: Progress | None = None
    revision: str = ""
    report: str = ""
    error: bytes = b""
    traceparent: str = ""

    @property
    def ended(self) -> bool:
        """Whether no record can follow."""
        return self.state in {"succeeded", "failed", "cancelled"}

    @property
    def asked(self) -> dict[str, Any]:
        """The spec as the client gave it, without the server's own limits; no policy when it set no limit."""
        policy = {name: limit for name, limit in self.spec.get("policy", {}).items() if name not in self.defaulted}
        rest = {name: value for name, value in self.spec.items() if name != "policy"}
        return rest | ({"policy": policy} if policy else {})

    @property
    def model(self) -> str:
        """Name that the job publishes under."""
        return str(self.spec.get("model", ""))

    @property
    def source_uri(self) -> str:
        """Where the checkpoint is."""
        return str(self.spec.get("source_uri", ""))


def following(record: JobRecord, now: float, **changes: Any) -> JobRecord:
    """Returns the record after `record`, with changes."""
    return msgspec.structs.replace(record, number=record.number + 1, updated=max(now, record.updated), **changes)


def dump_record(record: JobRecord) -> bytes:
    """Returns a record as JSON."""
    return msgspec.json.encode(record)


def parse_record(data: bytes) -> JobRecord:
    """Reads a record. Raises FormatError."""
    try:
        return msgspec.json.decode(data, type=JobRecord)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"job record is malformed: {error}") from error
