import pytest
import torch

from services.worker.engine.gemm import Matrix


@pytest.mark.parametrize(("n", "k"), [(512, 256), (96, 64), (33, 7), (1, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_right_for_any_batch_and_stride(n, k, dtype):
    plain, bias = torch.randn(n, k, dtype=dtype), torch.randn(n, dtype=dtype)
    with torch.inference_mode():
        matrix = Matrix(plain)
        for rows in (0, 1, 3, 32, 100):
            x = torch.randn(rows + 2, 2 * k, dtype=dtype)[1:-1, :k]
            for given in (None, bias):
                expected = x.float() @ plain.float().T + (0 if given is None else given.float())
                tolerance = 1e-4 if dtype == torch.float32 else 0.02 * k**0.5
                assert torch.allclose(matrix.rows_times(x, given).float(), expected, atol=tolerance, rtol=0.02)


def test_the_plain_matrix_comes_back_bit_for_bit():
    plain = torch.randn(70, 30)
    with torch.inference_mode():
        assert torch.equal(Matrix(plain).plain(), plain)
    assert torch.equal(Matrix(plain).plain(), plain)
