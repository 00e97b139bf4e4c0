"""Choices in the shapes of completions and of chat completions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from deltaserve.v1.inference_pb2 import Chunk, TokenLogprobs
from services.router.http.logprobs import CompletionLogprobs, chat_logprobs


class CompletionWriter:
    """A choice of /v1/completions."""

    def __init__(self, echo: str, with_logprobs: bool) -> None:
        """Begins with `echo`, the prompt's text when it is to be repeated."""
        self._echo = echo
        self._logprobs = CompletionLogprobs(len(echo)) if with_logprobs else None

    def opening(self) -> list[dict[str, Any]]:
        """Returns the prompt, if it is to be repeated."""
        return [{"text": self._echo, "logprobs": None}] if self._echo else []

    def piece(self, chunk: Chunk) -> dict[str, Any]:
        """Returns new text."""
        return {"text": chunk.text, "logprobs": self._told(chunk.logprobs)}

    def ending(self) -> dict[str, Any]:
        """Returns no text."""
        return {"text": "", "logprobs": None}

    def whole(self, text: str, logprobs: Iterable[TokenLogprobs]) -> dict[str, Any]:
        """Returns all text."""
        return {"text": self._echo + text, "logprobs": self._told(logprobs)}

    def _told(self, logprobs: Iterable[TokenLogprobs]) -> dict[str, Any] | None:
        return None if self._logprobs is None else self._logprobs.take(logprobs)


class ChatWriter:
    """A choice of /v1/chat/completions."""

    def __init__(self, with_logprobs: bool) -> None:
        self._with_logprobs = with_logprobs

    def opening(self) -> list[dict[str, Any]]:
        """Returns the role."""
        return [{"delta": {"role": "assistant", "content": ""}, "logprobs": None}]

    def piece(self, chunk: Chunk) -> dict[str, Any]:
        """Returns new text."""
        return {"delta": {"content": chunk.text}, "logprobs": self._told(chunk.logprobs)}

    def ending(self) -> dict[str, Any]:
        """Returns no text."""
        return {"delta": {}, "logprobs": None}

    def whole(self, text: str, logprobs: Iterable[TokenLogprobs]) -> dict[str, Any]:
        """Returns the message."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"message": message, "logprobs": self._told(logprobs)}

    def _told(self, logprobs: Iterable[TokenLogprobs]) -> dict[str, Any] | None:
        return chat_logprobs(logprobs) if self._with_logprobs else None
