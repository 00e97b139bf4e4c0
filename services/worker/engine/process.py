"""Target of the engine process: builds the engine, then alternates between messages and steps."""

from __future__ import annotations

import logging
import os
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
from deltaserve.errors import InvalidArgumentError
from services.worker.engine.attention import PagedSdpa
from services.worker.engine.blocks import BlockAllocator
from services.worker.engine.config import ModelConfig, read_config
from services.worker.engine.delta_cache import DeltaCache
from services.worker.engine.deltas import DeltaBuilder
from services.worker.engine.engine import Engine
from services.worker.engine.grammars import Grammars
from services.worker.engine.link import Link
from services.worker.engine.loader import Loader
from services.worker.engine.model import LlamaModel
from services.worker.engine.pace import Pace
from services.worker.engine.plan import Limits
from services.worker.engine.prefixes import PrefixCache
from services.worker.engine.residency import Residency
from services.worker.engine.scheduler import Scheduler
from services.worker.engine.settings import EngineSettings
from services.worker.engine.weights import BaseReader
from services.worker.messages import FromEngine, Ready, Shutdown

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WAITING_POLL_SECONDS = 0.05  # how often deadlines and turns are looked at while nothing can be computed

_LOG = logging.getLogger(__name__)


def run(sock: socket.socket, settings: EngineSettings) -> None:
    """Serves the front at the other end of `sock` (a stream socket pair) until Shutdown or until the front has gone.

    The first message is Ready. Both ways, messages are frames of `services.worker.wire`. An error at the start (bad
    base, too little memory) or in a step is logged and ends the process with a non-zero status.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the front decides when we end
    logs.setup("engine")
    torch.set_num_threads(settings.threads or max(1, (os.cpu_count() or 2) // 2))
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
    device, dtype = torch.device(settings.device), _dtype(settings.dtype)
    config = read_config(Path(settings.base_folder), settings.max_context)
    checkpoint = Checkpoint.open(Path(settings.base_folder))
    weights = BaseReader(checkpoint, config, dtype, device).read()
    identity = _identify(checkpoint, settings.fingerprint_cache)
    blocks = _blocks(settings, config, dtype)
    limits = Limits(settings.max_running, settings.max_step_tokens, settings.max_deltas, settings.max_wait_seconds)
    check = partial(
        check_delta_against_base,
        base_config=checkpoint.config,
        base_tensors=checkpoint.tensors,
        base_fingerprint=identity,
    )
    loader = Loader(DeltaBuilder(weights), check, wake)
    deltas = DeltaCache(Residency(settings.delta_bytes, settings.decoded_bytes), loader, send)
    attention = PagedSdpa(config, blocks.count, blocks.block_size, dtype, device)
    prefixes = PrefixCache(blocks, deltas.identity, enabled=settings.prefix_cache)
    scheduler = Scheduler(limits, blocks, prefixes)
    pace = Pace(settings.step_seconds, settings.max_deltas)
    engine = Engine(LlamaModel(config, weights), attention, scheduler, deltas, send, Grammars(wake), pace)
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


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise InvalidArgumentError(f"dtype is {name!r}; expected one of {', '.join(DTYPES)}", field="dtype")
    return DTYPES[name]


def _blocks(settings: EngineSettings, config: ModelConfig, dtype: torch.dtype) -> BlockAllocator:
    token_bytes = config.layers * 2 * config.kv_heads * config.head_dim * dtype.itemsize
    count = settings.kv_bytes // (token_bytes * settings.block_size)
    if count < 2:
        raise InvalidArgumentError(
            f"kv_bytes is {settings.kv_bytes}; expected at least {2 * token_bytes * settings.block_size}, two blocks",
            field="kv_bytes",
        )
    return BlockAllocator(count, settings.block_size)
