"""Progress of a run: one JSON object a line, as jobs pass it on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, TextIO

import msgspec

Stage = Literal["preparing", "compressing", "evaluating"]
_PARTS_OF_LAYER = 5


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line."""

    stage: Stage
    layers_done: int
    layers_total: int
    bytes_out: int
    eta_seconds: float | None
    layer_error: float
    attempt: int = 1


class Progress:
    """Tells how far a run is.

    Attributes:
        layers_total: decoder layers of the model; set once it is known.
        bytes_out: bytes of packed tensors written; likewise kept by the run.
    """

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self._clock = out, clock
        self._stage: Stage = "preparing"
        self._began = clock()
        self._coded = 0.0  # layers coded by this process; replayed ones take far less time and tell nothing
        self._error = 0.0
        self._attempt = 1
        self.layers_done = 0
        self.layers_total = 0
        self.bytes_out = 0

    def at(self, stage: Stage) -> None:
        """Enters a stage."""
        self._stage, self._began = stage, self._clock()
        self.tell()

    def attempting(self, attempt: int) -> None:
        """Begins an attempt, from 1, at the first layer."""
        self._attempt, self._coded, self._error, self.layers_done = attempt, 0.0, 0.0, 0

    def replayed(self) -> None:
        """One more layer is done, by a former process."""
        self.layers_done += 1
        self._began = self._clock()
        self.tell()

    def coding(self, part: int) -> None:
        """Part 1 to 4 of the layer at hand is coded: a sign of life from large models."""
        self.tell(part / _PARTS_OF_LAYER)

    def coded(self, error: float) -> None:
        """One more layer is done; `error` is its mean relative output error."""
        self.layers_done += 1
        self._coded += 1
        self._error = error
        self.tell()

    def tell(self, fraction: float = 0.0) -> None:
        """Writes a line; `fraction` is how much of the layer at hand is done."""
        line = Line(
            stage=self._stage,
            layers_done=self.layers_done,
            layers_total=self.layers_total,
            bytes_out=self.bytes_out,
            eta_seconds=self._eta(fraction),
            layer_error=self._error,
            attempt=self._attempt,
        )
        self._out.write(msgspec.json.encode(line).decode() + "\n")
        self._out.flush()

    def _eta(self, fraction: float) -> float | None:
        done = self._coded + fraction
        if self._stage != "compressing" or done == 0:
            return None
        left = self.layers_total - self.layers_done - fraction
        return round((self._clock() - self._began) / done * left, 1)
