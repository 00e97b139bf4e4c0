"""Checks of a request against the proto's ranges and its model, and what the engine needs of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deltaserve.errors import InvalidArgumentError, UnsupportedModelError
from deltaserve.v1 import inference_pb2 as pb
from services.worker.front import ranges
from services.worker.front.defaults import GenerationDefaults
from services.worker.messages import Sampling

_SEEDS = 2**64


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a model and its worker allow.

    Attributes:
        vocab_size: rows of the model's embedding.
        context_length: most tokens of prompt and output together.
        max_logprobs: most top_logprobs.
    """

    vocab_size: int
    context_length: int
    max_logprobs: int


@dataclass(frozen=True, slots=True)
class Stopping:
    """When a choice ends, as far as the front looks for it."""

    strings: tuple[str, ...]
    include: bool
    min_tokens: int
    token_ids: frozenset[int]


def check_parameters(request: pb.GenerateRequest, bounds: Bounds) -> None:
    """Checks everything that does not depend on the prompt's length; raises InvalidArgumentError."""
    _check_sampling(request.sampling, bounds.vocab_size)
    _check_stopping(request.stopping, bounds.vocab_size)
    response = request.response
    if response.top_logprobs > bounds.max_logprobs:
        raise InvalidArgumentError(
            f"response.top_logprobs is {response.top_logprobs}; this worker allows at most {bounds.max_logprobs}",
            field="response.top_logprobs",
        )
    if response.logprob_kind not in pb.LogprobKind.values():
        raise InvalidArgumentError(
            f"response.logprob_kind is {response.logprob_kind}; expected one of {pb.LogprobKind.keys()}",
            field="response.logprob_kind",
        )


def check_prompt(ids: Sequence[int], bounds: Bounds, from_client: bool) -> None:
    """Checks the prompt's tokens.

    Args:
        ids: the prompt.
        bounds: of the model.
        from_client: whether the client sent ids, or the model's tokenizer made them.

    Raises:
        InvalidArgumentError: no token, too many, or an id outside of the vocabulary.
        UnsupportedModelError: the model's tokenizer makes ids that the model has no embedding for.
    """
    if not ids:
        raise InvalidArgumentError("the prompt has no tokens; send at least one", field="prompt")
    if len(ids) >= bounds.context_length:
        raise InvalidArgumentError(
            f"the prompt has {len(ids)} tokens; the context of {bounds.context_length} leaves room for at most "
            f"{bounds.context_length - 1} and one token of output",
            field="prompt",
            prompt_tokens=len(ids),
            context_length=bounds.context_length,
        )
    if from_client:
        _check_ids(ids, "prompt.token_ids.ids", bounds.vocab_size)
    elif max(ids) >= bounds.vocab_size:
        raise UnsupportedModelError(
            f"the model's tokenizer made token id {max(ids)}, but its vocabulary has {bounds.vocab_size} tokens"
        )


def check_resume(resume: Sequence[pb.TokenIds], choices: int, bounds: Bounds) -> None:
    """Checks tokens that a resumed request already has; raises InvalidArgumentError."""
    if len(resume) > choices:
        raise InvalidArgumentError(f"resume has {len(resume)} choices; the request has {choices}", field="resume")
    for tokens in resume:
        _check_ids(tokens.ids, "resume", bounds.vocab_size)


def choice_count(request: pb.GenerateRequest) -> int:
    """Returns the number of choices."""
    return request.sampling.n if request.sampling.HasField("n") else 1


def stopping_of(request: pb.GenerateRequest, defaults: GenerationDefaults) -> Stopping:
    """Returns when a choice ends."""
    asked = request.stopping
    ends = set(asked.stop_token_ids) | (set() if asked.ignore_eos else set(defaults.eos))
    return Stopping(tuple(asked.stop), asked.include_stop, asked.min_tokens, frozenset(ends))


def sampling_of(
    request: pb.GenerateRequest, defaults: GenerationDefaults, stopping: Stopping, prompt_tokens: int, bounds: Bounds
) -> Sampling:
    """Resolves the parameters of choice 0 but its seed: what was asked for, else the model's default, else the proto's.

    Raises:
        InvalidArgumentError: the output does not fit the context after the prompt.
    """
    asked = request.sampling
    given = _given(asked)
    values = {**defaults.sampling, **given}
    response = request.response
    max_tokens = _max_tokens(request.stopping, prompt_tokens, bounds)
    return Sampling(
        temperature=float(values.get("temperature", 1.0)),
        top_p=float(values.get("top_p", 1.0)),
        top_k=int(values.get("top_k", 0)),
        min_p=float(values.get("min_p", 0.0)),
        presence_penalty=float(values.get("presence_penalty", 0.0)),
        frequency_penalty=float(values.get("frequency_penalty", 0.0)),
        repetition_penalty=float(values.get("repetition_penalty", 1.0)),
        logit_bias=dict(asked.logit_bias),
        max_tokens=max_tokens,
        min_tokens=min(request.stopping.min_tokens, max_tokens),
        stop_token_ids=sorted(stopping.token_ids),
        top_logprobs=response.top_logprobs if response.HasField("top_logprobs") else None,
        raw_logits=response.logprob_kind == pb.LOGPROB_KIND_LOGIT,
    )


def choice_seed(seed: int, index: int) -> int:
    """Returns the seed of a choice: seed + index, in 64 bits."""
    return (seed + index) % _SEEDS


def _max_tokens(stopping: pb.StoppingParams, prompt_tokens: int, bounds: Bounds) -> int:
    room = bounds.context_length - prompt_tokens
    if not stopping.HasField("max_tokens"):
        return min(room, ranges.DEFAULT_MAX_TOKENS)
    if stopping.max_tokens > room:
        raise InvalidArgumentError(
            f"the prompt's {prompt_tokens} tokens and stopping.max_tokens {stopping.max_tokens} are "
            f"{prompt_tokens + stopping.max_tokens} together; the context holds {bounds.context_length}",
            field="stopping.max_tokens",
            prompt_tokens=prompt_tokens,
            context_length=bounds.context_length,
        )
    return stopping.max_tokens


def _given(sampling: pb.SamplingParams) -> dict[str, float]:
    return {field.name: value for field, value in sampling.ListFields() if field.name in ranges.RANGES}


def _check_sampling(sampling: pb.SamplingParams, vocab_size: int) -> None:
    for name, value in _given(sampling).items():
        _check_range(value, ranges.RANGES[name], f"sampling.{name}")
    if sampling.HasField("n"):
        _check_range(sampling.n, ranges.CHOICES, "sampling.n")
    _check_ids(sampling.logit_bias, "sampling.logit_bias", vocab_size)
    for token, bias in sampling.logit_bias.items():
        _check_range(bias, ranges.LOGIT_BIAS, f"sampling.logit_bias[{token}]")


def _check_stopping(stopping: pb.StoppingParams, vocab_size: int) -> None:
    _check_ids(stopping.stop_token_ids, "stopping.stop_token_ids", vocab_size)
    if stopping.HasField("max_tokens") and stopping.max_tokens == 0:
        raise InvalidArgumentError("stopping.max_tokens is 0; expected at least 1", field="stopping.max_tokens")
    if stopping.HasField("max_tokens") and stopping.min_tokens > stopping.max_tokens:
        raise InvalidArgumentError(
            f"stopping.min_tokens {stopping.min_tokens} is above stopping.max_tokens {stopping.max_tokens}",
            field="stopping.min_tokens",
        )
    if len(stopping.stop) > ranges.MAX_STOPS:
        raise InvalidArgumentError(
            f"stopping.stop has {len(stopping.stop)} strings; expected at most {ranges.MAX_STOPS}",
            field="stopping.stop",
        )
    for number, stop in enumerate(stopping.stop):
        if not 1 <= len(stop) <= ranges.MAX_STOP_CHARACTERS:
            raise InvalidArgumentError(
                f"stopping.stop[{number}] has {len(stop)} characters; expected 1 to {ranges.MAX_STOP_CHARACTERS}",
                field="stopping.stop",
            )


def _check_range(value: float, limits: ranges.Range, field: str) -> None:
    if not limits.holds(value):
        raise InvalidArgumentError(f"{field} is {value:g}; expected {limits}", field=field)


def _check_ids(ids: Iterable[int], field: str, vocab_size: int) -> None:
    largest = max(ids, default=0)
    if largest >= vocab_size:
        raise InvalidArgumentError(
            f"{field} has token id {largest}; expected ids below the model's vocabulary size {vocab_size}", field=field
        )
