import pytest
import torch

from benchmarks.compression_methods import sparse_gpt


def case(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """A delta and the second moments of correlated inputs, fresh each time."""
    inputs = torch.randn(4 * columns, columns, dtype=dtype) @ torch.randn(columns, columns, dtype=dtype)
    return torch.randn(rows, columns, dtype=dtype) * 0.01, inputs.T @ inputs / len(inputs)


def naive(delta: torch.Tensor, gram: torch.Tensor, bits: int) -> torch.Tensor:
    """The same by definition: column by column, the inverse of what is left of H taken anew each time."""
    hessian = gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    rows, columns = delta.shape
    rest, coded = delta.clone(), torch.zeros_like(delta)
    top = 2 ** (bits - 1)
    for row in range(rows):
        step = float((2 * delta[row].abs().max() / (2**bits - 1)).half())
        kept: set[int] = set()
        for column in range(columns):
            if column % 4 == 0:
                cost = {
                    i: float(rest[row, i] ** 2 / torch.linalg.inv(hessian[i:, i:])[0, 0])
                    for i in range(column, column + 4)
                }
                kept = set(sorted(cost, key=cost.__getitem__)[2:])
            inverse = torch.linalg.inv(hessian[column:, column:])
            value = float(rest[row, column])
            code = max(-top, min(top - 1, round(value / step))) if column in kept else 0
            coded[row, column] = code * step
            rest[row, column:] -= (value - code * step) / inverse[0, 0] * inverse[0]
    return coded


@pytest.mark.parametrize("bits", [2, 4])
def test_equals_the_definition(bits: int) -> None:
    delta, gram = case(6, 24, torch.float64)
    torch.testing.assert_close(sparse_gpt.compress(delta, gram, bits), naive(delta, gram, bits), rtol=0, atol=1e-9)


@pytest.mark.parametrize("columns", [132, 256, 320])
def test_blocks_change_nothing(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    delta, gram = case(5, columns, torch.float64)
    blocked = sparse_gpt.compress(delta, gram, 4)
    monkeypatch.setattr(sparse_gpt, "BLOCK", columns)
    torch.testing.assert_close(blocked, sparse_gpt.compress(delta, gram, 4), rtol=0, atol=1e-9)


@pytest.mark.parametrize("bits", [2, 4])
def test_keeps_two_of_four_on_the_grid_of_the_row(bits: int) -> None:
    delta, gram = case(16, 256)
    coded = sparse_gpt.compress(delta, gram, bits)
    assert int((coded.view(16, -1, 4) != 0).sum(dim=2).max()) == 2
    codes = coded / sparse_gpt.row_scale(delta, bits).unsqueeze(1)
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-4)
    assert float(codes.min()) >= -(2 ** (bits - 1)) - 1e-4
    assert float(codes.max()) <= 2 ** (bits - 1) - 1 + 1e-4


@pytest.mark.parametrize("bits", [2, 4])
def test_feedback_pays(bits: int) -> None:
    delta, gram = case(32, 256)

    def error(coded: torch.Tensor) -> float:
        lost = delta - coded
        return float(((lost @ gram) * lost).sum() / ((delta @ gram) * delta).sum())

    with_feedback, without = (sparse_gpt.compress(delta, gram, bits, feedback=feedback) for feedback in (True, False))
    assert error(with_feedback) < 0.8 * error(without)


def test_inputs_that_are_always_zero_cost_nothing() -> None:
    delta, gram = case(8, 64)
    gram[5], gram[:, 5] = 0, 0
    coded = sparse_gpt.compress(delta, gram, 4)
    assert bool(torch.isfinite(coded).all())
    assert not bool(coded[:, 5].any())


def test_zero_rows_stay_zero() -> None:
    delta, gram = case(8, 64)
    delta[3] = 0
    coded = sparse_gpt.compress(delta, gram, 2)
    assert bool(torch.isfinite(coded).all())
    assert not bool(coded[3].any())


def test_columns_that_are_no_multiple_of_four_are_refused() -> None:
    delta, gram = case(4, 30)
    with pytest.raises(ValueError, match="30 columns"):
        sparse_gpt.compress(delta, gram, 4)
