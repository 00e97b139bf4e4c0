"""A fine-tune in memory, and how its rows of a batch get their own weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from deltaserve.delta.manifest import Manifest, TensorEntry
from deltaserve.delta.packed import PackedTensor
from deltaserve.delta.reader import DeltaReader
from deltaserve.errors import FormatError
from deltaserve.ops.sbmm import Group, sbmm
from services.worker.engine.gemm import Matrix
from services.worker.engine.weights import EMBEDDING, LM_HEAD, BaseWeights, Linear

Operand = PackedTensor | torch.Tensor  # Δ̂ of one tensor: packed, or dense in the engine's dtype


@dataclass(slots=True)
class DeltaWeights:
    """One delta on the device.

    Attributes:
        vocab: rows of the fine-tune's lm_head, which may differ from the base's.
        linears: Δ̂ [N, K] by module name, e.g. "model.layers.0.mlp.up_proj".
        biases: bias of the fine-tune minus bias of the base [N], by name of the fused linear.
        norms: weights of the fine-tune, by name of the norm.
        embedding, lm_head: Δ̂ [vocab, hidden], the same object when tied; None where the base's are right.
        dense: Δ̂ of fused linears by name, and of lm_head under LM_HEAD; empty while the delta is not decoded.
    """

    revision: str
    vocab: int
    linears: dict[str, Operand] = field(default_factory=dict)
    biases: dict[str, torch.Tensor] = field(default_factory=dict)
    norms: dict[str, torch.Tensor] = field(default_factory=dict)
    embedding: Operand | None = None
    lm_head: Operand | None = None
    dense: dict[str, Matrix] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeltaRows:
    """Rows begin … end − 1 of a batch belong to a delta. Rows of no DeltaRows belong to the base."""

    begin: int
    end: int
    delta: DeltaWeights


class DeltaBuilder:
    """Brings deltas of one base to memory."""

    def __init__(self, base: BaseWeights) -> None:
        self._base = base
        self._like = base.embedding
        self._linears = {part.name: (linear, part) for linear in base.linears() for part in linear.parts}
        self._norms = {norm.name: norm for norm in base.norms()}

    def sizes(self, manifest: Manifest) -> tuple[int, int]:
        """Returns the bytes that the delta takes packed, and those that its dense copy takes besides."""
        item = self._like.element_size()
        packed = sum(_elements(e) * item if e.codec == "dense" else e.bytes for e in manifest.tensors)
        head = self._head(manifest)
        dense = sum(linear.weight.shape.numel() for linear in self._base.linears()) + (_elements(head) if head else 0)
        return packed, dense * item

    def build(self, reader: DeltaReader, revision: str) -> DeltaWeights:
        """Reads all tensors; raises FormatError or DataLossError for a malformed one."""
        delta = DeltaWeights(revision, vocab=self._base.lm_head.shape[0])
        for entry in reader.manifest.tensors:
            self._add(delta, entry, reader.tensor(entry.name))
        if self._base.tied and delta.lm_head is None:
            delta.lm_head = delta.embedding
        head = self._head(reader.manifest)
        delta.vocab = head.shape[0] if head else delta.vocab
        return delta

    def decode(self, delta: DeltaWeights) -> dict[str, Matrix]:
        """Returns what DeltaWeights.dense holds once the delta is decoded."""
        dense = {linear.name: self._decode_linear(delta, linear) for linear in self._base.linears()}
        if delta.lm_head is not None:
            dense[LM_HEAD] = Matrix(self._dense(delta.lm_head))
        return dense

    def _head(self, manifest: Manifest) -> TensorEntry | None:
        """Returns the entry that the fine-tune's lm_head comes from, if it has one."""
        entries = {entry.name: entry for entry in manifest.tensors}
        return entries.get(LM_HEAD) or (entries.get(EMBEDDING) if self._base.tied else None)

    def _add(self, delta: DeltaWeights, entry: TensorEntry, packed: PackedTensor) -> None:
        module, _, kind = entry.name.rpartition(".")
        if entry.name == EMBEDDING:
            delta.embedding = self._operand(packed, self._base.embedding)
        elif entry.name == LM_HEAD:
            delta.lm_head = self._operand(packed, self._base.lm_head)
        elif module in self._norms and kind == "weight":
            norm = self._norms[module].weight
            delta.norms[module] = packed.to(norm.device).merged(norm).to(norm.dtype)
        elif module in self._linears and kind == "weight":
            linear, part = self._linears[module]
            delta.linears[module] = self._operand(packed, linear.weight, part.begin, part.end)
        elif module in self._linears and kind == "bias":
            self._add_bias(delta, entry, packed)
        else:
            raise FormatError(f"delta {delta.revision} has a tensor {entry.name!r}; the base has no such part")

    def _add_bias(self, delta: DeltaWeights, entry: TensorEntry, packed: PackedTensor) -> None:
        linear, part = self._linears[entry.name.removesuffix(".bias")]
        if linear.bias is None:
            raise FormatError(f"delta {delta.revision} has a bias {entry.name!r}; the base has none")
        whole = delta.biases.setdefault(linear.name, torch.zeros_like(linear.bias))
        old = linear.bias[part.begin : part.end]
        whole[part.begin : part.end] = self._dense(self._operand(packed, old))

    def _operand(
        self, packed: PackedTensor, old: torch.Tensor | Matrix, begin: int = 0, end: int | None = None
    ) -> Operand:
        """Returns Δ̂ in memory of its own: of a tensor stored whole the difference to rows begin … end − 1 of `old`."""
        device, dtype = self._like.device, self._like.dtype
        if not packed.replaces:
            return PackedTensor(packed.entry, {name: p.to(device, copy=True) for name, p in packed.planes.items()})
        plain = old.plain() if isinstance(old, Matrix) else old
        return packed.to(device).delta(plain[begin:end]).to(dtype)

    def _decode_linear(self, delta: DeltaWeights, linear: Linear) -> Matrix:
        whole = self._like.new_zeros(linear.weight.shape)
        for part in linear.parts:
            if part.name in delta.linears:
                whole[part.begin : part.end] = self._dense(delta.linears[part.name])
        return Matrix(whole)

    def _dense(self, operand: Operand) -> torch.Tensor:
        return operand if isinstance(operand, torch.Tensor) else operand.decode(self._like.dtype)


def add_deltas(y: torch.Tensor, x: torch.Tensor, linear: Linear, rows: Sequence[DeltaRows]) -> None:
    """Adds to y [T, N] = x [T, K] · W_bᵀ + b each row's own x · Δ̂ᵀ and change of bias, in place."""
    packed = [r for r in rows if not r.delta.dense]
    for part in linear.parts if packed else ():
        groups = [Group(r.begin, r.end, r.delta.linears[part.name]) for r in packed if part.name in r.delta.linears]
        sbmm(y[:, part.begin : part.end], x, groups)
    for r in rows:
        bias = r.delta.biases.get(linear.name)
        if r.delta.dense:
            y[r.begin : r.end] += r.delta.dense[linear.name].rows_times(x[r.begin : r.end], bias)
        elif bias is not None:
            y[r.begin : r.end] += bias


def _elements(entry: TensorEntry) -> int:
    return torch.Size(entry.shape).numel()
