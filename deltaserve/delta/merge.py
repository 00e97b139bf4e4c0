"""Merges a delta into its base: the weights that serving base + delta must be equal to."""

from __future__ import annotations

import torch

from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.reader import DeltaReader


def merged_state_dict(
    base: Checkpoint, delta: DeltaReader, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Returns Ŵ_f of every tensor of the fine-tune, by its name in `transformers`, computed in float32.

    W_b is zero-padded or cut to the fine-tune's rows; what is stored whole replaces it. A tied lm_head is left out, as
    in a checkpoint. The delta is taken to fit the base: see check_delta_against_base.
    """
    merged: dict[str, torch.Tensor] = {}
    for name in delta.names():
        packed = delta.tensor(name)
        weights = None if packed.entry.base is None else base.read(packed.entry.base)
        merged[name] = packed.merged(weights).to(dtype)
    return merged
