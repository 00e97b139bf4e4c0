import numpy as np
import torch

from examples.smollm2.dequantise import rope_order


def test_rope_order_keeps_attention_scores() -> None:
    """Neighbours rotated as in GGUF give the scores of halves rotated as in transformers."""
    random = np.random.default_rng()
    heads, size, columns = 3, 8, 5
    weight = random.standard_normal((heads * size, columns)).astype(np.float32)
    inputs = torch.randn(columns)
    angles = torch.rand(size // 2) * 3
    paired = (torch.tensor(weight) @ inputs).view(heads, size // 2, 2)
    halves = (torch.tensor(rope_order(weight, heads)) @ inputs).view(heads, 2, size // 2)
    rotated_pairs = torch.view_as_real(torch.view_as_complex(paired.contiguous()) * torch.exp(1j * angles))
    left, right = halves[:, 0], halves[:, 1]
    rotated_halves = torch.stack(
        [left * angles.cos() - right * angles.sin(), right * angles.cos() + left * angles.sin()], dim=2
    )
    torch.testing.assert_close(rotated_pairs, rotated_halves)
