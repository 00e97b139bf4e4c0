"""The base model's weights, with q/k/v and gate/up fused into one GEMM each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from deltaserve.delta.checkpoint import Checkpoint
from services.worker.engine.gemm import Matrix
from services.worker.engine.shard import Shard

EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"
FINAL_NORM = "model.norm.weight"


@dataclass(frozen=True, slots=True)
class Part:
    """One linear of the checkpoint inside a fused one: its outputs are columns begin … end − 1."""

    name: str  # module, e.g. "model.layers.0.self_attn.q_proj"
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Linear:
    """A fused linear: y = x · weightᵀ + bias, weight [N, K], bias [N] or None."""

    weight: Matrix
    bias: torch.Tensor | None
    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        """Name of the first part: what deltas file their fused tensors under."""
        return self.parts[0].name


@dataclass(frozen=True, slots=True)
class Norm:
    """An RMS norm; weight [hidden] or, for q/k norms, [head_dim]."""

    name: str
    weight: torch.Tensor


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer."""

    input_norm: Norm
    qkv: Linear
    q_norm: Norm | None
    k_norm: Norm | None
    o: Linear
    post_norm: Norm
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class BaseWeights:
    """All weights of the base; embedding and lm_head are [vocab, hidden]."""

    embedding: torch.Tensor
    layers: tuple[Layer, ...]
    norm: Norm
    lm_head: Matrix
    tied: bool

    def linears(self) -> list[Linear]:
        """Returns every fused linear of every layer."""
        return [linear for layer in self.layers for linear in (layer.qkv, layer.o, layer.gate_up, layer.down)]

    def norms(self) -> list[Norm]:
        """Returns every norm."""
        found = [n for layer in self.layers for n in (layer.input_norm, layer.q_norm, layer.k_norm, layer.post_norm)]
        return [norm for norm in found if norm is not None] + [self.norm]


class BaseReader:
    """Reads the base's tensors, as far as they are of a shard, in the engine's dtype onto its device."""

    def __init__(self, checkpoint: Checkpoint, shard: Shard, dtype: torch.dtype, device: torch.device) -> None:
        self._checkpoint = checkpoint
        self._shard = shard
        self._config = shard.local
        self._dtype = dtype
        self._device = device

    def read(self) -> BaseWeights:
        """Reads everything; raises FormatError for a missing or malformed tensor."""
        embedding = self._tensor(EMBEDDING)
        tied = self._checkpoint.tied
        lm_head = Matrix(embedding if tied else self._tensor(LM_HEAD))
        return BaseWeights(
            embedding=embedding,
            layers=tuple(self._layer(f"model.layers.{i}") for i in range(self._config.layers)),
            norm=self._norm("model.norm"),
            lm_head=lm_head,
            tied=tied,
        )

    def _layer(self, prefix: str) -> Layer:
        sizes = self._config.qkv_sizes
        attention, mlp, wide = f"{prefix}.self_attn", f"{prefix}.mlp", self._config.intermediate
        return Layer(
            input_norm=self._norm(f"{prefix}.input_layernorm"),
            qkv=self._linear(dict(zip([f"{attention}.{p}_proj" for p in "qkv"], sizes, strict=True))),
            q_norm=self._optional_norm(f"{attention}.q_norm"),
            k_norm=self._optional_norm(f"{attention}.k_norm"),
            o=self._linear({f"{attention}.o_proj": self._config.hidden}),
            post_norm=self._norm(f"{prefix}.post_attention_layernorm"),
            gate_up=self._linear({f"{mlp}.gate_proj": wide, f"{mlp}.up_proj": wide}),
            down=self._linear({f"{mlp}.down_proj": self._config.hidden}),
        )

    def _linear(self, outputs: Mapping[str, int]) -> Linear:
        parts: list[Part] = []
        for name, size in outputs.items():
            begin = parts[-1].end if parts else 0
            parts.append(Part(name, begin, begin + size))
        weight = Matrix(torch.cat([self._weight(name) for name in outputs]))
        return Linear(weight, self._biases(parts), tuple(parts))

    def _weight(self, name: str) -> torch.Tensor:
        part = self._shard.slice(name)
        rows, columns = slice(*part.rows), slice(*part.columns)
        return self._checkpoint.read(f"{name}.weight")[rows, columns].to(self._device, self._dtype)

    def _biases(self, parts: Sequence[Part]) -> torch.Tensor | None:
        slices = {part.name: self._shard.slice(part.name) for part in parts}
        if not any(f"{part.name}.bias" in self._checkpoint.tensors for part in parts):
            return None
        if self._shard.rank and slices[parts[0].name].row_parallel:
            return None  # the sum over the ranks has it from the first
        bias = torch.zeros(parts[-1].end, dtype=self._dtype, device=self._device)
        for part in parts:
            if f"{part.name}.bias" in self._checkpoint.tensors:
                bias[part.begin : part.end] = self._tensor(f"{part.name}.bias")[slice(*slices[part.name].rows)]
        return bias

    def _norm(self, name: str) -> Norm:
        return Norm(name, self._tensor(f"{name}.weight"))

    def _optional_norm(self, name: str) -> Norm | None:
        return self._norm(name) if f"{name}.weight" in self._checkpoint.tensors else None

    def _tensor(self, name: str) -> torch.Tensor:
        return self._checkpoint.read(name).to(device=self._device, dtype=self._dtype)
