"""Codes a model part after part: embedding, layers, head; with all streams going along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec
import torch

from deltaserve.delta.classes import EMBEDDING, LM_HEAD
from deltaserve.delta.packed import PackedTensor
from services.compressor.pipeline.choices import Choice
from services.compressor.pipeline.coder import Coded, Coder, Statistics
from services.compressor.pipeline.models import Models
from services.compressor.pipeline.pair import Layer, Pair
from services.compressor.pipeline.parts import Parts
from services.compressor.pipeline.progress import Progress
from services.compressor.pipeline.quality import Head, Model
from services.compressor.pipeline.streams import STAGES

_EMBEDDING_PART = "embedding"
_HEAD_PART = "head"
_NORM = "model.norm.weight"


def part_names(layers: int) -> list[str]:
    """Returns the names of all parts in the order in which they are coded."""
    return [_EMBEDDING_PART, *(f"layer-{layer:05d}" for layer in range(layers)), _HEAD_PART]


def coding_of_parts(choices: Mapping[str, Choice], layers: int, *, profiled: bool) -> dict[str, str]:
    """Returns how each part is coded as a text, in order, for Parts.begin."""
    coded: dict[str, dict[str, Choice]] = {part: {} for part in part_names(layers)}
    for name, choice in sorted(choices.items()):
        coded[part_of(name)][name] = choice
    texts = {part: msgspec.json.encode(chosen).decode() for part, chosen in coded.items()}
    return {part: f"{text} profiled" if profiled else text for part, text in texts.items()}


def part_of(name: str) -> str:
    """Returns the part that a coded tensor belongs to."""
    if name in (EMBEDDING, LM_HEAD):
        return _EMBEDDING_PART if name == EMBEDDING else _HEAD_PART
    return f"layer-{int(name.split('.')[2]):05d}"


@dataclass(frozen=True)
class Compression:
    """The coding of one fine-tune. Parts that are there already are not coded again, only computed with.

    Attributes:
        priors: what a profile tells of embedding and untied lm_head.
    """

    pair: Pair
    coder: Coder
    parts: Parts
    models: Models
    progress: Progress
    priors: Mapping[str, Statistics] = field(default_factory=dict)

    def run(self) -> dict[Model, Head]:
        """Codes what is missing, and takes the measured streams to the end; returns the heads to measure with."""
        layers = self.models.calibration.tuned.decoder.layers
        self.progress.layers_total, self.progress.bytes_out = layers, self.parts.bytes
        self.progress.at("compressing")
        names = part_names(layers)[1:]
        last_missing = max((i for i, name in enumerate(names) if name not in self.parts), default=-1)
        last_missing = -1 if self.pair.ready else last_missing  # then nothing is calibrated
        self.models.begin(self._embeddings(), calibrate=last_missing >= 0)
        for index, layer in enumerate(self.pair.layers(range(layers))):
            self._layer(index, layer, names[index], calibrate=index < last_missing)
        return self._heads()

    def _embeddings(self) -> dict[Model, torch.Tensor]:
        base, tuned = self.pair.base_tensor(EMBEDDING), self.pair.tuned_tensor(EMBEDDING)
        if _EMBEDDING_PART in self.parts:
            served = self.parts.read(_EMBEDDING_PART)[EMBEDDING].to(base.device).merged(base)
        else:
            coded = self.coder.code(EMBEDDING, base, tuned, self.priors.get(EMBEDDING))
            self._add(_EMBEDDING_PART, {EMBEDDING: coded}, [])
            served = coded.served
        return {"base": base, "fine_tune": tuned, "compressed": served}

    def _layer(self, index: int, layer: Layer, part: str, *, calibrate: bool) -> None:
        if part in self.parts:
            self._decode(layer, self.parts.read(part))
            if calibrate:
                self.models.calibration.advance(index, layer.tuned, layer.served)
            self.progress.replayed()
        else:
            coded = self._code_layer(index, layer)
            whole = [self.pair.whole(layer.prefix + name) for name in layer.kept]
            self._add(part, coded, whole)
            errors = [one.error for one in coded.values()]
            self.progress.coded(sum(errors) / len(errors))
        self.models.advance(index, {"base": layer.base, "fine_tune": layer.tuned, "compressed": layer.served})

    def _code_layer(self, index: int, layer: Layer) -> dict[str, Coded]:
        coded: dict[str, Coded] = {}
        if not any(self.coder.calibrated(layer.prefix + name) for stage in STAGES for name in stage):
            for stage in STAGES:
                self._code_stage(layer, stage, None, coded)
            if not self.pair.ready:
                self.models.calibration.advance(index, layer.tuned, layer.served)
            return coded
        stages = self.models.calibration.stages(index, layer.tuned, layer.served)
        for number, (moments, stage) in enumerate(zip(stages, STAGES, strict=True), 1):
            self._code_stage(layer, stage, Statistics.of(moments), coded)
            self.progress.coding(number)
        return coded

    def _code_stage(
        self, layer: Layer, stage: tuple[str, ...], statistics: Statistics | None, coded: dict[str, Coded]
    ) -> None:
        for name in stage:
            one = self.coder.code(layer.prefix + name, layer.base[name], layer.tuned[name], statistics)
            layer.served[name] = one.served
            coded[layer.prefix + name] = one

    def _decode(self, layer: Layer, packed: Mapping[str, PackedTensor]) -> None:
        for name, base in layer.base.items():
            layer.served[name] = packed[layer.prefix + name].to(base.device).merged(base)

    def _heads(self) -> dict[Model, Head]:
        norms = self.pair.base_tensor(_NORM), self.pair.tuned_tensor(_NORM)
        matrices = self._tied() if self.pair.tuned.tied else self._untied(norms[1])
        if _HEAD_PART not in self.parts:
            self._add(_HEAD_PART, {}, [self.pair.whole(_NORM)])
        base, tuned, served = matrices
        return {"base": Head(norms[0], base), "fine_tune": Head(norms[1], tuned), "compressed": Head(norms[1], served)}

    def _tied(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        embeddings = self._embeddings()
        return embeddings["base"], embeddings["fine_tune"], embeddings["compressed"]

    def _untied(self, norm: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        base, tuned = self.pair.base_tensor(LM_HEAD), self.pair.tuned_tensor(LM_HEAD)
        if _HEAD_PART in self.parts:
            return base, tuned, self.parts.read(_HEAD_PART)[LM_HEAD].to(base.device).merged(base)
        moments = self.models.calibration.final_moments(norm, norm) if self.coder.calibrated(LM_HEAD) else None
        statistics = Statistics.of(moments) if moments else None
        if statistics and LM_HEAD in self.priors:
            statistics = replace(statistics, power=self.priors[LM_HEAD].power)
        coded = self.coder.code(LM_HEAD, base, tuned, statistics)
        self._add(_HEAD_PART, {LM_HEAD: coded}, [self.pair.whole(_NORM)])
        return base, tuned, coded.served

    def _add(self, part: str, coded: Mapping[str, Coded], whole: list[PackedTensor]) -> None:
        errors = {name: one.error for name, one in coded.items()}
        self.parts.add(part, [*(one.packed for one in coded.values()), *whole], errors)
        self.progress.bytes_out = self.parts.bytes
