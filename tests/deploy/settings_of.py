"""What compose and Kubernetes files may set: the settings of each service, as it would read them."""

from collections.abc import Mapping

from deltaserve import config
from services.compressor.settings import Settings as CompressorSettings
from services.router.settings import RouterSettings
from services.worker.settings import WorkerSettings

CLASSES = {"router": RouterSettings, "worker": WorkerSettings, "compressor": CompressorSettings}
PORTS = {"router": 50051, "worker": 50052, "compressor": 50053}
METRICS_PORT = 9464


def load(service: str, environ: Mapping[str, str]) -> object:
    """Reads a container's environment as the service does; exits, which fails a test, when it would."""
    return config.load(CLASSES[service], service, argv=[], environ=environ)


def check(service: str, environ: Mapping[str, str], stop_seconds: float) -> None:
    """A container's environment starts the service, listens to all, and leaves time for its drain."""
    settings = load(service, environ)
    assert settings.listen == f"0.0.0.0:{PORTS[service]}"
    assert settings.metrics_listen == f"0.0.0.0:{METRICS_PORT}"
    assert getattr(settings, "notice_seconds", 0) + settings.grace_seconds + 10 < stop_seconds
