"""What ways to code a delta by rounding cost, measured over some of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from deltaserve.delta.calibration import Curvature, weighted
from deltaserve.delta.codecs import EncodeOptions, get_codec
from deltaserve.delta.codecs.lowrank import RANK
from deltaserve.delta.codecs.tiered import ROWS
from deltaserve.delta.spectrum import factorise
from services.compressor.pipeline.choices import Choice
from services.compressor.pipeline.row_sample import RowSample, by_rank, evenly
from services.compressor.pipeline.sensitivity import Sensitivity

_ROUNDING = EncodeOptions(feedback=False)
# What error feedback is taken to leave of an error by rounding: with it, predictions for three real fine-tunes were
# within a third of what was measured (docs/adr/0005).
_FEEDBACK = 0.75
# Factors that leave out more than this share of a delta's cost are no candidates: that shrinks the delta, which adds up
# over layers, and costs are made for noise, which does not.
_SHRUNK = 0.02
# Directions beside a rest in few bits pay only if they hold more of the delta's energy than this many times their share
# of its values: with 16 bits for each of theirs against what a bit more for all others saves it is 11 to 15 times.
_WORTH = 8.0
_CHUNK_ELEMENTS = 32 << 20


def sample_rows(delta: torch.Tensor, sensitivities: Sequence[Sensitivity], about: int | None) -> RowSample:
    """Returns the rows of Δ [N, K] to measure: about so many evenly spread ones, or for None by what they cost."""
    if about is not None:
        return evenly([s.power for s in sensitivities], about)
    rows = max(1, _CHUNK_ELEMENTS // delta.shape[1])
    return by_rank(
        [
            torch.cat([weighted(part, part, Curvature(s.gram)) for part in torch.split(delta, rows)]) * s.power
            for s in sensitivities
        ]
    )


def metric_of(sensitivities: Sequence[Sensitivity]) -> torch.Tensor:
    """Returns what errors of a matrix's columns cost in all its uses together, [K, K] of mean diagonal one."""
    metric = torch.stack([s.gram * s.power.mean() for s in sensitivities]).sum(dim=0)
    return metric / metric.diagonal().mean().clamp_min(1e-30)


class Measure:
    """What ways to code a delta cost, over some of its rows."""

    def __init__(
        self, delta: torch.Tensor, sensitivities: Sequence[Sensitivity], choices: Sequence[Choice], sample: RowSample
    ) -> None:
        """Takes Δ [N, K], what errors of it cost, the choices that `cost` may be asked for, and the rows to measure."""
        self._sample, self._delta = sample, delta[sample.rows]
        self._sensitivities = [
            Sensitivity(s.gram, s.power[sample.rows] * weight)
            for s, weight in zip(sensitivities, sample.weights, strict=True)
        ]
        power = torch.stack([s.power[sample.rows] for s in sensitivities]).sum(dim=0)
        self._options = replace(_ROUNDING, row_power=power)
        self._curvature = Curvature(metric_of(sensitivities))
        self._whole = self._cost_of(self._delta)
        asked = any(choice.codec == "lowrank" for choice in choices)
        self._left_out = self._least_left_out() if asked else None
        self._considered = [choice for choice in choices if not self._shrinks(choice)]
        ranks = [choice.params[RANK] for choice in self._considered if RANK in choice.params]
        self._factors = factorise(delta, max(ranks)) if ranks else None
        self._shares = self._held_by_directions(delta)

    def cost(self, choice: Choice) -> float | None:
        """Returns the predicted KL of a choice, nats a token; None for one that shrinks the delta or never pays."""
        if choice not in self._considered or not self._pays(choice):
            return None
        cost = self._cost_of(self._delta - self._decoded(choice))
        if choice.codec == "lowrank":
            return cost if cost <= _SHRUNK * self._whole else None
        return _FEEDBACK * cost if choice.fed_back else cost

    def _cost_of(self, error: torch.Tensor) -> float:
        return sum(sensitivity.cost(error, slice(None)) for sensitivity in self._sensitivities)

    def _least_left_out(self) -> torch.Tensor | None:
        """Returns, by rank [M + 1], the share of cost that factors of it leave out at least: Eckart and Young's bound.

        None where a matrix is used in several ways, for which there is no such bound. It spares the factorisation of
        deltas that are far from low rank, which takes longer than all other candidates.
        """
        if len(self._sensitivities) > 1 or self._whole <= 0:
            return None
        only = self._sensitivities[0]
        rows = self._delta * only.power.sqrt().unsqueeze(1)
        sizes = torch.linalg.eigvalsh(((rows @ only.gram) @ rows.T).double().cpu()).clamp_min(0)
        held = torch.cat([sizes.new_zeros(1), sizes.flip(0).cumsum(dim=0)])
        return 1 - held / held[-1].clamp_min(1e-300)

    def _shrinks(self, choice: Choice) -> bool:
        """Tells whether factors alone leave out too much, as far as that is known before they are made."""
        if choice.codec != "lowrank" or self._left_out is None:
            return False
        rank = min(choice.params[RANK], self._left_out.numel() - 1)
        return float(self._left_out[rank]) > 1.05 * _SHRUNK  # beyond doubt: the bound is rounded

    def _held_by_directions(self, delta: torch.Tensor) -> torch.Tensor | None:
        """Returns the share of Δ's energy in its largest directions, up to each rank."""
        if self._factors is None:
            return None
        energy = self._factors[1].square().sum(dim=1).square()  # the rows of `right` have the root of a size each
        return (energy.cumsum(dim=0) / delta.square().sum().clamp_min(1e-30)).cpu()

    def _pays(self, choice: Choice) -> bool:
        rank = choice.params.get(RANK, 0)
        if choice.codec == "lowrank" or not rank or self._factors is None or self._shares is None:
            return True
        rows, columns = self._factors[0].shape[0], self._factors[1].shape[1]
        return float(self._shares[rank - 1]) > _WORTH * rank * (rows + columns) / (rows * columns)

    def _decoded(self, choice: Choice) -> torch.Tensor:
        rank, delta = choice.params.get(RANK, 0), self._delta
        near = torch.zeros_like(delta)
        if rank and self._factors is not None:
            near = self._factors[0][self._sample.rows, :rank] @ self._factors[1][:rank]
        if choice.codec == "lowrank":
            return near
        codec = get_codec(choice.codec.removeprefix("lowrank_"))
        params = {name: value for name, value in choice.params.items() if name != RANK}
        if ROWS in params:
            params[ROWS] = self._sample.count(params[ROWS])
        planes = codec.encode(delta - near, self._curvature, params, self._options)
        return near + codec.decode(planes, delta.shape, params, torch.float32).to(delta.device)
