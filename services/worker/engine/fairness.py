"""Virtual token counters: whose sequences are next, so that models share an overloaded engine by tokens (pure).

After Sheng et al., "Fairness in Serving Large Language Models" (OSDI'24): of the models that wait, the one that was
served least goes first, so no model's many or long requests push others aside. A model that comes, or comes back,
counts as served as much as the last one that was admitted: nobody saves up claims while it does not wait.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Ordered

from services.worker.engine.sequence import Sequence

Order = tuple[int, float, int]  # priority, what the model was served, arrival: smaller goes first

PROMPT_WEIGHT = 1.0
OUTPUT_WEIGHT = 2.0  # a generated token takes a pass over the weights of its own; the paper's ratio

_MOST_KEPT = 4096


class TokenCounters:
    """Tokens that each model ("" for the base) was served, weighed."""

    def __init__(self) -> None:
        self._served: dict[str, float] = {}
        self._levels: dict[int, float] = {}  # by rank of the priority: what the last admitted model had been served

    def of(self, model: str, priority: int) -> float:
        """Returns what a model counts as served among the sequences of a priority."""
        return max(self._served.get(model, 0.0), self._levels.get(priority, 0.0))

    def admitted(self, model: str, priority: int) -> None:
        """Notes that a sequence of the model was the next to go."""
        level = self.of(model, priority)
        self._levels[priority] = self._served[model] = level
        if len(self._served) > _MOST_KEPT:
            least = min(self._levels.values())
            self._served = {m: served for m, served in self._served.items() if served > least}

    def charge(self, model: str, tokens: float) -> None:
        """Adds weighed tokens."""
        self._served[model] = self._served.get(model, 0.0) + tokens

    def clear(self) -> None:
        """Forgets everything: when nothing waits or runs, nobody owes anybody anything."""
        self._served.clear()
        self._levels.clear()


def in_order(
    ready: Ordered[Sequence], order: Callable[[Sequence], Order], may_start: Callable[[str], bool]
) -> Iterator[Sequence]:
    """Yields sequences in an order that changes as they are admitted, each before the next is asked for.

    Args:
        ready: by rank, so that those of one model and priority are in order among themselves.
        order: of a sequence now.
        may_start: whether a sequence of a model may begin to run now; models that may not are left out.
    """
    queues: dict[tuple[int, str], list[Sequence]] = {}  # the first last
    for sequence in reversed(ready):
        queues.setdefault((sequence.rank[0], sequence.revision), []).append(sequence)
    heap = [order(queue[-1]) for queue in queues.values()]
    by_arrival = {queue[-1].rank[1]: queue for queue in queues.values()}
    heapq.heapify(heap)
    while heap:
        queue = by_arrival[heapq.heappop(heap)[2]]
        if not may_start(queue[-1].revision):
            continue
        yield queue.pop()
        if queue:
            by_arrival[queue[-1].rank[1]] = queue
            heapq.heappush(heap, order(queue[-1]))
