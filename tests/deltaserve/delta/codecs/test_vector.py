"""Vector codes: the nearest codeword of every piece, the codebooks as the format has them."""

from __future__ import annotations

import hashlib

import pytest
import torch

from deltaserve.delta.codecs import EncodeOptions, get_codec
from deltaserve.delta.codecs.vector import CODEBOOKS, CODES, SCALE, VECTORS, codebook


@pytest.mark.parametrize("codec", VECTORS, ids=lambda codec: codec.name)
@pytest.mark.parametrize("columns", [48, 50, 7])
def test_every_piece_has_its_nearest_codeword(codec, columns):
    delta = torch.randn(5, columns) * torch.rand(5, 1)
    planes = codec.encode(delta, None, {}, EncodeOptions())
    book, unit = codebook(codec.width), delta / delta.square().mean(dim=1, keepdim=True).sqrt()
    for row in range(5):
        for piece, begin in enumerate(range(0, columns, codec.width)):
            values = torch.zeros(codec.width)
            part = unit[row, begin : begin + codec.width]
            values[: len(part)] = part
            distances = (book - values).square().sum(dim=1)
            assert distances[int(planes[CODES][row, piece])] <= distances.min() + 1e-4


@pytest.mark.parametrize("codec", VECTORS, ids=lambda codec: codec.name)
def test_decoding_is_scale_times_codeword(codec):
    codes = torch.randint(0, 256, (3, 2), dtype=torch.uint8)
    scale, columns = torch.rand(3).half(), 2 * codec.width - 3
    decoded = codec.decode({CODES: codes, SCALE: scale}, (3, columns), {}, torch.float32)
    for row in range(3):
        words = torch.cat([codebook(codec.width)[int(code)] for code in codes[row]])
        torch.testing.assert_close(decoded[row], words[:columns] * float(scale[row]))


def test_the_codebooks_never_change():
    """They are part of the format: another file would decode every stored delta to something else."""
    digest = hashlib.sha256(CODEBOOKS.read_bytes()).hexdigest()
    assert digest == "ef1ff0b0a04f11c813b07a9772227b03a03a69dcec71e6d0a69af9994ab69e8c"


def test_zeros_stay_zeros():
    decoded = get_codec("vector8").encode(torch.zeros(2, 16), None, {}, EncodeOptions())
    assert not get_codec("vector8").decode(decoded, (2, 16), {}, torch.float32).any()
