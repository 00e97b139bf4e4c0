"""Settings of the compressor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
    grace_seconds: float = setting(5.0, "calls get this long to end when the service stops")
    otlp_endpoint: str | None = setting(None, "host:port of an OTLP gRPC collector for traces")
    log_level: str = setting("info", "debug, info, warning or error")

    def __post_init__(self) -> None:
        for name in ("max_jobs", "lease_seconds", "poll_seconds", "max_attempts", "upload_keep_hours"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")
        for name in ("threads", "upload_quota_bytes", "disk_reserve_bytes", "grace_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
