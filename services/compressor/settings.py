"""Settings of the compressor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from deltaserve import logs, telemetry
from deltaserve.config import setting


@dataclass(frozen=True)
class Settings:
    """See each field's help, which is also what `--help` prints."""

    base: Path = setting(help="folder of the base model: config.json, *.safetensors, tokenizer")
    store: str = setting(help="URI of the store: /path, file:///path, s3://bucket/prefix")
    listen: str = setting("127.0.0.1:50053", "host:port to serve on; port 0 picks a free one")
    work: Path = setting(Path(".deltaserve/compressor"), "folder for uploads and unfinished jobs, on a local disk")
    device: str = setting("cpu", "torch device that compresses: cpu, cuda, cuda:1")
    threads: int = setting(0, "torch threads of a compression; 0: torch's own choice")
    max_jobs: int = setting(1, "jobs that run at once")
    source_folders: tuple[str, ...] = setting((), "folders that source URIs may name, comma-separated; none by default")
    source_uris: tuple[str, ...] = setting(
        (), "prefixes of remote source URIs that are allowed, such as s3://bucket/in"
    )
    upload_quota_bytes: int = setting(1 << 40, "bytes that all uploads together may declare")
    disk_reserve_bytes: int = setting(1 << 30, "bytes of the work folder's disk that uploads leave free")
    upload_keep_hours: float = setting(72.0, "uploads that nothing touched and no job waits for are deleted after this")
    lease_seconds: float = setting(60.0, "another compressor takes over a job whose owner was silent for this long")
    poll_seconds: float = setting(1.0, "between two looks at the store for jobs of other compressors")
    max_attempts: int = setting(5, "a job that was started this often and never ended fails")
    policy_max_kl: float | None = setting(
        None, "KL, nats a token, that a job's report may have if the job sets no limit"
    )
    policy_min_agreement: float | None = setting(None, "likewise the least top-1 agreement, 0 to 1")
    policy_max_accuracy_drop: float | None = setting(
        None, "likewise the most lost points of accuracy, of evaluated jobs"
    )
    policy_max_bits_per_param: float | None = setting(None, "likewise the most stored bits a parameter")
    grace_seconds: float = setting(5.0, "calls get this long to end when the service stops")
    otlp_endpoint: str | None = setting(
        None, help="host:port that takes traces over OTLP gRPC; empty: as OTEL_EXPORTER_OTLP_ENDPOINT says"
    )
    trace_share: float | None = setting(
        None, help="share of the traces begun here that are kept, 0 to 1; empty: as OTEL_TRACES_SAMPLER says, else all"
    )
    metrics_listen: str | None = setting(None, help="host:port to serve Prometheus metrics on; empty: nowhere")
    log_level: str = setting("info", "debug, info, warning or error")
    log_format: str = setting("auto", "text, json, or auto: text on a terminal, else json")

    def __post_init__(self) -> None:
        logs.check_format(self.log_format)
        telemetry.sampler(self.trace_share)
        for name in ("max_jobs", "lease_seconds", "poll_seconds", "max_attempts", "upload_keep_hours"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")
        for name in ("threads", "upload_quota_bytes", "disk_reserve_bytes", "grace_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        for name, limit in self.policy.items():
            most = 1.0 if name == "min_agreement" else math.inf
            if not 0 <= limit <= most or math.isinf(limit):
                expected = "0 to 1" if most == 1.0 else "a finite number, 0 or more"
                raise ValueError(f"policy_{name} is {limit}; expected {expected}")

    @property
    def policy(self) -> dict[str, float]:
        """Limits that jobs get where they set none, by name as in deltaserve.v1.QualityPolicy."""
        limits = {
            "max_kl": self.policy_max_kl,
            "min_agreement": self.policy_min_agreement,
            "max_accuracy_drop": self.policy_max_accuracy_drop,
            "max_bits_per_param": self.policy_max_bits_per_param,
        }
        return {name: limit for name, limit in limits.items() if limit is not None}
