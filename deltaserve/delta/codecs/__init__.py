"""The codec family: every way in which a tensor of a delta may be stored."""

from __future__ import annotations

from collections.abc import Mapping

from deltaserve.delta.codecs.base import Codec, EncodeOptions, Form, Params, Planes, PlaneSpec, take_rows
from deltaserve.delta.codecs.dense import Dense
from deltaserve.delta.codecs.intn import INTS, TERNARY
from deltaserve.delta.codecs.lowrank import LowRank
from deltaserve.delta.codecs.residual import RESIDUALS
from deltaserve.delta.codecs.same import Same
from deltaserve.delta.codecs.sign1 import Sign1
from deltaserve.delta.codecs.sparse24 import SPARSE24
from deltaserve.delta.codecs.sparse_exact import SparseExact
from deltaserve.delta.codecs.tiered import TIERED
from deltaserve.delta.codecs.vector import VECTORS
from deltaserve.errors import InvalidArgumentError

__all__ = ["CODECS", "Codec", "EncodeOptions", "Form", "Params", "PlaneSpec", "Planes", "get_codec", "take_rows"]

_ALL: tuple[Codec, ...] = (
    Sign1(),
    TERNARY,
    *INTS,
    *VECTORS,
    *SPARSE24,
    LowRank(),
    *RESIDUALS,
    *TIERED,
    SparseExact(),
    Same(),
    Dense(),
)
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
