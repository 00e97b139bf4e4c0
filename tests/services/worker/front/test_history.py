"""The history of arrivals: bounded, each told once as news, whole for a newcomer."""

from __future__ import annotations

from deltaserve.v1.worker_pb2 import Arrivals
from services.worker.front.history import ArrivalHistory


def plain(message: Arrivals | None) -> dict[str, list[int]]:
    return {} if message is None else {entry.revision: list(entry.unix_ms) for entry in message.revisions}


def test_news_are_told_once_and_a_newcomer_hears_everything() -> None:
    history = ArrivalHistory()
    history.add("a@1", 5)
    history.add("b@1", 6)
    assert plain(history.news()) == {"a@1": [5], "b@1": [6]}
    assert history.news() is None
    history.add("a@1", 7)
    history.add("a@1", 3)  # the clock was set back
    assert plain(history.news()) == {"a@1": [7, 7]}
    assert plain(history.whole()) == {"a@1": [5, 7, 7], "b@1": [6]}


def test_the_oldest_are_forgotten() -> None:
    history = ArrivalHistory(most=3)
    for time in range(10):
        history.add("a@1", time)
    assert plain(history.whole()) == {"a@1": [7, 8, 9]}
