import math

import torch

from services.worker.engine.noise import gumbel

CPU = torch.device("cpu")


def test_a_draw_depends_on_its_seed_and_position_only():
    alone = gumbel([7], [3], 100, CPU)
    among = gumbel([1, 7, 2], [3, 3, 9], 120, CPU)
    assert torch.equal(alone[0], among[1, :100])
    assert not torch.equal(gumbel([7], [4], 100, CPU), alone)
    assert not torch.equal(gumbel([8], [3], 100, CPU), alone)


def test_seeds_use_all_64_bits():
    assert not torch.equal(gumbel([1 << 63], [0], 64, CPU), gumbel([0], [0], 64, CPU))


def test_the_distribution_is_gumbel_over_tokens_and_over_positions():
    noise = gumbel(list(range(200)), [5] * 200, 1000, CPU)
    for dim in (0, 1):
        assert torch.allclose(noise.mean(dim).mean(), torch.tensor(0.5772), atol=0.01)
        assert (noise.mean(dim) - 0.5772).abs().max() < 6 * (math.pi / 6**0.5) / noise.shape[dim] ** 0.5
    assert abs(noise.std() - math.pi / 6**0.5) < 0.01
    neighbours = torch.corrcoef(torch.stack([noise[:-1].flatten(), noise[1:].flatten()]))
    assert abs(neighbours[0, 1]) < 0.01


def test_argmax_samples_softmax():
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    draws = (logits + gumbel([11] * 20_000, list(range(20_000)), 4, CPU)).argmax(1)
    frequencies = torch.bincount(draws, minlength=4) / len(draws)
    assert torch.allclose(frequencies, logits.softmax(0), atol=0.012)
