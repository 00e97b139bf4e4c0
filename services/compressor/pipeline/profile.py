"""The profile of a fine-tune: what each way to code each tensor would store and cost. Made once a job, and kept."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import msgspec
import torch
from safetensors.torch import load_file, save_file

from deltaserve.delta.calibration import Curvature
from deltaserve.delta.classes import EMBEDDING, LM_HEAD, classify
from deltaserve.delta.coding import exact_codec
from deltaserve.delta.manifest import TensorClass
from deltaserve.files import publish, temp_beside
from services.compressor.pipeline.allocation import Candidate
from services.compressor.pipeline.batches import Batch, make_batches
from services.compressor.pipeline.choices import EXACT, Choice, Chooser, candidates
from services.compressor.pipeline.coder import Statistics
from services.compressor.pipeline.decoder import Decoder
from services.compressor.pipeline.hidden import Hidden, Memory
from services.compressor.pipeline.measure import Measure, metric_of, sample_rows
from services.compressor.pipeline.pair import Layer, Pair
from services.compressor.pipeline.progress import Progress
from services.compressor.pipeline.row_sample import ALL
from services.compressor.pipeline.samples import Samples
from services.compressor.pipeline.sensitivity import Backward, Sensitivity

log = logging.getLogger(__name__)

MAX_TOKENS = 8192
"""Most tokens that a profile is made from: costs of tensors differ by far more than what more of them would tell."""

_ROWS = 256  # of a linear whose errors are measured
_TABLE = "profile.json"
_PRIORS = "profile.safetensors"
_OF = "::"


def profiled_batches(samples: Samples) -> tuple[list[Batch], list[torch.Tensor]]:
    """Returns what a profile is made from: calibration sequences in which something is asked, at most MAX_TOKENS.

    With each batch comes, bool [B, T], the places before the tokens that the fine-tune is asked to say.
    """
    chosen, tokens = [], 0
    for i, sequence in enumerate(samples.calibration):
        if any(samples.asked[i][1:]) and tokens < MAX_TOKENS:
            chosen.append(i)
            tokens += len(sequence)
    batches = make_batches([samples.calibration[i] for i in chosen])
    measured = []
    for batch in batches:
        places = torch.zeros(batch.tokens.shape, dtype=torch.bool)
        for place, row in enumerate(batch.rows):
            asked = torch.tensor(samples.asked[chosen[row]][1:])
            places[place, : len(asked)] = asked
        measured.append(places)
    log.info("profiling over %d tokens", tokens)
    return batches, measured


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
        """Measures; see Backward for the arguments. What it tells of embeddings is kept too, see `priors`."""
        folder = self._work

        def room() -> Hidden:
            return Hidden(self._memory, folder, self._decoder.device)

        backward = Backward(
            self._pair, self._decoder, batches, measured, [room() for _ in range(self._decoder.layers)], room()
        )
        table: dict[str, list[Candidate]] = {}
        ends: dict[str, list[Sensitivity]] = {}
        for part in backward.sensitivities():
            for name, found in part.found.items():
                if name in (EMBEDDING, LM_HEAD):  # a tied lm_head is the embedding
                    ends.setdefault(EMBEDDING if self._pair.tuned.tied else name, []).insert(0, found)
                else:
                    table[name] = self._candidates(name, [found], *_taken(part.layer, name))
            progress.tell()
        for name, uses in ends.items():
            table[name] = self._candidates(name, uses, self._pair.base_tensor(name), self._pair.tuned_tensor(name))
        self._keep_priors(ends)
        profile = Profile(dict(sorted(table.items())))
        temp = temp_beside(folder / _TABLE)
        temp.write_bytes(msgspec.json.encode(profile))
        publish(temp, folder / _TABLE)
        return profile

    def priors(self) -> Mapping[str, Statistics]:
        """Returns what is known of embedding and untied lm_head before anything is coded; nothing without a profile."""
        if not (self._work / _TABLE).is_file():
            return {}
        kept = {name: tensor.to(self._decoder.device) for name, tensor in load_file(self._work / _PRIORS).items()}
        names = {name.partition(_OF)[0] for name in kept}
        return {
            name: Statistics(Curvature(kept[f"{name}{_OF}metric"]), power=kept[f"{name}{_OF}power"]) for name in names
        }

    def _keep_priors(self, priors: Mapping[str, Sequence[Sensitivity]]) -> None:
        tensors = {}
        for name, found in priors.items():
            tensors[f"{name}{_OF}metric"] = metric_of(found).cpu().contiguous()
            tensors[f"{name}{_OF}power"] = torch.stack([s.power for s in found]).sum(dim=0).cpu()
        temp = temp_beside(self._work / _PRIORS)
        save_file(tensors, temp)
        publish(temp, self._work / _PRIORS)

    def _candidates(
        self, name: str, sensitivities: Sequence[Sensitivity], base: torch.Tensor, tuned: torch.Tensor
    ) -> list[Candidate]:
        """Returns the candidates of a tensor, of which W_b and W_f are given; the latter is changed."""
        header = self._pair.tuned.tensors[name]
        kind = classify(name, header.shape)
        exact = Choice(*exact_codec(tuned, base, header.dtype))
        delta = tuned.sub_(base)
        choices = self._choices(kind, header.shape)
        about = _ROWS if kind == "linear" else delta.shape[0] if delta.shape[0] <= ALL else None
        measure = Measure(delta, sensitivities, choices, sample_rows(delta, sensitivities, about))
        found = []
        for choice in choices:
            if choice.codec == EXACT:
                size = exact.stored_bytes(header.shape, header.dtype, name)
                found.append(Candidate(choice, size, 0.0))
            elif (cost := measure.cost(choice)) is not None:
                found.append(Candidate(choice, choice.stored_bytes(header.shape, header.dtype, name), cost))
        return found

    def _choices(self, kind: TensorClass, shape: Sequence[int]) -> list[Choice]:
        asked = self._asked.choice(kind, shape)
        if kind in self._pinned:
            return [Choice(EXACT) if asked.codec == "dense" else asked]
        return candidates(shape, self._asked.group_size, embedding=kind != "linear", asked=asked)


def _taken(layer: Layer | None, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Takes W_b and W_f out of a layer that was read."""
    if layer is None:
        raise ValueError(f"{name} came without its layer")
    own = name.removeprefix(layer.prefix)
    return layer.base.pop(own), layer.tuned.pop(own)
