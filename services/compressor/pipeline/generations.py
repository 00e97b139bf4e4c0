"""Side by side: what base, fine-tune and compressed model say to a few held-out prompts, token after token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from deltaserve.delta.adapted import FineTune
from deltaserve.delta.classes import EMBEDDING, LM_HEAD
from deltaserve.delta.reader import DeltaReader
from services.compressor.pipeline.batches import PADDING
from services.compressor.pipeline.decoder import Decoder
from services.compressor.pipeline.pair import Pair
from services.compressor.pipeline.quality import MODELS, Model
from services.compressor.pipeline.samples import HeldOut
from services.compressor.pipeline.text import Tokenizer

PROMPTS = 4
PROMPT_TOKENS = 128  # the last ones of a longer prompt
NEW_TOKENS = 40
MAX_DEVICE_BYTES = 16 << 30  # weights of one model on a GPU; reading a large embedding takes 6 GB more

Read = Callable[[str], torch.Tensor]
"""Returns a tensor of one model by the name that it has in the fine-tune, float32."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the models go on from.

    Attributes:
        tokens: at least one, at most PROMPT_TOKENS.
        cut: whether tokens were left out before them.
        expected: what the held-out sequence goes on with, without the end; at most NEW_TOKENS.
    """

    tokens: list[int]
    cut: bool
    expected: list[int]


@dataclass(frozen=True)
class Whole:
    """All weights of one model, in the dtype that they are kept in; the decoder computes in float32."""

    layers: list[dict[str, torch.Tensor]]
    embedding: torch.Tensor
    norm: torch.Tensor
    head: torch.Tensor

    @classmethod
    def read(cls, read: Read, tuned: FineTune, layers: int, dtype: torch.dtype) -> Whole:
        """Reads a model tensor by tensor; `tuned` says which there are."""
        kept = []
        for index in range(layers):
            prefix = f"model.layers.{index}."
            names = [name for name in tuned.tensors if name.startswith(prefix)]
            kept.append({name.removeprefix(prefix): read(name).to(dtype) for name in names})
        embedding = read(EMBEDDING).to(dtype)
        head = embedding if tuned.tied else read(LM_HEAD).to(dtype)
        return cls(kept, embedding, read("model.norm.weight").to(dtype), head)

    def following(self, decoder: Decoder, tokens: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Returns the most probable next tokens, int64 [B].

        Args:
            decoder: of the fine-tune.
            tokens: int64 [B, T], padded on the right.
            last: int64 [B], the place of each sequence's last token.
        """
        hidden = self.embedding[tokens].float()
        for index, weights in enumerate(self.layers):
            hidden = decoder.forward(index, {name: weight.float() for name, weight in weights.items()}, hidden)
        states = decoder.final_norm(self.norm.float(), hidden[torch.arange(len(last), device=hidden.device), last])
        return functional.linear(states, self.head.float()).argmax(dim=-1)


def side_by_side(
    pair: Pair, decoder: Decoder, tokenizer: Tokenizer, held_out: Sequence[HeldOut], packed: Path, memory_bytes: int
) -> dict[str, Any]:
    """Returns greedy continuations of a few held-out prompts by all three models, one model in memory after the other.

    Args:
        pair: base and fine-tune.
        decoder: of the fine-tune.
        tokenizer: of the fine-tune.
        held_out: where prompts come from.
        packed: folder of the packed delta: the compressed model is what serving would make of it.
        memory_bytes: most that one model's weights may take on the CPU; on a GPU it is MAX_DEVICE_BYTES.

    Returns:
        `generations` of docs/quality-report.md.
    """
    prompts = pick(held_out, tokenizer.ends)
    reason = _too_large(pair, memory_bytes)
    if reason is None and not prompts:
        reason = "held-out sequences leave no prompt to go on from"
    if reason is not None:
        return {"prompts": [], "left_out": reason}
    delta = DeltaReader.open(packed, verify=False)
    reads: Mapping[Model, Read] = {
        "base": pair.base_tensor,
        "fine_tune": pair.tuned_tensor,
        "compressed": lambda name: _served(pair, delta, name),
    }
    said: dict[Model, list[list[int]]] = {}
    for model in MODELS:
        whole = Whole.read(reads[model], pair.tuned, decoder.layers, _dtype(pair.device))
        said[model] = continue_greedily(whole, decoder, [prompt.tokens for prompt in prompts], tokenizer.ends)
        del whole
    return {
        "prompts": [
            {
                "prompt": tokenizer.text(prompt.tokens),
                "cut": prompt.cut,
                "expected": tokenizer.text(prompt.expected),
                **{model: _said(tokenizer, said[model][i]) for model in MODELS},
            }
            for i, prompt in enumerate(prompts)
        ],
        "left_out": None,
    }


def pick(held_out: Sequence[HeldOut], ends: Sequence[int], count: int = PROMPTS) -> list[Prompt]:
    """Returns the first different prompts: what comes before the first answer, or the first third of a text."""
    found: dict[tuple[int, ...], Prompt] = {}
    for one in held_out:
        size = one.asked.index(True) if True in one.asked else len(one.tokens)
        if size == 0:
            size = max(1, len(one.tokens) // 3)
        elif size == len(one.tokens):
            continue  # a piece of a long row, its answer is in another one
        tokens = one.tokens[max(0, size - PROMPT_TOKENS) : size]
        prompt = Prompt(tokens, size > PROMPT_TOKENS, _expected(one, size, ends))
        found.setdefault(tuple(tokens), prompt)
        if len(found) == count:
            break
    return list(found.values())


@torch.no_grad()
def continue_greedily(
    whole: Whole, decoder: Decoder, prompts: Sequence[Sequence[int]], ends: Sequence[int], limit: int = NEW_TOKENS
) -> list[list[int]]:
    """Returns at most `limit` tokens after each prompt, an end included if one came.

    Recomputes everything for every token: prompts and continuations are short, and there is no cache to get wrong.
    """
    sequences = [list(prompt) for prompt in prompts]
    going = sequences
    for _ in range(min(limit, decoder.context - max(map(len, prompts)))):
        width = max(map(len, going))
        tokens = torch.tensor([[*row, *[PADDING] * (width - len(row))] for row in going], device=decoder.device)
        last = torch.tensor([len(row) - 1 for row in going], device=decoder.device)
        for row, token in zip(going, whole.following(decoder, tokens, last).tolist(), strict=True):
            row.append(token)
        going = [row for row in going if row[-1] not in ends]
        if not going:
            break
    return [row[len(prompt) :] for row, prompt in zip(sequences, prompts, strict=True)]


def _expected(one: HeldOut, begin: int, ends: Sequence[int]) -> list[int]:
    expected: list[int] = []
    for token, asked in zip(one.tokens[begin:], one.asked[begin:], strict=True):
        if not asked or token in ends or len(expected) == NEW_TOKENS:
            break
        expected.append(token)
    return expected


def _said(tokenizer: Tokenizer, tokens: list[int]) -> dict[str, Any]:
    ended = bool(tokens) and tokens[-1] in tokenizer.ends
    return {"text": tokenizer.text(tokens[:-1] if ended else tokens), "ended": ended}


def _served(pair: Pair, delta: DeltaReader, name: str) -> torch.Tensor:
    packed = delta.tensor(name).to(pair.device)
    return packed.merged(None if packed.form == "whole" else pair.base_tensor(name))


def _dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def _too_large(pair: Pair, memory_bytes: int) -> str | None:
    parameters = sum(torch.Size(tensor.shape).numel() for tensor in pair.tuned.tensors.values())
    size = parameters * _dtype(pair.device).itemsize
    limit = memory_bytes if pair.device.type == "cpu" else MAX_DEVICE_BYTES
    if size <= limit:
        return None
    return (
        f"a whole model of {parameters:,} parameters takes {size / 1e9:.1f} GB; "
        f"generating may take {limit / 1e9:.1f} GB on this {pair.device.type}"
    )
