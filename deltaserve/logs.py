"""Logging of a service process: one line a record on standard error, for people or as JSON for collectors of logs."""

from __future__ import annotations

import datetime
import logging
import sys
from typing import Any, Literal

import msgspec
from opentelemetry.trace import format_span_id, format_trace_id

from deltaserve import telemetry

Format = Literal["auto", "text", "json"]
FORMATS = ("auto", "text", "json")


def setup(service: str, level: str = "info", form: str = "auto") -> None:
    """Configures the root logger once.

    Args:
        service: named in every record.
        level: a name of the logging module in any case.
        form: text, json, or auto: text on a terminal, else json.

    Raises:
        ValueError: another form.
    """
    check_format(form)
    handler = logging.StreamHandler()
    as_text = form == "text" or (form == "auto" and sys.stderr.isatty())
    text = logging.Formatter(f"%(asctime)s %(levelname)s {service} %(name)s: %(message)s")
    handler.setFormatter(text if as_text else JsonFormatter(service))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # obstore's HTTP client and grpc's poller are chatty below warning
    for noisy in ("grpc", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))


def check_format(form: str) -> None:
    """Raises ValueError for what is no form."""
    if form not in FORMATS:
        raise ValueError(f"log_format is {form!r}; expected one of {', '.join(FORMATS)}")


class JsonFormatter(logging.Formatter):
    """One JSON object a record: time, level, service, logger, message, and what else is known.

    `trace_id` and `span_id` are those of the span around the line, or of the one given as `extra={"span": span}`.
    """

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        of = getattr(record, "span", None) or telemetry.logged()
        context = of.get_span_context()
        if context.is_valid:
            line |= {"trace_id": format_trace_id(context.trace_id), "span_id": format_span_id(context.span_id)}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()
