"""Tokens to text, one at a time, never in the middle of a character."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_REPLACEMENT = "\ufffd"  # what decoders make of bytes that are no (or not yet a) character
_CONTEXT = 6  # prompt tokens decoded along, since decoders treat the first token's leading space specially
_CHARACTER_TOKENS = 4  # a character has at most four bytes, so it spans at most four tokens
_WINDOW = 64  # tokens decoded at once when the model goes on and on with bytes that are no text


class Detokenizer:
    """Incremental detokenisation of one choice.

    The texts that `push` returns, and the one of `flush` at the end, concatenate to the decoded output. Only the tokens
    since the text before the last are decoded again, so a token costs the same wherever it is in the output.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], context: Sequence[int] = (), hidden: frozenset[int] = frozenset()
    ) -> None:
        """Begins after the prompt.

        Args:
            decode: text of token ids, special tokens included.
            context: the prompt; its last tokens settle whether the output begins with a space.
            hidden: tokens without text: the special ones when they are skipped.
        """
        self._decode = decode
        self._hidden = hidden
        self._window = [token for token in context[-_CONTEXT:] if token not in hidden]
        self._old = len(self._window)  # tokens of the window whose text was given
        self._given = decode(self._window).rstrip(_REPLACEMENT) if self._window else ""

    def push(self, token: int) -> str:
        """Takes a token and returns the text that it completes: whole characters, possibly none."""
        if token in self._hidden:
            return ""
        self._window.append(token)
        text = self._decode(self._window)
        if text.endswith(_REPLACEMENT):
            if len(self._window) - self._old < _CHARACTER_TOKENS:
                return ""
            if len(self._window) < _WINDOW:  # bytes that are no text, except perhaps the last
                return self._give(text[:-1])
        new = self._give(text)
        del self._window[: self._old]
        self._old = len(self._window)
        self._given = self._decode(self._window)
        return new

    def flush(self) -> str:
        """Returns what is left when the output ends; an unfinished character becomes U+FFFD."""
        return self._give(self._decode(self._window)) if len(self._window) > self._old else ""

    def _give(self, text: str) -> str:
        new = text[len(self._given) :]
        self._given += new
        return new
