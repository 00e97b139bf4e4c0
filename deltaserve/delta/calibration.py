"""Calibration algebra: second moments of a layer's inputs, what follows from them, and the relative output error.

Notation as in docs/delta-format.md: X are the layer's inputs in the fine-tune, X̂ those in base + what is already
compressed, both over T tokens; Ĥ = X̂X̂ᵀ/T is the Gram matrix and C = (X − X̂)X̂ᵀ/T the cross-moment.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from deltaserve.errors import InvalidArgumentError


class Moments:
    """Accumulates Ĥ and C of one linear's inputs over chunks of tokens, in float32 sums on one device."""

    def __init__(self, columns: int, *, cross: bool = True, device: torch.device | str = "cpu") -> None:
        self.tokens = 0
        self._gram = torch.zeros(columns, columns, device=device)
        self._cross = torch.zeros(columns, columns, device=device) if cross else None

    def add(self, served: torch.Tensor, tuned: torch.Tensor | None = None) -> None:
        """Adds tokens.

        Args:
            served: X̂ᵀ [T, K], inputs as the compressed model makes them.
            tuned: Xᵀ [T, K], the fine-tune's inputs at the same tokens; needed when `cross` was asked for.
        """
        served = served.reshape(-1, self._gram.shape[0]).float()
        self._gram.addmm_(served.T, served)
        if self._cross is not None:
            if tuned is None:
                raise ValueError("moments with cross were given no inputs of the fine-tune")
            self._cross.addmm_((tuned.reshape(served.shape).float() - served).T, served)
        self.tokens += served.shape[0]

    @property
    def gram(self) -> torch.Tensor:
        """Ĥ, float32 [K, K]; zero before the first token."""
        return self._gram / max(self.tokens, 1)

    @property
    def cross(self) -> torch.Tensor | None:
        """C, float32 [K, K], rows X − X̂ and columns X̂; None when it was not asked for."""
        return None if self._cross is None else self._cross / max(self.tokens, 1)

    def curvature(self) -> Curvature:
        """Returns Ĥ as what codecs weigh errors by."""
        return Curvature(self.gram)


class Curvature:
    """A Gram matrix with its factorisations, made when first needed and kept: q, k and v share one.

    Raises:
        InvalidArgumentError: the matrix holds NaN or infinity, as when calibration overflows.
    """

    def __init__(self, gram: torch.Tensor) -> None:
        if not bool(torch.isfinite(gram).all()):
            raise InvalidArgumentError(
                "the calibration inputs' Gram matrix holds NaN or infinity; expected finite values"
            )
        self.gram = gram
        self._solver: tuple[float, torch.Tensor] | None = None
        self._feedback: tuple[float, torch.Tensor] | None = None

    @property
    def columns(self) -> int:
        """K."""
        return self.gram.shape[0]

    def solver(self, damping: float) -> torch.Tensor:
        """Returns the lower Cholesky factor [K, K] of Ĥ + λI, λ = damping · mean diagonal of Ĥ."""
        if self._solver is None or self._solver[0] != damping:
            self._solver = damping, _factorise(self._damped(damping), torch.linalg.cholesky)
        return self._solver[1]

    def feedback(self, damping: float) -> torch.Tensor:
        """Returns the upper triangular U [K, K] with UᵀU = (Ĥ + λI)⁻¹: GPTQ's error feedback."""
        if self._feedback is None or self._feedback[0] != damping:
            self._feedback = damping, _factorise(self._damped(damping), _inverse_factor)
        return self._feedback[1]

    def _damped(self, damping: float) -> torch.Tensor:
        mean = float(self.gram.diagonal().mean())
        damped = self.gram.clone()
        damped.diagonal().add_(damping * mean if mean > 0 else 1.0)
        return damped


def asymmetric_target(
    delta: torch.Tensor, tuned: torch.Tensor, cross: torch.Tensor, curvature: Curvature, damping: float
) -> torch.Tensor:
    """Returns the delta that makes up, on X̂, for what earlier layers' compression changed.

    Δ* = Δ + W_f C (Ĥ + λI)⁻¹ minimises ‖W_f X − (W_b + Δ*) X̂‖² with a ridge of λ = damping · mean diagonal of Ĥ on its
    difference from Δ.

    Args:
        delta: Δ, float32 [N, K].
        tuned: W_f, float32 [N, K].
        cross: C, float32 [K, K].
        curvature: Ĥ.
        damping: ridge relative to Ĥ's mean diagonal.

    Returns:
        Δ*, float32 [N, K].
    """
    correction = torch.cholesky_solve((tuned @ cross).T, curvature.solver(damping)).T
    return delta + correction


def weighted(left: torch.Tensor, right: torch.Tensor, curvature: Curvature | None) -> torch.Tensor:
    """Returns the row-wise inner products under Ĥ: [N] from two [N, K]; plain ones without curvature."""
    return ((left if curvature is None else left @ curvature.gram) * right).sum(dim=1)


def relative_error(delta: torch.Tensor, decoded: torch.Tensor, curvature: Curvature | None) -> float:
    """Returns e(Δ̂) = tr((Δ−Δ̂)Ĥ(Δ−Δ̂)ᵀ) / tr(ΔĤΔᵀ), with I for Ĥ when there is no curvature.

    A zero delta coded as zero has error 0, otherwise infinity.
    """
    difference = delta - decoded
    error = float(weighted(difference, difference, curvature).sum(dtype=torch.float64))
    size = float(weighted(delta, delta, curvature).sum(dtype=torch.float64))
    if size > 0:
        return error / size
    return 0.0 if error == 0 else float("inf")


def _factorise(matrix: torch.Tensor, factor: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Factorises in float32; in float64 when rounding made the matrix indefinite; then with ever more damping."""
    try:
        return factor(matrix)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        exact = matrix.double()
    ridge = float(exact.diagonal().mean()) * 1e-6
    for _ in range(8):
        try:
            return factor(exact).to(matrix.dtype)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            exact.diagonal().add_(ridge)
            ridge *= 10
    raise InvalidArgumentError("the calibration inputs' Gram matrix cannot be factorised even with strong damping")


def _inverse_factor(matrix: torch.Tensor) -> torch.Tensor:
    """Returns upper triangular U with UᵀU = matrix⁻¹, without forming the inverse.

    With both orders reversed the Cholesky factor becomes upper triangular, matrix = RRᵀ, so U = R⁻¹.
    """
    upper = torch.linalg.cholesky(matrix.flip(0, 1)).flip(0, 1)
    identity = torch.eye(matrix.shape[0], dtype=matrix.dtype, device=matrix.device)
    inverse: torch.Tensor = torch.linalg.solve_triangular(upper, identity, upper=True)
    return inverse
