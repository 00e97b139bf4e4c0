"""The base and the fine-tune, read a few tensors at a time in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from deltaserve.delta.adapted import AdaptedCheckpoint, FineTune
from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.classes import classify
from deltaserve.delta.coding import code_exact
from deltaserve.delta.compatibility import TensorLike, base_tensor_of, check_compatible
from deltaserve.delta.packed import PackedTensor, fit_rows
from deltaserve.errors import InvalidArgumentError
from services.compressor.pipeline.ahead import ahead

CODED = ("linear", "embedding", "lm_head")
"""Classes of tensors whose deltas are coded; all others are kept whole."""

_READERS = 4  # one copies 1 to 3 GB a second out of the page cache, less than the way to a GPU takes


@dataclass
class Layer:
    """One decoder layer of all three models, on one device; names as in the layer, e.g. `mlp.up_proj.weight`.

    Attributes:
        prefix: what comes before these names in a checkpoint.
        base: W_b.
        tuned: W_f.
        served: what serving computes with, W_b + Δ̂ for what is coded so far, and W_f for what is kept whole.
    """

    prefix: str
    base: dict[str, torch.Tensor]
    tuned: dict[str, torch.Tensor]
    served: dict[str, torch.Tensor]

    @property
    def kept(self) -> list[str]:
        """Names of the tensors that are kept whole."""
        return [name for name in self.tuned if not is_coded(self.prefix + name, self.tuned[name].shape)]


@dataclass(frozen=True)
class Pair:
    """Base and fine-tune.

    Attributes:
        base: checkpoint of the base.
        tuned: checkpoint of the fine-tune, or an adapter.
        device: where tensors go.
    """

    base: Checkpoint
    tuned: FineTune
    device: torch.device

    @property
    def ready(self) -> bool:
        """Whether all tensors come in packed form already, as an adapter's do: nothing is calibrated then."""
        return isinstance(self.tuned, AdaptedCheckpoint)

    @property
    def origin(self) -> dict[str, Any] | None:
        """What manifests tell of the adapter that the fine-tune is, if it is one."""
        return self.tuned.origin if isinstance(self.tuned, AdaptedCheckpoint) else None

    @property
    def stored(self) -> Checkpoint:
        """What lies in the fine-tune's folder; for an adapter, its own tensors and config."""
        return self.tuned.stored if isinstance(self.tuned, AdaptedCheckpoint) else self.tuned

    def check(self) -> None:
        """Raises what check_compatible raises when the fine-tune does not belong to the base."""
        check_compatible(self.base.config, self.base.tensors, self.tuned.config, self.tuned.tensors)

    def layer(self, index: int) -> Layer:
        """Reads a layer."""
        return next(self.layers([index]))

    def layers(self, order: Iterable[int]) -> Iterator[Layer]:
        """Yields layers in an order, and reads the next one while a layer is computed with."""
        for prefix, tuned, base in ahead(order, self._read_both):
            yield self._layer(prefix, tuned, base)

    def tuned_layer(self, index: int) -> dict[str, torch.Tensor]:
        """Reads the fine-tune's layer alone; names as in Layer."""
        return next(self.tuned_layers([index]))

    def tuned_layers(self, order: Iterable[int]) -> Iterator[dict[str, torch.Tensor]]:
        """Yields the fine-tune's layers alone, otherwise as `layers`."""
        for prefix, tuned in ahead(order, self._read_tuned):
            yield self._widened(prefix, tuned, "the fine-tune")

    def _layer(self, prefix: str, tuned: dict[str, torch.Tensor], base: dict[str, torch.Tensor]) -> Layer:
        wide = self._widened(prefix, tuned, "the fine-tune")
        fitted = {
            name: fit_rows(weight, wide[name].shape[0])
            for name, weight in self._widened(prefix, base, "the base").items()
        }
        layer = Layer(prefix, fitted, wide, {})
        layer.served.update((name, wide[name]) for name in layer.kept)
        return layer

    def _read_tuned(self, index: int) -> tuple[str, dict[str, torch.Tensor]]:
        """Reads a layer as it is stored, to the host: into pinned memory on the way to a GPU."""
        prefix = f"model.layers.{index}."
        names = [name for name in self.tuned.tensors if name.startswith(prefix)]
        return prefix, _read_all({name.removeprefix(prefix): partial(self._stored, self.tuned, name) for name in names})

    def _read_both(self, index: int) -> tuple[str, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        prefix, tuned = self._read_tuned(index)
        calls = {name: partial(self._stored, self.base, self.base_name(prefix + name)) for name in tuned}
        return prefix, tuned, _read_all(calls)

    def _stored(self, checkpoint: FineTune, name: str) -> torch.Tensor:
        if isinstance(checkpoint, Checkpoint):
            return checkpoint.read(name, pinned=self.device.type == "cuda")
        return checkpoint.read(name)

    def _widened(self, prefix: str, stored: dict[str, torch.Tensor], owner: str) -> dict[str, torch.Tensor]:
        """Returns tensors on the device in float32, and lets go of each one that was read."""
        return {name: self._wide(stored.pop(name), prefix + name, owner) for name in list(stored)}

    def tuned_tensor(self, name: str) -> torch.Tensor:
        """Returns W_f in float32. Raises InvalidArgumentError when it holds NaN or infinity."""
        return self._wide(self._stored(self.tuned, name), name, "the fine-tune")

    def base_tensor(self, name: str) -> torch.Tensor:
        """Returns W_b in float32, zero-padded or cut to the fine-tune's rows."""
        whole = self._wide(self._stored(self.base, self.base_name(name)), name, "the base")
        return fit_rows(whole, self.tuned.tensors[name].shape[0])

    def base_fitted(self, name: str) -> torch.Tensor:
        """Returns W_b in its own dtype on the CPU, zero-padded or cut to the fine-tune's rows."""
        found = _finite(self.base.read(self.base_name(name)), name, "the base")
        return fit_rows(found, self.tuned.tensors[name].shape[0])

    def _wide(self, tensor: torch.Tensor, name: str, owner: str) -> torch.Tensor:
        # checked and widened on the device: on the way there torch would widen on the CPU, and copy twice the bytes
        return _finite(tensor.to(self.device), name, owner).float()

    def coded(self) -> dict[str, TensorLike]:
        """Returns the tensors whose deltas are coded, by name."""
        return {name: header for name, header in self.tuned.tensors.items() if is_coded(name, header.shape)}

    def packed(self, name: str) -> PackedTensor | None:
        """Returns a tensor of the fine-tune in the packed form that it comes in, if it does."""
        return self.tuned.packed(name) if isinstance(self.tuned, AdaptedCheckpoint) else None

    def whole(self, name: str) -> PackedTensor:
        """Returns a tensor bit for bit: as it comes, else in its smallest exact code."""
        ready = self.packed(name)
        if ready is not None:
            return ready
        tuned, base = self.tuned.read(name).to(self.device), self.base_fitted(name).to(self.device)
        return code_exact(name, tuned, base, self.base_name(name))

    def base_name(self, name: str) -> str:
        """Returns the name of the base's tensor that a fine-tune's tensor is a delta of."""
        return base_tensor_of(name, self.base.tensors)


def is_coded(name: str, shape: Sequence[int]) -> bool:
    """Tells whether a tensor's delta is coded; otherwise it is kept whole."""
    return classify(name, shape) in CODED


def _read_all(calls: Mapping[str, Callable[[], torch.Tensor]]) -> dict[str, torch.Tensor]:
    # threads of torch are counted by thread
    with ThreadPoolExecutor(_READERS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = {name: pool.submit(call) for name, call in calls.items()}
        return {name: future.result() for name, future in futures.items()}


def _finite(tensor: torch.Tensor, name: str, owner: str) -> torch.Tensor:
    bad = tensor.numel() - int(torch.isfinite(tensor).sum())
    if bad:
        raise InvalidArgumentError(
            f"{owner}'s tensor {name!r} has {bad} of {tensor.numel()} values that are NaN or infinite; expected none",
            field="files",
            tensor=name,
            count=bad,
        )
    return tensor
