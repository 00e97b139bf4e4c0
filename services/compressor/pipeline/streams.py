"""Streams of hidden states: one model over one set of batches, layer after layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from deltaserve.delta.calibration import Moments
from services.compressor.pipeline.batches import Batch
from services.compressor.pipeline.decoder import Decoder, Weights
from services.compressor.pipeline.hidden import Hidden
from services.compressor.pipeline.precision import tensor_cores

STAGES: tuple[tuple[str, ...], ...] = (
    ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    ("self_attn.o_proj.weight",),
    ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    ("mlp.down_proj.weight",),
)
"""A layer's linears by the input they share, in the order in which they are coded."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Hidden states of one model over some batches."""

    decoder: Decoder
    batches: Sequence[Batch]
    hidden: Hidden

    def begin(self, embedding: torch.Tensor) -> None:
        """Starts from an embedding, float32 [V, H]."""
        for i, batch in enumerate(self.batches):
            self.hidden[i] = embedding[batch.tokens.to(embedding.device)]

    def advance(self, layer: int, weights: Weights) -> None:
        """Goes through a layer."""
        for i in range(len(self.batches)):
            self.hidden[i] = self.decoder.forward(layer, weights, self.hidden[i])


@dataclass(frozen=True, slots=True)
class Calibration:
    """The fine-tune's and the served model's streams over the calibration batches.

    Attributes:
        tuned: the fine-tune's stream.
        served: the stream of base + what is coded so far, with all finished layers coded.
        attended: room for o_proj's inputs in the served model.
    """

    tuned: Stream
    served: Stream
    attended: Hidden

    def stages(self, layer: int, tuned: Weights, served: Weights) -> Iterator[Moments]:
        """Takes both streams through a layer while it is being coded, true-sequentially.

        Yields the moments of the inputs of each of STAGES; before the next is asked for, the stage's linears must be
        in `served`. The streams then hold exactly what Stream.advance would have made of them.
        """
        decoder, ours, theirs = self.tuned.decoder, self.served.hidden, self.tuned.hidden
        yield self._moments(
            (decoder.attention_input(layer, served, ours[i]), decoder.attention_input(layer, tuned, theirs[i]))
            for i in self._batches()
        )
        yield self._moments(self._attend(layer, tuned, served, i) for i in self._batches())
        yield self._moments(self._between(layer, tuned, served, i) for i in self._batches())
        yield self._moments(self._gate(layer, tuned, served, i) for i in self._batches())
        with tensor_cores():
            for i in self._batches():
                gated = decoder.gate(layer, served, decoder.mlp_input(layer, served, ours[i]))
                ours[i] = decoder.after_mlp(served, ours[i], gated)
        self.attended.clear()

    def advance(self, layer: int, tuned: Weights, served: Weights) -> None:
        """Takes both streams through a finished layer."""
        with tensor_cores():
            self.tuned.advance(layer, tuned)
            self.served.advance(layer, served)

    def final_moments(self, tuned_norm: torch.Tensor, served_norm: torch.Tensor) -> Moments:
        """Returns the moments of lm_head's inputs."""
        decoder = self.tuned.decoder
        return self._moments(
            (
                decoder.final_norm(served_norm, self.served.hidden[i]),
                decoder.final_norm(tuned_norm, self.tuned.hidden[i]),
            )
            for i in self._batches()
        )

    def _batches(self) -> range:
        return range(len(self.tuned.batches))

    def _attend(self, layer: int, tuned: Weights, served: Weights, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        decoder, theirs = self.tuned.decoder, self.tuned.hidden
        attended = decoder.attend(layer, tuned, decoder.attention_input(layer, tuned, theirs[i]))
        theirs[i] = decoder.after_attention(tuned, theirs[i], attended)
        ours = decoder.attend(layer, served, decoder.attention_input(layer, served, self.served.hidden[i]))
        self.attended[i] = ours
        return ours, attended

    def _between(self, layer: int, tuned: Weights, served: Weights, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        decoder, ours = self.tuned.decoder, self.served.hidden
        ours[i] = decoder.after_attention(served, ours[i], self.attended[i])
        return decoder.mlp_input(layer, served, ours[i]), decoder.mlp_input(layer, tuned, self.tuned.hidden[i])

    def _gate(self, layer: int, tuned: Weights, served: Weights, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        decoder, theirs = self.tuned.decoder, self.tuned.hidden
        gated = decoder.gate(layer, tuned, decoder.mlp_input(layer, tuned, theirs[i]))
        theirs[i] = decoder.after_mlp(tuned, theirs[i], gated)
        return decoder.gate(layer, served, decoder.mlp_input(layer, served, self.served.hidden[i])), gated

    def _moments(self, inputs: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> Moments:
        """Accumulates (served, tuned) inputs, [B, T, K] each and batch by batch, without padding."""
        moments: Moments | None = None
        with tensor_cores():
            for batch, (served, tuned) in zip(self.tuned.batches, inputs, strict=True):
                valid = batch.valid.to(served.device)
                if moments is None:
                    moments = Moments(served.shape[-1], device=served.device)
                moments.add(served[valid], tuned[valid])
        if moments is None:
            raise ValueError("calibration has no batches")
        return moments
