"""What a request's frames become: chunks of a stream, or one body at the end."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from deltaserve.v1.inference_pb2 import (
    FINISH_REASON_LENGTH,
    Chunk,
    FinishReason,
    GenerateResponse,
    TokenLogprobs,
    Usage,
)


class Writer(Protocol):
    """Writes one choice, in the shape of its API."""

    def opening(self) -> list[dict[str, Any]]:
        """Returns what a stream says of the choice before its first text."""

    def piece(self, chunk: Chunk) -> dict[str, Any]:
        """Returns a part of the choice for a stream."""

    def ending(self) -> dict[str, Any]:
        """Returns the part of a stream's last chunk of the choice besides its reason."""

    def whole(self, text: str, logprobs: Iterable[TokenLogprobs]) -> dict[str, Any]:
        """Returns the choice as a whole."""


@dataclass(slots=True)
class _Choice:
    writer: Writer
    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    reason: str | None = None
    opened: bool = False


@dataclass(slots=True, eq=False)
class Reply:
    """The answer to one HTTP request, over all its prompts and choices. Frames go in; JSON comes out.

    Attributes:
        id: of the answer.
        model: that was asked for; the one that answers, once that is known.
        kind: `object` of the whole; `chunk_kind` of a chunk.
        with_logprobs: whether they were asked for.
        created: seconds of the Unix epoch.
    """

    id: str
    model: str
    kind: str
    chunk_kind: str
    with_logprobs: bool
    writers: list[Writer]  # prompts × choices, prompt by prompt
    prompts: int
    created: int = field(default_factory=lambda: int(time.time()))
    _choices: list[_Choice] = field(init=False)
    _usages: dict[int, Usage] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._choices = [_Choice(writer) for writer in self.writers]

    def stream(self, place: int, frame: GenerateResponse) -> list[dict[str, Any]]:
        """Takes a frame of prompt `place`; returns the chunks to send."""
        kind = frame.WhichOneof("frame")
        if kind == "chunk":
            index, choice = self._find(place, frame.chunk.index)
            if not frame.chunk.text and not (self.with_logprobs and frame.chunk.logprobs):
                return []
            return [*self._opening(index, choice), self._chunk(index, choice.writer.piece(frame.chunk))]
        if kind == "finished":
            index, choice = self._find(place, frame.finished.index)
            reason = {"finish_reason": _reason(frame.finished.reason)}
            return [*self._opening(index, choice), self._chunk(index, choice.writer.ending() | reason)]
        self._note(place, frame)
        return []

    def collect(self, place: int, frame: GenerateResponse) -> None:
        """Takes a frame of prompt `place` for `whole`."""
        kind = frame.WhichOneof("frame")
        if kind == "chunk":
            _, choice = self._find(place, frame.chunk.index)
            choice.text.append(frame.chunk.text)
            choice.logprobs.extend(frame.chunk.logprobs)
        elif kind == "finished":
            _, choice = self._find(place, frame.finished.index)
            choice.reason = _reason(frame.finished.reason)
        else:
            self._note(place, frame)

    def whole(self) -> dict[str, Any]:
        """Returns the body of the answer."""
        choices = [
            {"index": index, "finish_reason": c.reason, **c.writer.whole("".join(c.text), c.logprobs)}
            for index, c in enumerate(self._choices)
        ]
        return self._head(self.kind) | {"choices": choices, "usage": self.usage()}

    def usage_chunk(self) -> dict[str, Any]:
        """Returns the last chunk of a stream whose client wants usage."""
        return self._head(self.chunk_kind) | {"choices": [], "usage": self.usage()}

    def usage(self) -> dict[str, int]:
        """Returns the tokens of all prompts, and of all choices."""
        prompt = sum(usage.prompt_tokens for usage in self._usages.values())
        completion = sum(usage.completion_tokens for usage in self._usages.values())
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _find(self, place: int, choice: int) -> tuple[int, _Choice]:
        index = place * (len(self._choices) // self.prompts) + choice
        return index, self._choices[index]

    def _opening(self, index: int, choice: _Choice) -> list[dict[str, Any]]:
        if choice.opened:
            return []
        choice.opened = True
        return [self._chunk(index, part) for part in choice.writer.opening()]

    def _note(self, place: int, frame: GenerateResponse) -> None:
        if frame.HasField("accepted"):
            accepted = frame.accepted
            self.model = f"{accepted.model}@{accepted.revision}" if accepted.revision else accepted.model
        elif frame.HasField("summary"):
            self._usages[place] = frame.summary.usage

    def _chunk(self, index: int, part: dict[str, Any]) -> dict[str, Any]:
        return self._head(self.chunk_kind) | {"choices": [{"index": index, "finish_reason": None, **part}]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def _reason(reason: FinishReason.ValueType) -> str:
    return "length" if reason == FINISH_REASON_LENGTH else "stop"
