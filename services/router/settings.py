"""Settings of the router."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deltaserve import logs, telemetry
from deltaserve.config import setting
from services.router.admission.gate import QueueLimits
from services.router.admission.keys import KeyBook, read
from services.router.plan import Rules


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """Flags and variables of `python -m services.router`; times in seconds, sizes in bytes."""

    store: str = setting(help="URI of the delta store: a folder, file://, s3://, gs:// or az://")
    workers: tuple[str, ...] = setting((), help="workers, comma-separated: host:port or dns:///name:port")
    compressor: str | None = setting(None, help="host:port of the compressor that ModelService calls are passed on to")
    listen: str = setting("127.0.0.1:50051", help="host:port to serve on")
    http_listen: str | None = setting(None, help="host:port to serve the OpenAI-compatible API on; empty: nowhere")
    reuse_port: bool = setting(False, help="share both ports with other routers: the kernel spreads connections")
    name: str = setting("router", help="name of this router in workers' logs")
    catalog_seconds: float = setting(2.0, help="how old the view of the store may be")
    resolve_seconds: float = setting(5.0, help="how often dns:/// names are resolved again")
    max_queue: int = setting(1024, help="most requests that wait here for a worker")
    max_queue_per_key: int | None = setting(None, help="most of them of one API key; empty: as many as there may be")
    max_queue_per_model: int | None = setting(None, help="most of them of one model; empty: as many as there may be")
    keys: Path | None = setting(
        None, help="file (.toml, .json) of API keys, quotas and shares; empty: anybody may call"
    )
    keys_seconds: float = setting(2.0, help="how often that file is looked at for changes")
    worker_backlog: int = setting(32, help="requests sent to a worker beyond those that a step of it can hold")
    no_worker_seconds: float = setting(15.0, help="how long a request waits while no worker at all is connected")
    placement_seconds: float = setting(2.0, help="time between two rounds of placement; 0 switches placement off")
    prefetch_seconds: float = setting(15.0, help="how far ahead placement looks: a model is worth its place if it is "
                                                 "asked for within this time")  # fmt: skip
    prefetch_probability: float = setting(0.2, help="least probability at which a model is brought to memory unasked")
    disk_probability: float = setting(0.05, help="least probability at which a model is brought to a worker's disk")
    copy_share: float = setting(0.5, help="share of a worker's places one model may take before it gets another copy")
    keep_factor: float = setting(1.5, help="how many times more a delta must be worth than one in memory to replace it")
    worker_loads: int = setting(1, help="most loads under way on a worker at which placement orders another")
    buffer_bytes: int = setting(1 << 20, help="unread bytes of a stream at which its request is paused")
    slow_consumer_seconds: float = setting(30.0, help="how long a request stays paused before it is cancelled")
    notice_seconds: float = setting(3.0, help="on shutdown: still admit for so long while NOT_SERVING spreads")
    grace_seconds: float = setting(30.0, help="on shutdown: let running requests go on for so long")
    otlp_endpoint: str | None = setting(
        None, help="host:port that takes traces over OTLP gRPC; empty: as OTEL_EXPORTER_OTLP_ENDPOINT says"
    )
    trace_share: float | None = setting(
        None, help="share of the traces begun here that are kept, 0 to 1; empty: as OTEL_TRACES_SAMPLER says, else all"
    )
    metrics_listen: str | None = setting(None, help="host:port to serve Prometheus metrics on; empty: nowhere")
    log_level: str = setting("info", help="debug, info, warning or error")
    log_format: str = setting("auto", help="text, json, or auto: text on a terminal, else json")

    def __post_init__(self) -> None:
        """Raises ValueError for values that cannot work."""
        for field in ("max_queue", "buffer_bytes"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; expected at least 1")
        for field in ("catalog_seconds", "resolve_seconds", "worker_backlog", "slow_consumer_seconds",
                      "placement_seconds"):  # fmt: skip
            if getattr(self, field) < 0:
                raise ValueError(f"{field} is {getattr(self, field)}; expected 0 or more")
        logs.check_format(self.log_format)
        telemetry.sampler(self.trace_share)
        check_placement(self.placement_rules(), self.prefetch_seconds)

    def queue_limits(self) -> QueueLimits:
        """Returns the bounds of the queue."""
        return QueueLimits(self.max_queue, self.max_queue_per_key, self.max_queue_per_model)

    def key_book(self) -> KeyBook:
        """Reads the keys file, if there is to be one; raises FormatError."""
        return KeyBook() if self.keys is None else read(self.keys)

    def placement_rules(self) -> Rules:
        """Returns what placement may be tuned by."""
        return Rules(
            prefetch_probability=self.prefetch_probability,
            disk_probability=self.disk_probability,
            keep=self.keep_factor,
            share=self.copy_share,
            loads=self.worker_loads,
        )


def check_placement(rules: Rules, horizon: float) -> None:
    """Raises ValueError for values of which placement can make nothing."""
    if not 0 < rules.disk_probability <= 1 or not 0 < rules.prefetch_probability <= 1:
        found = f"{rules.prefetch_probability} and {rules.disk_probability}"
        raise ValueError(f"prefetch_probability and disk_probability are {found}; expected more than 0, at most 1")
    if horizon <= 0 or not 0 < rules.share <= 1:
        raise ValueError(
            f"prefetch_seconds is {horizon} and copy_share {rules.share}; expected more than 0, copy_share at most 1"
        )
    if rules.keep < 1 or rules.loads < 1:
        raise ValueError(f"keep_factor is {rules.keep} and worker_loads {rules.loads}; expected at least 1")
