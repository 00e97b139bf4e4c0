"""Logprobs in the two shapes of OpenAI's API."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Any

from deltaserve.v1.inference_pb2 import Logprob, TokenLogprobs

_LOWEST = -9999.0  # JSON has no minus infinity; OpenAI's own value


def chat_logprobs(entries: Iterable[TokenLogprobs]) -> dict[str, Any]:
    """Returns `logprobs` of a choice of a chat completion, or of a piece of one."""
    content = [_token(entry.chosen) | {"top_logprobs": [_token(top) for top in entry.top]} for entry in entries]
    return {"content": content, "refusal": None}


class CompletionLogprobs:
    """`logprobs` of a choice of a completion, piece by piece: offsets go on from piece to piece."""

    def __init__(self, offset: int = 0) -> None:
        """Begins at character `offset` of the choice's text."""
        self._offset = offset
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def take(self, entries: Iterable[TokenLogprobs]) -> dict[str, Any]:
        """Returns the next tokens, their logprobs, and the most probable ones as maps from text."""
        tokens, values, tops, offsets = [], [], [], []
        for entry in entries:
            tokens.append(token_text(entry.chosen.token_bytes))
            values.append(_finite(entry.chosen.value))
            tops.append(_map(entry) if entry.top else None)
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(entry.chosen.token_bytes))
        told = tops if any(tops) else None
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": told, "text_offset": offsets}


def token_text(data: bytes) -> str:
    r"""Returns a token's text; a part of a character is written `bytes:\xe2\x82`, as OpenAI does."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _token(logprob: Logprob) -> dict[str, Any]:
    data = logprob.token_bytes
    return {"token": token_text(data), "logprob": _finite(logprob.value), "bytes": list(data)}


def _map(entry: TokenLogprobs) -> dict[str, float]:
    """Returns the most probable tokens, and the chosen one whether or not it is among them."""
    return {token_text(top.token_bytes): _finite(top.value) for top in (*entry.top, entry.chosen)}


def _finite(value: float) -> float:
    return max(_LOWEST, value)
