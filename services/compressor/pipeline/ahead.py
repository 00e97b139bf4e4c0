"""Reading the next one in a thread while the one at hand is computed with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

K = TypeVar("K")
V = TypeVar("V")


def ahead(keys: Iterable[K], read: Callable[[K], V]) -> Iterator[V]:
    """Yields read(key) for each key in order, at most one of them read before it is asked for.

    Args:
        keys: what to read.
        read: called in a thread of its own, one call at a time; what it raises is raised here, at its key's turn.
    """
    # threads of torch are counted by thread
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)) as pool:
        waiting: Future[V] | None = None
        for key in keys:
            ready = waiting
            if ready is None:
                waiting = pool.submit(read, key)
                continue
            value = ready.result()
            waiting = pool.submit(read, key)
            del ready
            yield value
            del value
        if waiting is not None:
            last, waiting = waiting.result(), None
            yield last
