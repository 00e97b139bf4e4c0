"""Names of attributes and metrics, and what is told of a generation.

By OpenTelemetry's semantic conventions for generative AI where these have a name, else under `deltaserve.`.
"""

from __future__ import annotations

from opentelemetry.util.types import AttributeValue

from deltaserve.v1.inference_pb2 import FinishReason, GenerateRequest, Tier

PROVIDER_NAME = "deltaserve"
CHAT, COMPLETION = "chat", "text_completion"

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_ID = "gen_ai.response.id"
RESPONSE_MODEL = "gen_ai.response.model"
FINISH_REASONS = "gen_ai.response.finish_reasons"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
ERROR_TYPE = "error.type"

WORKER = "deltaserve.worker"
REVISION = "deltaserve.revision"
TIER = "deltaserve.delta.tier"  # where the delta was when it was asked for
DELTA_BYTES = "deltaserve.delta.bytes"
ATTEMPT = "deltaserve.attempt"  # which worker it is for this request, or which try it is of a job
WAITING = "deltaserve.queue.waiting"  # requests that waited at the router
LONGEST_GAP = "deltaserve.decode.longest_gap_seconds"
JOB = "deltaserve.job"
FIRST_LAYER, LAST_LAYER = "deltaserve.layers.first", "deltaserve.layers.last"
LAYER_ERROR = "deltaserve.layers.error"
BYTES_OUT = "deltaserve.bytes_out"

_SAMPLING = ("temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty", "seed")
_LARGEST = 2**63 - 1  # that an attribute holds


def operation(request: GenerateRequest) -> str:
    """Returns the name of what is asked for: chat or text_completion."""
    return CHAT if request.HasField("chat") else COMPLETION


def request_attributes(request: GenerateRequest) -> dict[str, AttributeValue]:
    """Returns what a request's spans tell of it: what was set, prompt and output left out."""
    found: dict[str, AttributeValue] = {
        OPERATION: operation(request),
        PROVIDER: PROVIDER_NAME,
        REQUEST_MODEL: request.model,
    }
    if request.client_request_id:
        found[RESPONSE_ID] = request.client_request_id
    for field, value in request.sampling.ListFields():  # those that were set
        if field.name in _SAMPLING and value <= _LARGEST:
            found[f"gen_ai.request.{field.name}"] = value
    if request.sampling.HasField("n") and request.sampling.n != 1:
        found["gen_ai.request.choice.count"] = request.sampling.n
    if request.stopping.HasField("max_tokens"):
        found["gen_ai.request.max_tokens"] = request.stopping.max_tokens
    return found


def finish_reason(reason: FinishReason.ValueType) -> str:
    """Returns a reason as the conventions spell it: stop, length."""
    return FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()


def tier_name(tier: Tier.ValueType) -> str:
    """Returns a tier's short name: store, disk, host, device, decoded; none for the base."""
    return "none" if tier == Tier.TIER_UNSPECIFIED else Tier.Name(tier).removeprefix("TIER_").lower()
