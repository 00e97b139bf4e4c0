"""What bytes a token stands for: text has them only for whole characters, logprobs and grammars need them for each."""

from __future__ import annotations

import json
import re
from typing import Any

import tokenizers

from deltaserve.errors import UnsupportedModelError

_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"  # what SentencePiece writes for a space


class TokenBytes:
    """Bytes of a tokenizer's tokens, which it may spell in one of two ways: byte-level BPE's, or SentencePiece's."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        """Finds the spelling from the decoder; raises UnsupportedModelError when it is neither."""
        self._tokenizer = tokenizer
        self._added = {number: token.content for number, token in tokenizer.get_added_tokens_decoder().items()}
        kinds = _kinds(tokenizer.decoder)
        self._alphabet = _byte_alphabet() if "ByteLevel" in kinds else None
        if self._alphabet is None and not kinds & {"ByteFallback", "Metaspace"}:
            raise UnsupportedModelError(
                f"the model's tokenizer decodes by {', '.join(sorted(kinds)) or 'nothing'}; bytes of tokens and "
                "grammars need a decoder of ByteLevel, ByteFallback or Metaspace"
            )

    def of(self, token: int) -> bytes:
        """Returns a token's bytes; none for an id of no token."""
        if token in self._added:
            return self._added[token].encode()
        spelt: str | None = self._tokenizer.id_to_token(token)
        if spelt is None:
            return b""
        if self._alphabet is not None:
            return b"".join(self._alphabet.get(c) or c.encode() for c in spelt)
        if byte := _FALLBACK.fullmatch(spelt):
            return bytes.fromhex(byte[1])
        return spelt.replace(_SPACE, " ").encode()


def _kinds(decoder: Any) -> set[str]:
    """Returns the types of a decoder and of those in it; it can be asked only by pickling it."""
    if decoder is None:
        return set()
    state = json.loads(decoder.__getstate__())
    return {state["type"]} | {inner["type"] for inner in state.get("decoders", ())}


def _byte_alphabet() -> dict[str, bytes]:
    """Returns the characters by which byte-level BPE spells bytes (GPT-2's): printable ones are themselves."""
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in own]
    alphabet = {chr(byte): bytes([byte]) for byte in own}
    return alphabet | {chr(256 + place): bytes([byte]) for place, byte in enumerate(others)}
