"""Naive round-to-nearest: every row's delta on 2^b even levels from its least to its greatest value."""

from __future__ import annotations

import torch

from benchmarks.compression_methods.case import STORED_BITS, Case, Method, StateDict, code_linears


def round_to_nearest(bits: int) -> Method:
    """Returns the method at 1 to 8 bits; two fp16 values a row, the least level and the step, are stored with them."""

    def method(base: StateDict, tuned: StateDict, case: Case) -> tuple[StateDict, int]:  # noqa: ARG001
        def code(_: str, delta: torch.Tensor) -> tuple[torch.Tensor, int]:
            return rounded(delta, bits), bits * delta.numel() + 2 * STORED_BITS * delta.shape[0]

        return code_linears(base, tuned, code)

    return method


def rounded(delta: torch.Tensor, bits: int) -> torch.Tensor:
    """Returns Δ̂ [N, K] of Δ [N, K]."""
    least = delta.amin(dim=1, keepdim=True).half().float()
    step = ((delta.amax(dim=1, keepdim=True) - least) / ((1 << bits) - 1)).half().float()
    codes = torch.where(step > 0, (delta - least) / step, 0.0).round_().clamp_(0, (1 << bits) - 1)
    return least + codes * step
