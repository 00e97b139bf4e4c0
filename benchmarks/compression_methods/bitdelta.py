"""BitDelta (Liu et al. 2024, arXiv 2402.10193): α · sign(Δ), one α a matrix, then α distilled through the whole model.

Embeddings, norms and lm_head keep the fine-tune's values. Distillation is as published: AdamW at 1e-4 with cosine
decay on the mean squared error between both models' logits, 800 steps of 4 sequences, α alone trained.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch.func import functional_call
from torch.nn import functional

from benchmarks.compression_methods.case import STORED_BITS, Case, Method, StateDict, code_linears, is_linear
from benchmarks.compression_methods.models import build, padded

LEARNING_RATE = 1e-4
BATCH = 4
STEPS = 800


def undistilled(base: StateDict, tuned: StateDict, case: Case) -> tuple[StateDict, int]:  # noqa: ARG001
    """The method before distillation: α = mean |Δ|."""
    return _coded(base, tuned, {name: (tuned[name] - base[name]).abs().mean() for name in tuned if is_linear(name)})


def distilled(steps: int = STEPS) -> Method:
    """Returns the whole method."""

    def method(base: StateDict, tuned: StateDict, case: Case) -> tuple[StateDict, int]:
        return _coded(base, tuned, distil(base, tuned, case, steps))

    return method


def _coded(base: StateDict, tuned: StateDict, alphas: StateDict) -> tuple[StateDict, int]:
    def code(name: str, delta: torch.Tensor) -> tuple[torch.Tensor, int]:
        return alphas[name].half().float().cpu() * _sign(delta), delta.numel() + STORED_BITS

    return code_linears(base, tuned, code)


def distil(base: StateDict, tuned: StateDict, case: Case, steps: int) -> StateDict:
    """Returns α of every linear, 0-dimensional, after `steps` steps of backpropagation through the model."""
    teacher = build(case.config, tuned, case.device)
    student = build(case.config, tuned, case.device)
    linears = [name for name in tuned if is_linear(name)]
    signs = {name: _sign(tuned[name] - base[name]).to(case.device) for name in linears}
    bases = {name: base[name].to(case.device) for name in linears}
    alphas = {name: (tuned[name] - base[name]).abs().mean().to(case.device) for name in linears}
    for alpha in alphas.values():
        alpha.requires_grad = True
    optimizer = torch.optim.AdamW(alphas.values(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for sequences in _shuffled(case.sequences, steps):
        tokens, valid = padded(sequences, case.device)
        with torch.no_grad():
            wanted = teacher(tokens, use_cache=False).logits[valid]
        weights = {name: torch.addcmul(bases[name], alphas[name], signs[name]) for name in linears}
        said = functional_call(student, weights, (tokens,), {"use_cache": False}).logits[valid]
        optimizer.zero_grad()
        functional.mse_loss(said, wanted).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return {name: alpha.detach() for name, alpha in alphas.items()}


def _sign(delta: torch.Tensor) -> torch.Tensor:
    """Returns ±1; a stored bit knows no zero."""
    return torch.where(delta < 0, -1.0, 1.0)


def _shuffled(sequences: list[list[int]], steps: int) -> Iterator[list[list[int]]]:
    order = random.Random(0)
    pool: list[list[int]] = []
    for _ in range(steps):
        if len(pool) < BATCH:
            pool = order.sample(sequences, len(sequences))
        yield [pool.pop() for _ in range(min(BATCH, len(pool)))]
