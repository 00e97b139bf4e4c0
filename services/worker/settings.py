"""Settings of the worker."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deltaserve import logs, telemetry
from deltaserve.config import setting
from services.worker.engine.settings import EngineSettings


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Flags and variables of `python -m services.worker`; times in seconds, sizes in bytes."""

    base: Path = setting(help="folder of the base model: config.json, *.safetensors, tokenizer.json")
    store: str = setting(help="URI of the delta store: a folder, file://, s3://, gs:// or az://")
    listen: str = setting("127.0.0.1:50052", help="host:port to serve routers on; port 0 picks a free one")
    name: str = setting("", help="name of this worker; empty: host name and port")
    base_model: str = setting("base", help="name under which the base itself is asked for")
    cache: Path = setting(
        Path(".deltaserve/worker"), help="folder of the disk cache, on a local disk, of this worker only"
    )
    cache_bytes: int = setting(50 << 30, help="most bytes of deltas in the disk cache")
    device: str = setting("cpu", help="torch device: cpu, cuda, cuda:1")
    tensor_parallel: int = setting(
        1, help="devices that share every layer, from `device` on; kv, delta and decoded bytes are of each"
    )
    dtype: str = setting("float32", help="of weights and activations: float32, bfloat16 or float16")
    kv_bytes: int = setting(256 << 20, help="KV cache, in device memory")
    block_size: int = setting(16, help="tokens of a KV cache block")
    delta_bytes: int = setting(1 << 30, help="packed deltas in device memory")
    decoded_bytes: int = setting(1 << 30, help="merged weights of hot deltas in device memory; 0 keeps all packed")
    max_running: int = setting(64, help="most sequences in a step")
    max_step_tokens: int = setting(512, help="most tokens in a step, decoded and prefilled together")
    max_deltas: int = setting(16, help="most distinct deltas in a step")
    max_context: int = setting(0, help="most tokens of prompt and output together; 0: what the base allows")
    max_wait_seconds: float = setting(
        2.0, help="how long requests of deltas in memory may pass one that waits for its own"
    )
    prefix_cache: bool = setting(True, help="whether the common beginnings of a model's prompts are computed once")
    step_seconds: float = setting(
        0.2,
        help="deltas run at once while steps take so long, or twice what they do without deltas; 0: max_deltas run",
    )
    threads: int = setting(0, help="torch threads on the CPU; 0: half of the CPUs")
    max_requests: int = setting(4096, help="most requests at once, waiting ones included")
    max_logprobs: int | None = setting(None, help="most top_logprobs of a request; empty: the whole vocabulary")
    report_seconds: float = setting(0.25, help="how often routers hear about changes")
    engine_restarts: int = setting(3, help="how often a lost engine is started anew before the worker gives up")
    notice_seconds: float = setting(3.0, help="on shutdown: still admit for so long while routers take notice")
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
        for field in (
            "tensor_parallel",
            "cache_bytes",
            "kv_bytes",
            "block_size",
            "max_running",
            "max_step_tokens",
            "max_deltas",
        ):
            _at_least(self, field, 1)
        for field in ("delta_bytes", "decoded_bytes", "max_context", "max_wait_seconds", "threads", "max_requests"):
            _at_least(self, field, 0)
        for field in ("step_seconds", "engine_restarts", "notice_seconds", "grace_seconds"):
            _at_least(self, field, 0)
        logs.check_format(self.log_format)
        telemetry.sampler(self.trace_share)
        if self.report_seconds <= 0:
            raise ValueError(f"report_seconds is {self.report_seconds}; expected more than 0")

    def engine(self) -> EngineSettings:
        """Returns the engine's part."""
        return EngineSettings(
            base_folder=str(self.base),
            fingerprint_cache=str(self.cache / "fingerprints"),
            device=self.device,
            tensor_parallel=self.tensor_parallel,
            dtype=self.dtype,
            kv_bytes=self.kv_bytes,
            block_size=self.block_size,
            delta_bytes=self.delta_bytes,
            decoded_bytes=self.decoded_bytes,
            max_running=self.max_running,
            max_step_tokens=self.max_step_tokens,
            max_deltas=self.max_deltas,
            max_context=self.max_context,
            max_wait_seconds=self.max_wait_seconds,
            prefix_cache=self.prefix_cache,
            step_seconds=self.step_seconds,
            threads=self.threads,
            log_level=self.log_level,
            log_format=self.log_format,
        )


def _at_least(settings: WorkerSettings, field: str, least: float) -> None:
    value = getattr(settings, field)
    if value < least:
        raise ValueError(f"{field} is {value}; expected at least {least}")
