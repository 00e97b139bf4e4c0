"""The streams of a run: calibration, held-out text and labelled answers, over base, fine-tune and served model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from services.compressor.pipeline.batches import make_batches
from services.compressor.pipeline.decoder import Decoder, Weights
from services.compressor.pipeline.hidden import Hidden, Memory
from services.compressor.pipeline.quality import MODELS, Head, Model, Quality, measure_answers, measure_text
from services.compressor.pipeline.samples import Samples
from services.compressor.pipeline.streams import Calibration, Stream

Streams = Mapping[Model, Stream]


@dataclass(frozen=True, slots=True)
class Models:
    """All streams.

    Attributes:
        calibration: of fine-tune and served model.
        text: of all three models over held-out sequences.
        answers: of all three models over labelled answers; no batches without evaluation.
    """

    calibration: Calibration
    text: Streams
    answers: Streams

    @classmethod
    def over(cls, samples: Samples, decoder: Decoder, memory: Memory, scratch: Path) -> Models:
        """Makes streams over samples, not begun yet; `scratch` takes what `memory` does not."""

        def hidden() -> Hidden:
            return Hidden(memory, scratch, decoder.device)

        def streams(sequences: list[list[int]]) -> dict[Model, Stream]:
            batches = make_batches(sequences)
            return {model: Stream(decoder, batches, hidden()) for model in MODELS}

        batches = make_batches(samples.calibration)
        calibration = Calibration(Stream(decoder, batches, hidden()), Stream(decoder, batches, hidden()), hidden())
        return cls(
            calibration,
            streams([one.tokens for one in samples.held_out]),
            streams([one.tokens for one in samples.answers]),
        )

    def begin(self, embeddings: Mapping[Model, torch.Tensor], *, calibrate: bool) -> None:
        """Starts all streams from each model's embedding; those of calibration only if they are needed."""
        for streams in (self.text, self.answers):
            for model, stream in streams.items():
                stream.begin(embeddings[model])
        if calibrate:
            self.calibration.tuned.begin(embeddings["fine_tune"])
            self.calibration.served.begin(embeddings["compressed"])

    def advance(self, layer: int, weights: Mapping[Model, Weights]) -> None:
        """Takes the measured streams through a layer."""
        for streams in (self.text, self.answers):
            for model, stream in streams.items():
                stream.advance(layer, weights[model])

    def measure(self, samples: Samples, heads: Mapping[Model, Head]) -> tuple[Quality, dict[Model, float] | None]:
        """Returns figures over held-out text and, if there are labelled rows, accuracies."""
        quality = measure_text(self.text, heads, [one.asked for one in samples.held_out])
        if not samples.rows:
            return quality, None
        return quality, measure_answers(self.answers, heads, samples.answers, samples.rows, samples.ends)
