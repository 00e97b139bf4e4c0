"""When a sequence ends, and what the front is told of it."""

from __future__ import annotations

from services.worker.engine.sampler import Choice
from services.worker.engine.sequence import Sequence
from services.worker.messages import Output


def ended(sequence: Sequence, context: int) -> str:
    """Returns why a sequence ends after its last token: "stop", "length", or "" when it goes on."""
    if sequence.generated and sequence.tokens[-1] in sequence.stop_tokens:
        return "stop"
    if sequence.constraint is not None and sequence.constraint.complete:
        return "stop"
    if sequence.generated >= sequence.sampling.max_tokens or len(sequence.tokens) >= context:
        return "length"
    return ""


def output_of(sequence: Sequence, choice: Choice, context: int, *, prefill_started: bool) -> Output:
    """Returns the output for a sequence whose last token is the one of `choice`."""
    token = sequence.tokens[-1]
    finish = ended(sequence, context)
    return Output(
        sequence=sequence.id,
        tokens=[token],
        logprobs=[] if choice.logprobs is None else [choice.logprobs],
        finish=finish,
        stop_token=token if finish == "stop" and token in sequence.stop_tokens else None,
        prefill_started=prefill_started,
    )
