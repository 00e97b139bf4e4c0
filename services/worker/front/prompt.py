"""From a submitted request to what the engine takes: prompt tokens, parameters, choices."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import msgspec

from deltaserve.errors import InvalidArgumentError
from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1.worker_pb2 import Submit
from services.worker.front.choice import Choice
from services.worker.front.detokenize import Detokenizer
from services.worker.front.grammar import compile_grammar, vocabulary_of
from services.worker.front.revisions import Revision
from services.worker.front.validation import (
    Bounds,
    Stopping,
    check_parameters,
    check_prompt,
    check_resume,
    choice_count,
    choice_seed,
    sampling_of,
    stopping_of,
)
from services.worker.messages import Sampling, Vocabulary


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that passed all checks.

    Attributes:
        prompt: token ids.
        sampling: one for each choice.
        resume: tokens that the client has, for each choice.
        stopping: when a choice ends.
        grammar: that each choice follows, compiled; empty: none.
        vocabulary: that the grammar is applied over.
    """

    prompt: list[int]
    sampling: list[Sampling]
    resume: list[list[int]]
    stopping: Stopping
    grammar: str = ""
    vocabulary: Vocabulary | None = None


async def prepare(submit: Submit, revision: Revision, context_length: int, max_logprobs: int | None) -> Prepared:
    """Checks and tokenizes a request.

    Args:
        submit: the request.
        revision: its model.
        context_length: of the engine, in tokens.
        max_logprobs: of the worker; None: the whole vocabulary.

    Raises:
        InvalidArgumentError: something is out of range.
        PreconditionError: the prompt is a chat and the model has no chat template.
        UnsupportedModelError, FormatError: the model's tokenizer or template does not fit it.
    """
    if submit.request.response.token_bytes:
        _ = revision.tokenizer.encoding.token_bytes  # refused here when there are none
    bounds = Bounds(
        revision.vocab_size,
        min(context_length, revision.max_positions),
        revision.vocab_size if max_logprobs is None else min(max_logprobs, revision.vocab_size),
    )
    request, choices = submit.request, choice_count(submit.request)
    check_parameters(request, bounds)
    check_resume(submit.resume, choices, bounds)
    prompt = await asyncio.to_thread(prompt_ids, request, revision)
    check_prompt(prompt, bounds, from_client=request.HasField("token_ids"))
    stopping = stopping_of(request, revision.defaults)
    first = sampling_of(request, revision.defaults, stopping, len(prompt), bounds)
    sampling = [msgspec.structs.replace(first, seed=choice_seed(submit.seed, i)) for i in range(choices)]
    resume = [list(tokens.ids) for tokens in submit.resume]
    resume += [[] for _ in range(choices - len(resume))]
    if not request.sampling.HasField("grammar"):
        return Prepared(prompt, sampling, resume, stopping)
    vocabulary = vocabulary_of(revision)
    grammar = await asyncio.to_thread(compile_grammar, request.sampling.grammar)
    return Prepared(prompt, sampling, resume, stopping, grammar, vocabulary)


def make_choice(prepared: Prepared, index: int, revision: Revision, options: pb.ResponseOptions) -> Choice:
    """Returns choice `index`, at the beginning of its output."""
    encoding = revision.tokenizer.encoding
    skips = options.skip_special_tokens if options.HasField("skip_special_tokens") else True
    hidden = encoding.special if skips else frozenset()
    bytes_of = encoding.token_bytes.of if options.token_bytes else None
    return Choice(index, Detokenizer(encoding.decode, prepared.prompt, hidden), prepared.stopping, bytes_of)


def prompt_ids(request: pb.GenerateRequest | pb.TokenizeRequest, revision: Revision) -> list[int]:
    """Returns the prompt's token ids; computes, keep it off the event loop. Raises as `prepare` does."""
    kind = request.WhichOneof("prompt")
    if kind == "text":
        add = request.add_special_tokens if request.HasField("add_special_tokens") else True
        return revision.tokenizer.encode(request.text, add)
    if kind == "chat":
        chat = request.chat
        messages = [{"role": message.role, "content": message.content} for message in chat.messages]
        if not messages:
            raise InvalidArgumentError("prompt.chat has no messages; send at least one", field="prompt.chat.messages")
        add = chat.add_generation_prompt if chat.HasField("add_generation_prompt") else True
        return revision.tokenizer.encode_chat(messages, add)
    if kind == "token_ids":
        return list(request.token_ids.ids)
    raise InvalidArgumentError("the request has no prompt; send text, token_ids or chat", field="prompt")
