import json

import pytest

from deltaserve.errors import (
    AlreadyExistsError,
    BaseMismatchError,
    DataLossError,
    DeadlineError,
    DeltaServeError,
    DrainingError,
    FormatError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    QuotaError,
    StoreError,
    WorkerLostError,
)
from services.router.http.errors import RequestError, error_body, error_response, status_of


@pytest.mark.parametrize(
    ("error", "status", "type_", "code"),
    [
        (InvalidArgumentError("m", field="sampling.temperature"), 400, "invalid_request_error", "invalid_value"),
        (
            InvalidArgumentError("m", field="prompt", context_length=8),
            400,
            "invalid_request_error",
            "context_length_exceeded",
        ),
        (FormatError("m"), 400, "invalid_request_error", "malformed_file"),
        (RequestError("m", code="unknown_url", status=405), 405, "invalid_request_error", "unknown_url"),
        (NotFoundError("m", kind="model", name="x"), 404, "invalid_request_error", "model_not_found"),
        (AlreadyExistsError("m"), 409, "invalid_request_error", "already_exists"),
        (BaseMismatchError("m"), 400, "invalid_request_error", "base_mismatch"),
        (QuotaError("m", subject="key"), 429, "rate_limit_error", "rate_limit_exceeded"),
        (DrainingError("m"), 503, "server_error", "draining"),
        (WorkerLostError("m"), 503, "server_error", "worker_lost"),
        (StoreError("m"), 503, "server_error", "store"),
        (DeadlineError("m"), 504, "server_error", "deadline_exceeded"),
        (DataLossError("m"), 500, "server_error", "checksum_mismatch"),
        (InternalError("m"), 500, "server_error", "internal"),
    ],
)
def test_the_error_tree_has_statuses_types_and_codes(
    error: DeltaServeError, status: int, type_: str, code: str
) -> None:
    assert status_of(error) == status
    body = error_body(error)["error"]
    assert (body["message"], body["type"], body["code"]) == ("m", type_, code)
    assert json.loads(bytes(error_response(error).body)) == error_body(error)


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ("sampling.temperature", "temperature"),
        ("sampling.logit_bias[7]", "logit_bias"),
        ("sampling.grammar.json_schema", "response_format"),
        ("stopping.include_stop", "include_stop_str_in_output"),
        ("prompt.token_ids.ids", "prompt"),
        ("prompt.chat.messages", "messages"),
        ("client_request_id", "request_id"),
        ("", None),
    ],
)
def test_params_have_openais_names(field: str, param: str | None) -> None:
    assert error_body(InvalidArgumentError("m", field=field))["error"]["param"] == param


def test_paths_of_the_request_stay_as_they_are() -> None:
    error = RequestError("m", param="messages[0].content[1].type")
    assert error_body(error)["error"]["param"] == "messages[0].content[1].type"


def test_retries_are_told_in_seconds_and_milliseconds() -> None:
    headers = error_response(DrainingError("m", retry_seconds=0.25)).headers
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("1", "250")
    headers = error_response(QuotaError("m", subject="s", retry_seconds=3.2)).headers
    assert headers["retry-after"] == "4"
    assert "retry-after" not in error_response(QuotaError("m", subject="s")).headers
