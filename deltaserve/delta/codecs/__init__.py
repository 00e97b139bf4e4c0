"""The codec family: every way in which a tensor of a delta may be stored."""

from __future__ import annotations

from collections.abc import Mapping

from deltaserve.delta.codecs.base import Codec, EncodeOptions, Params, Planes, PlaneSpec
from deltaserve.delta.codecs.dense import Dense
from deltaserve.delta.codecs.intn import IntN
from deltaserve.delta.codecs.sign1 import Sign1
from deltaserve.errors import InvalidArgumentError

__all__ = ["CODECS", "Codec", "EncodeOptions", "Params", "PlaneSpec", "Planes", "get_codec"]

_ALL: tuple[Codec, ...] = (Sign1(), IntN(2), IntN(3), IntN(4), Dense())
CODECS: Mapping[str, Codec] = {codec.name: codec for codec in _ALL}
"""All codecs by name."""


def get_codec(name: str) -> Codec:
    """Returns a codec; raises InvalidArgumentError for a name that is none."""
    codec = CODECS.get(name)
    if codec is None:
        raise InvalidArgumentError(
            f"there is no codec {name[:80]!r}; expected one of {', '.join(CODECS)}", field="codec"
        )
    return codec
