"""How a tensor may be coded: the choices, what they store, and the sets that presets choose from."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from deltaserve.delta.codecs import get_codec
from deltaserve.delta.codecs.intn import GROUP_SIZE
from deltaserve.delta.codecs.lowrank import RANK
from deltaserve.delta.codecs.sign1 import COLUMNS
from deltaserve.delta.codecs.tiered import ROWS
from deltaserve.delta.codecs.vector import VECTORS
from deltaserve.delta.layout import plane_bytes
from deltaserve.delta.manifest import TensorClass

EXACT = "exact"
"""Not one codec but whichever stores the tensor bit for bit in fewest bytes: see deltaserve.delta.coding.code_exact."""

_RANKS = (2, 4, 8, 16, 32, 64)
_RESIDUAL_RANKS = (1, 2, 4, 8)
_LISTED = (64, 32, 16, 8)  # one in so many rows of an embedding gets int4
_PLANE_HEADER = 110  # bytes that a plane's entry takes in the payload's header, its name aside


class Choice(msgspec.Struct, frozen=True):
    """A codec with its parameters, or EXACT."""

    codec: str
    params: dict[str, int] = {}

    @property
    def label(self) -> str:
        """How reports call it, e.g. `int2/128`."""
        if self.params.get(COLUMNS):
            return f"{self.codec}/columns"
        number = self.params.get(ROWS) or self.params.get(RANK) or self.params.get(GROUP_SIZE)
        return f"{self.codec}/{number}" if number else self.codec

    @property
    def fed_back(self) -> bool:
        """Whether coding feeds rounding errors back: at one bit and below that fits the calibration, not the model."""
        return not self.codec.rpartition("_")[2].startswith(("sign1", "vector"))

    @property
    def calibrated(self) -> bool:
        """Whether coding looks at the tensor's inputs."""
        return self.codec not in (EXACT, "dense", "same")

    def stored_bytes(self, shape: Sequence[int], dtype: str, name: str = "") -> int:
        """Returns what is stored for a tensor, its share of the payload's header included; EXACT counts as `dense`."""
        codec = get_codec("dense" if self.codec == EXACT else self.codec)
        specs = codec.plane_specs(shape, dtype, self.params)
        planes = sum(map(plane_bytes, specs.values()))
        return planes + len(specs) * (_PLANE_HEADER + len(name))


class Chooser(msgspec.Struct, frozen=True):
    """The choices that a user's codecs stand for, one a class of tensors."""

    linear: str
    embedding: str
    group_size: int

    def choice(self, kind: TensorClass, shape: Sequence[int]) -> Choice:
        """Returns the choice for a coded tensor."""
        return uniform(self.linear if kind == "linear" else self.embedding, self.group_size, shape)


def uniform(codec: str, group_size: int, shape: Sequence[int]) -> Choice:
    """Returns the choice of a codec that a user names for all tensors of a class."""
    grouped = codec in ("ternary", "int2", "int3", "int4") and 0 < group_size < shape[-1]
    return Choice(codec, {GROUP_SIZE: group_size} if grouped else {})


def candidates(shape: Sequence[int], group_size: int, *, embedding: bool, asked: Choice | None) -> list[Choice]:
    """Returns what allocation chooses from for a matrix, in no order; always EXACT, and what was asked for.

    2:4 sparse codes are not unless asked for: at equal bytes dense ones are better everywhere (docs/log.md).
    """
    found = [Choice("sign1"), Choice("ternary"), Choice("int2"), Choice(EXACT)]
    found += [Choice(codec.name) for codec in (VECTORS[:1] if embedding else VECTORS)]
    found += [Choice("lowrank", {RANK: rank}) for rank in _RANKS if not embedding and 8 * rank <= min(shape)]
    for codec in ("lowrank_vector8", "lowrank_ternary", "lowrank_int2"):
        found += [Choice(codec, {RANK: rank}) for rank in _RESIDUAL_RANKS if 16 * rank <= min(shape)]
    if embedding:
        counts = [count for count in (shape[0] // share for share in _LISTED) if count]
        grouped = uniform("int4", group_size, shape).params
        found += [
            Choice(f"tiered_{inner}", grouped | {ROWS: c}) for inner in ("vector8", "ternary", "int2") for c in counts
        ]
    for codec in ("ternary", "int2", "int3", "int4"):
        choice = uniform(codec, group_size, shape)
        found += [choice] if choice not in found else []
    return [*found, asked] if asked is not None and asked.codec != "dense" and asked not in found else found
