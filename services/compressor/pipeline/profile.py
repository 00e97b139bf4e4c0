"""The profile of a fine-tune: what each way to code each tensor would store and cost. Made once a job, and kept."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec
import torch
from safetensors.torch import load_file, save_file

from deltaserve.delta.calibration import Curvature
from deltaserve.delta.classes import EMBEDDING, LM_HEAD, classify
from deltaserve.delta.codecs import EncodeOptions, get_codec
from deltaserve.delta.codecs.lowrank import RANK
from deltaserve.delta.coding import exact_codec
from deltaserve.delta.manifest import TensorClass
from deltaserve.delta.spectrum import factorise
from deltaserve.files import publish, temp_beside
from services.compressor.pipeline.allocation import Candidate
from services.compressor.pipeline.batches import Batch
from services.compressor.pipeline.choices import EXACT, Choice, Chooser, candidates
from services.compressor.pipeline.decoder import Decoder
from services.compressor.pipeline.hidden import Hidden, Memory
from services.compressor.pipeline.pair import Pair
from services.compressor.pipeline.progress import Progress
from services.compressor.pipeline.sensitivity import Backward, Sensitivity

MAX_TOKENS = 8192
"""Most tokens that a profile is made from: costs of tensors differ by far more than what more of them would tell."""

_ROWS = 256  # of a matrix whose errors are measured
_ROUNDING = EncodeOptions(feedback=False)
# What error feedback leaves of an error by rounding, on average over three real fine-tunes (docs/log.md).
_FEEDBACK = 0.75
# Factors that leave out more than this share of a delta's cost are no candidates: that shrinks the delta, which adds up
# over layers, and costs are made for noise, which does not.
_SHRUNK = 0.02
_TABLE = "profile.json"
_METRIC = "profile.safetensors"


class Profile(msgspec.Struct, frozen=True):
    """Candidates of every coded tensor by name."""

    table: dict[str, list[Candidate]]


class Profiler:
    """Makes the profile of a pair.

    Args:
        pair: base and fine-tune.
        decoder: of the fine-tune.
        memory: of hidden states.
        work: folder that keeps the profile, and files that memory has no room for.
        asked: by class, what a fixed codec stands for.
        pinned: classes of which `asked` is the only candidate.
    """

    def __init__(
        self, pair: Pair, decoder: Decoder, memory: Memory, work: Path, asked: Chooser, pinned: Collection[TensorClass]
    ) -> None:
        self._pair, self._decoder, self._memory, self._work = pair, decoder, memory, work
        self._asked, self._pinned = asked, pinned

    def load(self) -> Profile | None:
        """Returns the profile that a former process has made in this work folder."""
        path = self._work / _TABLE
        return msgspec.json.decode(path.read_bytes(), type=Profile) if path.is_file() else None

    def make(self, batches: list[Batch], measured: list[torch.Tensor], progress: Progress) -> Profile:
        """Measures; see Backward for the arguments. The metric of the embedding is kept too, see `metric`."""
        folder = self._work

        def room() -> Hidden:
            return Hidden(self._memory, folder, self._decoder.device)

        backward = Backward(
            self._pair, self._decoder, batches, measured, [room() for _ in range(self._decoder.layers)], room()
        )
        table: dict[str, list[Candidate]] = {}
        tied: Sensitivity | None = None
        for part in backward.sensitivities():
            for name, found in part.items():
                if name == LM_HEAD and self._pair.tuned.tied:
                    tied = found
                    continue
                sensitivities = [found]
                if name == EMBEDDING:
                    sensitivities += [tied] if tied is not None else []
                    self._keep_metric(sensitivities)
                table[name] = self._candidates(name, sensitivities)
            progress.tell()
        profile = Profile(dict(sorted(table.items())))
        temp = temp_beside(folder / _TABLE)
        temp.write_bytes(msgspec.json.encode(profile))
        publish(temp, folder / _TABLE)
        return profile

    def metric(self) -> Curvature | None:
        """Returns what errors of the embedding's columns cost, once there is a profile."""
        path = self._work / _METRIC
        if not (self._work / _TABLE).is_file():
            return None
        return Curvature(load_file(path)["embedding"].to(self._decoder.device))

    def _keep_metric(self, sensitivities: Sequence[Sensitivity]) -> None:
        metric = torch.stack([s.gram * s.power.mean() for s in sensitivities]).sum(dim=0)
        temp = temp_beside(self._work / _METRIC)
        save_file({"embedding": (metric / metric.diagonal().mean().clamp_min(1e-30)).cpu().contiguous()}, temp)
        publish(temp, self._work / _METRIC)

    def _candidates(self, name: str, sensitivities: Sequence[Sensitivity]) -> list[Candidate]:
        header = self._pair.tuned.tensors[name]
        base, tuned = self._pair.base_tensor(name), self._pair.tuned_tensor(name)
        step = -(-base.shape[0] // _ROWS)
        rows = slice(0, None, step)
        delta = tuned[rows] - base[rows]
        share = [float(s.power.sum() / s.power[rows].sum().clamp_min(1e-30)) for s in sensitivities]
        choices = self._choices(classify(name, header.shape), header.shape)
        factors = _factors(tuned - base, choices)
        whole = sum(s.cost(delta, rows) * part for s, part in zip(sensitivities, share, strict=True))
        found = []
        for choice in choices:
            if choice.codec == EXACT:
                size = Choice(*exact_codec(tuned, base, header.dtype)).stored_bytes(header.shape, header.dtype, name)
                found.append(Candidate(choice, size, 0.0))
                continue
            error = delta - _decoded(choice, delta, sensitivities[0], factors, rows)
            cost = sum(s.cost(error, rows) * part for s, part in zip(sensitivities, share, strict=True))
            if choice.codec == "lowrank" and cost > _SHRUNK * whole:
                continue
            cost *= 1.0 if choice.codec.removeprefix("lowrank_") in ("lowrank", "sign1") else _FEEDBACK
            found.append(Candidate(choice, choice.stored_bytes(header.shape, header.dtype, name), cost))
        return found

    def _choices(self, kind: TensorClass, shape: Sequence[int]) -> list[Choice]:
        asked = self._asked.choice(kind, shape)
        if kind in self._pinned:
            return [Choice(EXACT) if asked.codec == "dense" else asked]
        return candidates(shape, self._asked.group_size, embedding=kind != "linear", asked=asked)


def _factors(delta: torch.Tensor, choices: Sequence[Choice]) -> tuple[torch.Tensor, torch.Tensor] | None:
    ranks = [choice.params[RANK] for choice in choices if RANK in choice.params]
    return factorise(delta, max(ranks)) if ranks else None


def _decoded(
    choice: Choice,
    delta: torch.Tensor,
    sensitivity: Sensitivity,
    factors: tuple[torch.Tensor, torch.Tensor] | None,
    rows: slice,
) -> torch.Tensor:
    """Returns Δ̂ of some rows, coded by rounding."""
    rank = choice.params.get(RANK, 0)
    near = factors[0][rows, :rank] @ factors[1][:rank] if rank and factors is not None else torch.zeros_like(delta)
    if choice.codec == "lowrank":
        return near
    codec = get_codec(choice.codec.removeprefix("lowrank_"))
    params = {name: value for name, value in choice.params.items() if name != RANK}
    planes = codec.encode(delta - near, Curvature(sensitivity.gram), params, _ROUNDING)
    return near + codec.decode(planes, delta.shape, params, torch.float32).to(delta.device)
