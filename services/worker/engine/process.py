"""Target of the engine process: builds the engine, then alternates between messages and steps."""

from __future__ import annotations

import logging
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from deltaserve import logs
from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.fingerprint import cached_fingerprint, fingerprint
from deltaserve.delta.reader import check_delta_against_base
from services.worker.engine.attention import PagedSdpa
from services.worker.engine.config import read_config
from services.worker.engine.delta_cache import DeltaCache
from services.worker.engine.engine import Engine
from services.worker.engine.grammars import Grammars
from services.worker.engine.link import Link
from services.worker.engine.loader import Loader
from services.worker.engine.model import LlamaModel
from services.worker.engine.pace import Pace
from services.worker.engine.plan import Limits
from services.worker.engine.prefixes import PrefixCache
from services.worker.engine.rank_parts import read_parts, threads_of
from services.worker.engine.ranks import LeadModel, Ranks
from services.worker.engine.residency import Residency
from services.worker.engine.scheduler import Scheduler
from services.worker.engine.settings import EngineSettings
from services.worker.engine.shard import Shard
from services.worker.messages import FromEngine, Ready, Shutdown

WAITING_POLL_SECONDS = 0.05  # how often deadlines and turns are looked at while nothing can be computed

_LOG = logging.getLogger(__name__)


def run(sock: socket.socket, settings: EngineSettings) -> None:
    """Serves the front at the other end of `sock` (a stream socket pair) until Shutdown or until the front has gone.

    The first message is Ready. Both ways, messages are frames of `services.worker.wire`. An error at the start (bad
    base, too little memory) or in a step is logged and ends the process with a non-zero status.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the front decides when we end
    logs.setup("engine", settings.log_level, settings.log_format)
    torch.set_num_threads(threads_of(settings))
    link = Link(sock)
    engine, ready = build_engine(settings, link.send, link.wake)
    engine.warm_up()
    link.send(ready)
    try:
        _loop(engine, link)
    except EOFError:
        _LOG.info("the front has gone; leaving")


def build_engine(
    settings: EngineSettings, send: Callable[[FromEngine], None], wake: Callable[[], None]
) -> tuple[Engine, Ready]:
    """Loads the base and builds an engine around it.

    Args:
        settings: what to serve and within which budgets.
        send: takes every message for the front, from this thread only.
        wake: called from the loader thread when there is something to do.

    Returns:
        The engine, and the message that announces it.

    Raises:
        FormatError, UnsupportedModelError, InvalidArgumentError: the base or the settings cannot be served.
    """
    ranks = _start_ranks(settings, wake) if settings.tensor_parallel > 1 else None
    parts = read_parts(settings, 0)
    config, weights, blocks = parts.shard.local, parts.weights, parts.blocks
    identity = _identify(parts.checkpoint, settings.fingerprint_cache)
    limits = Limits(settings.max_running, settings.max_step_tokens, settings.max_deltas, settings.max_wait_seconds)
    check = partial(
        check_delta_against_base,
        base_config=parts.checkpoint.config,
        base_tensors=parts.checkpoint.tensors,
        base_fingerprint=identity,
    )
    loader = Loader(parts.builder, check, wake)
    residency = Residency(settings.delta_bytes, settings.decoded_bytes)
    deltas = DeltaCache(residency, ranks.loader(loader) if ranks else loader, send)
    attention = PagedSdpa(config, blocks.count, blocks.block_size, parts.dtype, parts.device)
    scheduler = Scheduler(limits, blocks, PrefixCache(blocks, deltas.identity, enabled=settings.prefix_cache))
    model = LeadModel(config, weights, ranks) if ranks else LlamaModel(config, weights)
    pace = Pace(settings.step_seconds, settings.max_deltas)
    engine = Engine(model, attention, scheduler, deltas, send, Grammars(wake), pace)
    ready = Ready(
        context_length=engine.context,
        vocab_size=len(weights.embedding),
        kv_blocks=blocks.count - 1,
        block_size=blocks.block_size,
        delta_bytes_budget=settings.delta_bytes + settings.decoded_bytes,
        device=settings.device,
        base_fingerprint=identity,
    )
    return engine, ready


def _start_ranks(settings: EngineSettings, wake: Callable[[], None]) -> Ranks:
    Shard.of(read_config(Path(settings.base_folder)), 0, settings.tensor_parallel)  # refused before anything is started
    return Ranks(settings, wake)


def _identify(checkpoint: Checkpoint, cache: str) -> str:
    return cached_fingerprint(checkpoint, Path(cache)) if cache else fingerprint(checkpoint)


def _loop(engine: Engine, link: Link) -> None:
    computed = True
    while True:
        timeout = None if engine.idle else WAITING_POLL_SECONDS
        for message in link.receive(0 if computed else timeout):
            if isinstance(message, Shutdown):
                return
            engine.handle(message, time.monotonic())
        computed = engine.step(time.monotonic())
