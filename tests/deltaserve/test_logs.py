import io
import json
import logging
import re
import secrets
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from deltaserve import logs, telemetry


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back as it was."""
    found = logging.getLogger()
    handlers, level = found.handlers[:], found.level
    yield found
    found.handlers[:] = handlers
    found.setLevel(level)


def _said(root: logging.Logger) -> io.StringIO:
    (handler,) = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    out = io.StringIO()
    handler.setStream(out)
    return out


def test_json_is_one_object_a_line(root: logging.Logger) -> None:
    text = f'two\nlines "{secrets.token_hex(4)}"'
    logs.setup("router", form="json")
    out = _said(root)
    logging.getLogger("a.b").warning("%s", text)
    (line,) = out.getvalue().splitlines()
    found = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("time"))
    assert found == {"level": "warning", "service": "router", "logger": "a.b", "message": text}


def test_a_traceback_is_in_its_object(root: logging.Logger) -> None:
    logs.setup("worker", form="json")
    out = _said(root)
    try:
        raise ValueError("because")
    except ValueError:
        logging.getLogger("a").exception("it failed")
    found = json.loads(out.getvalue())
    assert found["message"] == "it failed"
    assert found["error"].endswith("ValueError: because")


def test_lines_within_a_span_name_it(root: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "get_tracer", TracerProvider().get_tracer)
    logs.setup("worker", form="json")
    out = _said(root)
    with telemetry.span("outer") as outer, telemetry.span("inner", parent=outer) as inner:
        logging.getLogger().error("inside")
        logging.getLogger().error("of another", extra={"span": outer})
    logging.getLogger().error("outside")
    inside, other, outside = map(json.loads, out.getvalue().splitlines())
    context = inner.get_span_context()
    assert (inside["trace_id"], inside["span_id"]) == (f"{context.trace_id:032x}", f"{context.span_id:016x}")
    assert other["span_id"] == f"{outer.get_span_context().span_id:016x}"
    assert not {"trace_id", "span_id"} & outside.keys()


def test_without_a_terminal_it_is_json_unless_asked_otherwise(root: logging.Logger) -> None:
    logs.setup("router")
    out = _said(root)
    logging.getLogger().error("x")
    assert json.loads(out.getvalue())["message"] == "x"
    logs.setup("router", form="text")
    out = _said(root)
    logging.getLogger().error("x")
    assert out.getvalue().endswith(" ERROR router root: x\n")
    with pytest.raises(ValueError, match="log_format is 'xml'; expected one of auto, text, json"):
        logs.setup("router", form="xml")
