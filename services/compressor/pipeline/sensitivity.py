"""What errors of each tensor cost: one forward and one backward pass over the fine-tune, layer by layer.

To second order the KL from the fine-tune to a model whose linear computes with Δ̂ instead of Δ is half the mean of
(gᵀ(Δ − Δ̂)x)² over tokens, g being the gradient at the linear's output of log-likelihoods of tokens drawn from the
fine-tune itself (Fisher's information), x its input. With g's elements taken as uncorrelated it is
½ Σ_n power_n ((Δ−Δ̂) gram (Δ−Δ̂)ᵀ)_nn, which needs two small statistics a linear.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from deltaserve.delta.classes import EMBEDDING, LM_HEAD
from services.compressor.pipeline.batches import Batch
from services.compressor.pipeline.decoder import Decoder, Weights
from services.compressor.pipeline.hidden import Hidden
from services.compressor.pipeline.pair import Layer, Pair

_LOGITS = 1 << 24  # elements of logits at a time
_UNSEEN_AT_LEAST = 0.01
_SEED = 0


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What an error of a matrix costs.

    Attributes:
        gram: of the inputs, [K, K]; for an input embedding the diagonal of the gradient's power.
        power: of the gradient at each output, a token that is measured, [N].
    """

    gram: torch.Tensor
    power: torch.Tensor

    def cost(self, error: torch.Tensor, rows: slice) -> float:
        """Returns the KL, nats a token, that an error [M, K] of some rows causes."""
        sizes = ((error @ self.gram) * error).sum(dim=1)
        return 0.5 * float((sizes * self.power[rows]).sum(dtype=torch.float64))


@dataclass(frozen=True, slots=True)
class Part:
    """What is known of a part of the model.

    Attributes:
        found: sensitivities by tensor name.
        layer: the weights if it is a layer; the receiver may change them.
    """

    found: dict[str, Sensitivity]
    layer: Layer | None = None


@dataclass(frozen=True)
class Backward:
    """The two passes; `sensitivities` yields linears of the last layer first, then of the ones before.

    Attributes:
        pair: base and fine-tune.
        decoder: computes layers.
        batches: what is computed over.
        measured: for each batch, Bool [B, T]: places whose next token counts.
        before: for each layer, room for the hidden states before it.
        after: room for those after the last, and for gradients.
    """

    pair: Pair
    decoder: Decoder
    batches: list[Batch]
    measured: list[torch.Tensor]
    before: list[Hidden]
    after: Hidden

    def sensitivities(self) -> Iterator[Part]:
        """Yields part after part: head, layers from the last, embedding.

        A tied embedding comes twice: as EMBEDDING, what its rows do as inputs, and as LM_HEAD, as outputs.
        """
        self._forward()
        yield Part({LM_HEAD: self._head()})
        numbers = range(self.decoder.layers)[::-1]
        for number, layer in zip(numbers, self.pair.layers(numbers), strict=True):
            found = self._layer(number, layer.tuned)
            yield Part({layer.prefix + name: one for name, one in found.items()}, layer)
        yield Part({EMBEDDING: self._embedding()})
        self.after.clear()

    def _forward(self) -> None:
        embedding = self.pair.tuned_tensor(EMBEDDING)
        for i, batch in enumerate(self.batches):
            self.before[0][i] = embedding[batch.tokens.to(embedding.device)]
        for layer, weights in enumerate(self.pair.tuned_layers(range(self.decoder.layers))):
            into = self.before[layer + 1] if layer + 1 < self.decoder.layers else self.after
            for i in range(len(self.batches)):
                into[i] = self.decoder.forward(layer, weights, self.before[layer][i])

    @property
    def _tokens(self) -> int:
        return sum(int(places.sum()) for places in self.measured)

    def _head(self) -> Sensitivity:
        norm = self.pair.tuned_tensor("model.norm.weight")
        matrix = self.pair.tuned_tensor(EMBEDDING if self.pair.tuned.tied else LM_HEAD)
        gram = torch.zeros(matrix.shape[1], matrix.shape[1], device=matrix.device)
        power = torch.zeros(matrix.shape[0], device=matrix.device)
        random = torch.Generator(device=matrix.device).manual_seed(_SEED)
        for i, places in enumerate(self.measured):
            states = self.after[i]
            gradient = torch.zeros_like(states)
            picked = places.to(states.device)
            parts = []
            for chunk in torch.split(states[picked], max(1, _LOGITS // matrix.shape[0])):
                with torch.enable_grad():
                    hidden = chunk.requires_grad_()
                    normed = self.decoder.final_norm(norm, hidden)
                    inputs = normed.detach()
                    chances = functional.linear(inputs, matrix).softmax(dim=-1)
                    drawn = torch.multinomial(chances, 1, generator=random)
                    gram.addmm_(inputs.T, inputs)
                    power += (chances * (1 - chances)).sum(dim=0)
                    upstream = chances.scatter_add_(1, drawn, chances.new_full(drawn.shape, -1.0)).neg_() @ matrix
                    parts.append(torch.autograd.grad(normed, hidden, upstream)[0])
            gradient[picked] = torch.cat(parts) if parts else gradient[picked]
            self.after[i] = gradient
        said = torch.cat([b.tokens.roll(-1, dims=1)[p] for b, p in zip(self.batches, self.measured, strict=True)])
        return Sensitivity(gram / max(self._tokens, 1), _spread(power, said) / max(self._tokens, 1))

    def _layer(self, layer: int, weights: Weights) -> dict[str, Sensitivity]:
        grams: dict[str, torch.Tensor] = {}
        powers: dict[str, torch.Tensor] = {}
        count = 0
        for i, batch in enumerate(self.batches):
            valid = batch.valid.to(self.decoder.device)
            count += int(valid.sum())
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the only backward pass that repeats to the bit
                hidden = self.before[layer][i].requires_grad_()
                output, taps = self.decoder.traced(layer, weights, hidden)
                outputs = [tap.output for tap in taps.values()]
                below, *gradients = torch.autograd.grad(output, [hidden, *outputs], self.after[i])
            self.after[i] = below
            for (name, tap), gradient in zip(taps.items(), gradients, strict=True):
                inputs = tap.input.detach()[valid]
                grams[name] = grams.get(name, 0) + inputs.T @ inputs
                powers[name] = powers.get(name, 0) + gradient[valid].square().sum(dim=0)
        self.before[layer].clear()
        return {name: Sensitivity(grams[name] / count, powers[name] / max(self._tokens, 1)) for name in grams}

    def _embedding(self) -> Sensitivity:
        rows, columns = self.pair.tuned.tensors[EMBEDDING].shape
        device = self.decoder.device
        by_row, by_column = torch.zeros(rows), torch.zeros(columns, device=device)
        for i, batch in enumerate(self.batches):
            sizes = self.after[i][batch.valid.to(device)].square()
            # on the CPU: a GPU adds in no fixed order, and a run that begins anew must come to the same bits
            by_row.index_add_(0, batch.tokens[batch.valid], sizes.sum(dim=1).cpu())
            by_column += sizes.sum(dim=0)
        by_row = by_row.to(device)
        total = by_row.sum()
        seen = torch.cat([batch.tokens[batch.valid] for batch in self.batches])
        power = _spread(by_row, seen) / max(self._tokens, 1)
        return Sensitivity(torch.diag(by_column / total.clamp_min(1e-30)), power)


def _spread(power: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Returns the power of a vocabulary's rows [V] with a share of it taken to all rows alike: for tokens not yet seen.

    The share is Good and Turing's estimate of how often the next token will be a new one: tokens seen once, out of
    all that were seen, int64 [T].
    """
    counts = torch.bincount(seen, minlength=power.shape[0])
    share = max(_UNSEEN_AT_LEAST, float((counts == 1).sum()) / max(seen.numel(), 1))
    return (1 - share) * power + share * power.mean()
