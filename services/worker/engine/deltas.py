"""A fine-tune in memory, and how its rows of a batch get their own weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import torch

from deltaserve.delta.codecs import Form, get_codec
from deltaserve.delta.manifest import Manifest, TensorEntry
from deltaserve.delta.packed import PackedTensor, fit_rows
from deltaserve.delta.reader import DeltaReader
from deltaserve.delta.slices import column_cuts, slice_columns, slice_rows
from deltaserve.errors import FormatError
from deltaserve.ops.sbmm import Group, sbmm
from services.worker.engine.gemm import Matrix
from services.worker.engine.shard import Shard
from services.worker.engine.weights import EMBEDDING, LM_HEAD, BaseWeights, Linear

Operand = PackedTensor | torch.Tensor  # Δ̂ of one tensor: packed, or dense in the engine's dtype


@dataclass(slots=True)
class DeltaWeights:
    """One delta on the device.

    Attributes:
        vocab: rows of the fine-tune's lm_head, which may differ from the base's.
        identity: digest of its contents.
        linears: Δ̂ [N, K] by module name, e.g. "model.layers.0.mlp.up_proj".
        biases: bias of the fine-tune minus bias of the base [N], by name of the fused linear.
        norms: weights of the fine-tune, by name of the norm.
        embedding, lm_head: Δ̂ [vocab, hidden], the same object when tied; None where the base's are right.
        merged: W_b + Δ̂ of fused linears by name, and of lm_head under LM_HEAD; empty while the delta is only packed.
    """

    revision: str
    vocab: int
    identity: str = ""
    linears: dict[str, Operand] = field(default_factory=dict)
    biases: dict[str, torch.Tensor] = field(default_factory=dict)
    norms: dict[str, torch.Tensor] = field(default_factory=dict)
    embedding: Operand | None = None
    lm_head: Operand | None = None
    merged: dict[str, Matrix] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeltaRows:
    """Rows begin … end − 1 of a batch belong to a delta."""

    begin: int
    end: int
    delta: DeltaWeights


@dataclass(frozen=True, slots=True)
class Run:
    """Rows begin … end − 1 share one GEMM: with the merged weights of a delta, or with the base's where it is None."""

    begin: int
    end: int
    merged: DeltaWeights | None


@dataclass(frozen=True, slots=True)
class RowOwners:
    """Whose the rows of a batch are.

    Attributes:
        deltas: in ascending order; rows of none of them belong to the base.
        runs: all rows, in ascending order.
    """

    deltas: tuple[DeltaRows, ...]
    runs: tuple[Run, ...]

    @classmethod
    def of(cls, deltas: Sequence[DeltaRows], rows: int) -> RowOwners:
        """Divides `rows` rows; `deltas` is in ascending order."""
        runs: list[Run] = []
        done = 0
        for r in deltas:
            if r.delta.merged:
                if done < r.begin:
                    runs.append(Run(done, r.begin, None))
                runs.append(Run(r.begin, r.end, r.delta))
                done = r.end
        if done < rows or not runs:
            runs.append(Run(done, rows, None))
        return cls(tuple(deltas), tuple(runs))

    @property
    def packed(self) -> list[DeltaRows]:
        """The rows whose delta is added to what the base's weights give."""
        return [r for r in self.deltas if not r.delta.merged]


class DeltaBuilder:
    """Brings deltas of one base to memory."""

    def __init__(self, base: BaseWeights, shard: Shard) -> None:
        self._base = base
        self._shard = shard
        self._like = base.embedding
        self._linears = {part.name: (linear, part) for linear in base.linears() for part in linear.parts}
        self._norms = {norm.name: norm for norm in base.norms()}

    def sizes(self, manifest: Manifest) -> tuple[int, int]:
        """Returns the bytes that the delta takes packed, and those that its merged weights take besides."""
        item = self._like.element_size()
        packed = sum(self._size(e, item) for e in manifest.tensors)
        head = self._head(manifest)
        merged = sum(linear.weight.shape.numel() for linear in self._base.linears()) + (_elements(head) if head else 0)
        return packed, merged * item

    def _size(self, entry: TensorEntry, item: int) -> int:
        """Returns the bytes that a tensor takes here, where dense values take `item` each."""
        module = entry.name.removesuffix(".weight")
        is_packed, share = get_codec(entry.codec).form == "delta", 1
        if module in self._linears and self._shard.ranks > 1:
            part = self._shard.slice(module)
            share = (
                entry.shape[0] * entry.shape[1] // ((part.rows[1] - part.rows[0]) * (part.columns[1] - part.columns[0]))
            )
            is_packed = is_packed and (not part.row_parallel or column_cuts(entry, *part.columns) is not None)
        return (entry.bytes if is_packed else _elements(entry) * item) // share

    def build(self, reader: DeltaReader, revision: str) -> DeltaWeights:
        """Reads all tensors; raises FormatError or DataLossError for a malformed one."""
        delta = DeltaWeights(revision, vocab=self._base.lm_head.shape[0], identity=_identity(reader.manifest))
        for entry in reader.manifest.tensors:
            self._add(delta, entry, reader.tensor(entry.name))
        head = self._head(reader.manifest)
        if head is not None and head.name == EMBEDDING:
            delta.lm_head = delta.embedding
        delta.vocab = head.shape[0] if head else delta.vocab
        return delta

    def merge(self, delta: DeltaWeights) -> dict[str, Matrix]:
        """Returns what DeltaWeights.merged holds once the delta is decoded."""
        merged = {linear.name: self._merge_linear(delta, linear) for linear in self._base.linears()}
        head = fit_rows(self._base.lm_head.plain(), delta.vocab)
        merged[LM_HEAD] = Matrix(head if delta.lm_head is None else head + self._dense(delta.lm_head))
        return merged

    def _head(self, manifest: Manifest) -> TensorEntry | None:
        """Returns the entry that the fine-tune's lm_head comes from, if it has one."""
        entries = {entry.name: entry for entry in manifest.tensors}
        return entries.get(LM_HEAD) or (entries.get(EMBEDDING) if self._base.tied else None)

    def _add(self, delta: DeltaWeights, entry: TensorEntry, packed: PackedTensor) -> None:
        module, _, kind = entry.name.rpartition(".")
        if entry.codec == "same":
            self._check_known(delta, module)
        elif entry.name == EMBEDDING:
            delta.embedding = self._operand(packed, self._base.embedding)
        elif entry.name == LM_HEAD:
            delta.lm_head = self._operand(packed, self._base.lm_head)
        elif module in self._norms and kind == "weight":
            norm = self._norms[module].weight
            delta.norms[module] = packed.to(norm.device).merged(norm).to(norm.dtype)
        elif module in self._linears and kind == "weight":
            linear, part = self._linears[module]
            mine, old = self._mine(packed, module), linear.weight
            if isinstance(mine, PackedTensor):
                delta.linears[module] = self._operand(mine, old, part.begin, part.end)
            else:
                delta.linears[module] = self._difference(mine, packed.form, old.plain()[part.begin : part.end])
        elif module in self._linears and kind == "bias":
            self._add_bias(delta, entry, packed)
        else:
            raise FormatError(f"delta {delta.revision} has a tensor {entry.name!r}; the base has no such part")

    def _check_known(self, delta: DeltaWeights, module: str) -> None:
        ends = (EMBEDDING.rpartition(".")[0], LM_HEAD.rpartition(".")[0])
        if module not in self._norms and module not in self._linears and module not in ends:
            raise FormatError(f"delta {delta.revision} has a tensor of {module!r}; the base has no such part")

    def _add_bias(self, delta: DeltaWeights, entry: TensorEntry, packed: PackedTensor) -> None:
        linear, part = self._linears[entry.name.removesuffix(".bias")]
        rows = self._shard.slice(part.name)
        if rows.row_parallel and self._shard.rank:
            return  # the first rank adds it
        if linear.bias is None:
            raise FormatError(f"delta {delta.revision} has a bias {entry.name!r}; the base has none")
        whole = delta.biases.setdefault(linear.name, torch.zeros_like(linear.bias))
        values = packed.decode()[slice(*rows.rows)]
        whole[part.begin : part.end] = self._difference(values, packed.form, linear.bias[part.begin : part.end])

    def _mine(self, packed: PackedTensor, module: str) -> PackedTensor | torch.Tensor:
        """Returns this rank's part of a linear: packed where that can be had, else decoded, whatever the form."""
        if self._shard.ranks == 1:
            return packed
        part = self._shard.slice(module)
        if packed.form == "delta":
            cut = slice_columns(packed, *part.columns) if part.row_parallel else slice_rows(packed, *part.rows)
            if cut is not None:
                return cut
        return packed.decode()[slice(*part.rows), slice(*part.columns)]

    def _difference(self, values: torch.Tensor, form: Form, old: torch.Tensor) -> torch.Tensor:
        """Returns Δ̂ in memory of its own, of decoded values of that form."""
        values = values.to(old.device)
        if form != "delta":
            values = (values - old.float()).nan_to_num_(0.0) if form == "patch" else values - old.float()
        return values.to(old.dtype, copy=True)

    def _operand(
        self, packed: PackedTensor, old: torch.Tensor | Matrix, begin: int = 0, end: int | None = None
    ) -> Operand:
        """Returns Δ̂ in memory of its own: of values of W_f, the difference to rows begin … end − 1 of `old`."""
        device, dtype = self._like.device, self._like.dtype
        if packed.form == "delta":
            return PackedTensor(packed.entry, {name: p.to(device, copy=True) for name, p in packed.planes.items()})
        plain = old.plain() if isinstance(old, Matrix) else old
        return packed.to(device).delta(plain[begin:end]).to(dtype)

    def _merge_linear(self, delta: DeltaWeights, linear: Linear) -> Matrix:
        whole = linear.weight.plain().clone()
        for part in linear.parts:
            if part.name in delta.linears:
                whole[part.begin : part.end] += self._dense(delta.linears[part.name])
        return Matrix(whole)

    def _dense(self, operand: Operand) -> torch.Tensor:
        return operand if isinstance(operand, torch.Tensor) else operand.decode(self._like.dtype)


def apply_linear(x: torch.Tensor, linear: Linear, rows: RowOwners) -> torch.Tensor:
    """Returns [T, N]: each row of x [T, K] times the weights of its own model, plus that model's bias."""
    outputs = []
    for run in rows.runs:
        matrix = linear.weight if run.merged is None else run.merged.merged[linear.name]
        outputs.append(matrix.rows_times(x[run.begin : run.end], linear.bias))
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    packed = rows.packed
    for part in linear.parts if packed else ():
        groups = [Group(r.begin, r.end, r.delta.linears[part.name]) for r in packed if part.name in r.delta.linears]
        sbmm(y[:, part.begin : part.end], x, groups)
    for r in rows.deltas:
        if linear.name in r.delta.biases:
            y[r.begin : r.end] += r.delta.biases[linear.name]
    return y


def apply_lm_head(x: torch.Tensor, lm_head: Matrix, rows: RowOwners) -> torch.Tensor:
    """Returns logits [S, largest vocabulary] of x [S, hidden]; a row is −inf beyond its own model's vocabulary."""
    base_vocab = lm_head.shape[0]
    logits = x.new_full((len(x), max([base_vocab, *(r.delta.vocab for r in rows.deltas)])), float("-inf"))
    for run in rows.runs:
        matrix = lm_head if run.merged is None else run.merged.merged[LM_HEAD]
        logits[run.begin : run.end, : matrix.shape[0]] = matrix.rows_times(x[run.begin : run.end])
    for r in rows.packed:
        logits[r.begin : r.end, base_vocab : r.delta.vocab] = 0
        logits[r.begin : r.end, r.delta.vocab :] = float("-inf")
        if r.delta.lm_head is not None:
            sbmm(logits[:, : r.delta.vocab], x, [Group(r.begin, r.end, r.delta.lm_head)])
    return logits


def _identity(manifest: Manifest) -> str:
    """Returns a digest of all contents of a delta, whatever its name: entries have the sha256s of their planes."""
    return hashlib.sha256(msgspec.json.encode([manifest.base, manifest.config, manifest.tensors])).hexdigest()


def _elements(entry: TensorEntry) -> int:
    return torch.Size(entry.shape).numel()
