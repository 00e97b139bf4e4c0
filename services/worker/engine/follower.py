"""Every rank but the first: does what it is told, with its own part of the base and of the deltas."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection, wait
from pathlib import Path

import msgspec
import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined,unused-ignore]

from deltaserve import logs
from services.worker.engine.attention import PagedSdpa
from services.worker.engine.batch import build_batch
from services.worker.engine.deltas import DeltaWeights
from services.worker.engine.gemm import Matrix
from services.worker.engine.loader import Decoded, Failed, Loaded, Loader
from services.worker.engine.model import LlamaModel
from services.worker.engine.plan import Chunk
from services.worker.engine.rank_parts import RankParts, read_parts, threads_of
from services.worker.engine.ranks import (
    HOST,
    Adopt,
    Compute,
    Done,
    Fetch,
    Forget,
    Merge,
    Order,
    Piece,
    Unmerge,
    add_up,
    join,
)
from services.worker.engine.sequence import Sequence
from services.worker.engine.settings import EngineSettings
from services.worker.messages import Sampling

_LOG = logging.getLogger(__name__)
_SAMPLING = Sampling()


def follow(pipe: Connection, settings: EngineSettings, rank: int, port: int) -> None:
    """Target of the process: follows the first rank until that has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logs.setup(f"engine rank {rank}", settings.log_level, settings.log_format)
    _leave_with_parent()
    torch.set_num_threads(threads_of(settings))
    join(settings, rank, TCPStore(HOST, port, settings.tensor_parallel, is_master=False))
    follower = Follower(read_parts(settings, rank), pipe)
    try:
        follower.run()
    except EOFError:
        _LOG.info("the first rank has gone; leaving")


class Follower:
    """A rank's part of the engine, without scheduler and sampler."""

    def __init__(self, parts: RankParts, pipe: Connection) -> None:
        self._parts = parts
        self._pipe = pipe
        self._model = LlamaModel(parts.shard.local, parts.weights, add_up)
        self._attention = PagedSdpa(
            parts.shard.local, parts.blocks.count, parts.blocks.block_size, parts.dtype, parts.device
        )
        self._deltas: dict[str, DeltaWeights] = {}
        self._merged: dict[str, dict[str, Matrix]] = {}  # made, not adopted yet
        self._loader = Loader(parts.builder, lambda _: None, self._loaded)

    def run(self) -> None:
        """Obeys until the pipe breaks (EOFError)."""
        decoder = msgspec.msgpack.Decoder(Order)
        while True:
            self._obey(decoder.decode(self._pipe.recv_bytes()))

    def _obey(self, order: Order) -> None:
        match order:
            case Compute(pieces):
                self._compute(pieces)
            case Fetch(revision, folder):
                self._loader.fetch(revision, Path(folder))
            case Merge(revision):
                self._loader.decode(self._deltas[revision])
            case Adopt(revision):
                self._deltas[revision].merged = self._merged.pop(revision)
            case Unmerge(revision):
                self._deltas[revision].merged = {}
            case Forget(revision):
                self._deltas.pop(revision, None)
                self._merged.pop(revision, None)

    @torch.inference_mode()
    def _compute(self, pieces: list[Piece]) -> None:
        chunks = [_chunk_of(piece) for piece in pieces]
        batch = build_batch(chunks, self._deltas, self._parts.blocks.block_size, self._parts.device)
        self._model.hidden(batch, self._attention)

    def _loaded(self) -> None:
        """Takes in what the loader did, on its thread; the only one that answers.

        A step may be under way: nothing that steps use already changes here.
        """
        for event in self._loader.events():
            match event:
                case Loaded(delta, _):
                    self._deltas[delta.revision] = delta
                    self._answer(Done(delta.revision))
                case Decoded(revision, merged):
                    self._merged[revision] = merged
                    self._answer(Done(revision))
                case Failed(revision, error):
                    self._answer(Done(revision, error.message))

    def _answer(self, answer: Done) -> None:
        self._pipe.send_bytes(msgspec.msgpack.encode(answer))


class _PartChunk(Chunk):
    """A chunk whose sequence holds the tokens of the chunk only."""

    __slots__ = ()

    @property
    def tokens(self) -> list[int]:
        """All that the sequence has."""
        return self.sequence.tokens


def _chunk_of(piece: Piece) -> Chunk:
    sequence = Sequence(
        id=0, revision=piece.revision, tokens=piece.tokens, prompt_length=0, sampling=_SAMPLING, rank=(0, 0)
    )
    sequence.blocks = piece.blocks
    return _PartChunk(sequence, piece.start, len(piece.tokens), piece.samples)


def _leave_with_parent() -> None:
    """Ends this process when the first rank has gone, even in the middle of a step that waits for it."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
