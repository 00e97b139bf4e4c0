"""The other ranks of a tensor-parallel engine, as the first one sees them: started, told of every step, and watched.

Orders go through a pipe to each rank (one host: tensors take NCCL or gloo, orders never touch a device), in the order
in which the first rank acts on them, so all ranks run the same steps. What comes back is whether a delta is loaded.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined,unused-ignore]

from deltaserve.errors import DeltaServeError, InternalError
from services.worker.engine.attention import Attention
from services.worker.engine.batch import Batch
from services.worker.engine.config import ModelConfig
from services.worker.engine.deltas import DeltaWeights
from services.worker.engine.loader import Decoded, Event, Failed, Loaded, Loader
from services.worker.engine.model import LlamaModel
from services.worker.engine.plan import Chunk
from services.worker.engine.rank_parts import device_of
from services.worker.engine.settings import EngineSettings
from services.worker.engine.weights import BaseWeights

HOST = "127.0.0.1"

_LOG = logging.getLogger(__name__)


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """A chunk of a step as other ranks need it."""

    revision: str
    tokens: list[int]  # of the chunk only
    start: int
    samples: bool
    blocks: list[int]


class Compute(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """Compute a step; chunks in the order of their rows."""

    pieces: list[Piece]


class Fetch(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """Load a delta from a folder; answered by Done while steps go on."""

    revision: str
    folder: str


class Merge(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """Make the merged weights of a delta; answered by Done while steps go on."""

    revision: str


class Adopt(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """From the next step on compute with the merged weights that every rank has made: all in the same step."""

    revision: str


class Unmerge(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """Forget the merged weights of a delta."""

    revision: str


class Forget(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """Forget a delta."""

    revision: str


Order = Compute | Fetch | Merge | Adopt | Unmerge | Forget


class Done(msgspec.Struct, tag=True, frozen=True, array_like=True):
    """A delta is loaded or its merged weights are made, whichever was ordered, or `error` says why not."""

    revision: str
    error: str = ""


def piece_of(chunk: Chunk) -> Piece:
    """Returns what other ranks need of a chunk."""
    sequence = chunk.sequence
    return Piece(sequence.revision, chunk.tokens, chunk.start, chunk.samples, sequence.blocks)


def join(settings: EngineSettings, rank: int, store: TCPStore) -> None:
    """Makes this process a rank of the group that adds up partial sums."""
    device = device_of(settings, rank)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, store=store, rank=rank, world_size=settings.tensor_parallel)


def add_up(partial: torch.Tensor) -> None:
    """Replaces a tensor by its sum over all ranks."""
    dist.all_reduce(partial)


class Ranks:
    """Ranks 1 … n − 1. When one has gone this process ends too: no step can be made without it."""

    def __init__(self, settings: EngineSettings, wake: Callable[[], None]) -> None:
        """Starts them and returns when all have joined; their bases load meanwhile.

        Args:
            settings: of the engine.
            wake: called from threads when one has answered.
        """
        from services.worker.engine.follower import follow

        store = TCPStore(HOST, 0, settings.tensor_parallel, is_master=True, wait_for_workers=False)
        self._encoder = msgspec.msgpack.Encoder()
        self._wake = wake
        self.answers: deque[Done] = deque()
        self._pipes: list[Connection] = []
        context = multiprocessing.get_context("spawn")
        for rank in range(1, settings.tensor_parallel):
            ours, theirs = context.Pipe()
            arguments = (theirs, settings, rank, store.port)
            context.Process(target=follow, args=arguments, name=f"engine rank {rank}", daemon=True).start()
            theirs.close()
            self._pipes.append(ours)
            threading.Thread(target=self._read, args=(rank, ours), name=f"rank {rank}", daemon=True).start()
        join(settings, 0, store)

    def send(self, order: Order) -> None:
        """Sends an order to all."""
        data = self._encoder.encode(order)
        for pipe in self._pipes:
            pipe.send_bytes(data)

    def loader(self, own: Loader) -> ShardedLoader:
        """Returns what loads a delta here and on all others."""
        return ShardedLoader(own, self, len(self._pipes))

    def _read(self, rank: int, pipe: Connection) -> None:
        decoder = msgspec.msgpack.Decoder(Done)
        try:
            while True:
                self.answers.append(decoder.decode(pipe.recv_bytes()))
                self._wake()
        except (EOFError, OSError):
            # the front sees the engine die: it ends the streams with a status and starts a new one
            _LOG.critical("rank %d has gone; the engine ends with it", rank)
            os._exit(1)  # a step may wait for that rank for ever


class LeadModel(LlamaModel):
    """The first rank's part of the model: tells the others of each step before it computes it."""

    def __init__(self, config: ModelConfig, weights: BaseWeights, ranks: Ranks) -> None:
        super().__init__(config, weights, add_up)
        self._ranks = ranks

    def hidden(self, batch: Batch, attention: Attention) -> torch.Tensor:
        """See LlamaModel.hidden."""
        self._ranks.send(Compute([piece_of(chunk) for chunk in batch.chunks]))
        return super().hidden(batch, attention)


class ShardedLoader:
    """A DeltaLoader whose deltas are loaded, or merged, when every rank has done its part."""

    def __init__(self, own: Loader, ranks: Ranks, others: int) -> None:
        """Takes the loader of this rank and the other ranks, so many of them."""
        self._own = own
        self._ranks = ranks
        self._others = others
        self._folders: dict[str, Path] = {}
        self._waiting: dict[str, tuple[list[Event], list[Done]]] = {}

    def inspect(self, revision: str, folder: Path) -> None:
        """See DeltaLoader."""
        self._folders[revision] = folder
        self._own.inspect(revision, folder)

    def load(self, revision: str) -> None:
        """See DeltaLoader."""
        self._waiting[revision] = ([], [])
        self._ranks.send(Fetch(revision, str(self._folders[revision])))
        self._own.load(revision)

    def decode(self, delta: DeltaWeights) -> None:
        """See DeltaLoader."""
        self._waiting[delta.revision] = ([], [])
        self._ranks.send(Merge(delta.revision))
        self._own.decode(delta)

    def unmerge(self, revision: str) -> None:
        """See DeltaLoader."""
        self._ranks.send(Unmerge(revision))

    def forget(self, revision: str) -> None:
        """See DeltaLoader."""
        self._folders.pop(revision, None)
        self._ranks.send(Forget(revision))
        self._own.forget(revision)

    def events(self) -> list[Event]:
        """See DeltaLoader; what a load or merge came to is told once all ranks have answered."""
        events: list[Event] = []
        for event in self._own.events():
            revision = event.delta.revision if isinstance(event, Loaded) else event.revision
            if revision in self._waiting and isinstance(event, Loaded | Decoded | Failed):
                self._waiting[revision][0].append(event)
            else:
                events.append(event)
        while self._ranks.answers:
            answer = self._ranks.answers.popleft()
            self._waiting[answer.revision][1].append(answer)
        for revision, (own, answers) in list(self._waiting.items()):
            if own and len(answers) == self._others:
                del self._waiting[revision]
                events.append(_outcome(own[0], answers))
                if isinstance(events[-1], Decoded):
                    self._ranks.send(Adopt(revision))
        return events


def _outcome(own: Event, answers: Sequence[Done]) -> Event:
    failure = next((answer for answer in answers if answer.error), None)
    if failure is None or isinstance(own, Failed):
        return own
    error: DeltaServeError = InternalError(f"another rank cannot load delta {failure.revision}: {failure.error}")
    return Failed(failure.revision, error)
