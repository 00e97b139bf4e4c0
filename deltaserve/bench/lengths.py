"""Distributions of lengths in tokens, written as `128`, `uniform:64,256`, `geometric:100` or `lognormal:90,0.8`."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from deltaserve.errors import InvalidArgumentError

_NUMBERS = {"fixed": 1, "uniform": 2, "geometric": 1, "lognormal": 2}
_CUT = frozenset({"geometric", "lognormal"})  # may be followed by the most
_MOST = 1_000_000
_FORMS = "`N`, `uniform:LEAST,MOST`, `geometric:MEAN[,MOST]` or `lognormal:MEDIAN,SIGMA[,MOST]`"


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of whole numbers of tokens, at least 1.

    Attributes:
        kind: `fixed`, `uniform` (both ends included), `geometric` or `lognormal`.
        numbers: its parameters, as written.
        most: longer draws are cut to this.
    """

    kind: str
    numbers: tuple[float, ...]
    most: int

    def draw(self, rng: random.Random) -> int:
        """Returns one length."""
        first = self.numbers[0]
        if self.kind == "fixed":
            return int(first)
        if self.kind == "uniform":
            return rng.randint(int(first), int(self.numbers[1]))
        if self.kind == "geometric":  # by inversion; a mean of 1 is always 1
            found = 1 if first == 1 else 1 + int(math.log(1 - rng.random()) / math.log(1 - 1 / first))
        else:
            found = round(rng.lognormvariate(math.log(first), self.numbers[1]))
        return min(max(found, 1), self.most)


def parse_lengths(text: str, field: str) -> Lengths:
    """Returns the distribution that `text` names; raises InvalidArgumentError naming `field`."""
    kind, _, rest = text.rpartition(":")
    kind = kind or "fixed"
    needed = _NUMBERS.get(kind, 0)
    try:
        written = [float(part) for part in rest.split(",")]
    except ValueError:
        written = []
    if not needed or len(written) not in {needed, needed + (kind in _CUT)}:
        raise InvalidArgumentError(f"{field} is {text!r}; expected {_FORMS}", field=field)
    numbers, most = tuple(written[:needed]), [*written[needed:], _MOST][0]
    lengths = [*numbers, most] if kind != "lognormal" else [numbers[0], most]
    if not all(1 <= length <= _MOST for length in lengths) or not 0 <= numbers[-1] < math.inf:
        raise InvalidArgumentError(f"{field} is {text!r}; expected lengths from 1 to {_MOST:,}", field=field)
    if kind == "uniform" and numbers[0] > numbers[1]:
        raise InvalidArgumentError(f"{field} is {text!r}; expected the least length first", field=field)
    return Lengths(kind, numbers, int(most))
