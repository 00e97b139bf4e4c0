"""Merging never changes what a stream says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deltaserve.v1 import inference_pb2 as pb
from services.router.frames import FrameQueue

from .conftest import chunk, progress


def finished(index: int = 0) -> pb.GenerateResponse:
    return pb.GenerateResponse(finished=pb.Finished(index=index))


def test_waiting_chunks_of_a_choice_merge_with_their_logprobs() -> None:
    queue = FrameQueue()
    first = chunk("a", 1)
    queue.put(first)
    for number in (2, 3):
        frame = chunk("bc"[number - 2], number)
        frame.chunk.logprobs.add().chosen.token_id = number
        queue.put(frame)
    merged = queue.take(0.0)
    assert (merged.chunk.text, list(merged.chunk.token_ids)) == ("abc", [1, 2, 3])
    assert [p.chosen.token_id for p in merged.chunk.logprobs] == [2, 3]
    assert queue.bytes == 0
    assert first.chunk.text == "a"  # the worker's message is left alone


def test_choices_merge_apart_and_ends_stay_behind_their_chunks() -> None:
    queue = FrameQueue()
    for frame in (chunk("a", 1), chunk("x", 9, index=1), chunk("b", 2), finished(), chunk("y", 8, index=1)):
        queue.put(frame)
    assert [queue.take(0.0) for _ in range(len(queue))] == [chunk("ab", 1, 2), chunk("xy", 9, 8, index=1), finished()]


def test_progress_of_a_stage_is_replaced_by_later_news() -> None:
    queue = FrameQueue()
    for frame in (
        progress(pb.STAGE_QUEUED, position=2),
        progress(pb.STAGE_QUEUED, position=1),
        progress(pb.STAGE_LOADING, bytes_done=1),
        progress(pb.STAGE_LOADING, bytes_done=2),
    ):
        queue.put(frame)
    taken = [queue.take(0.0) for _ in range(len(queue))]
    assert taken == [progress(pb.STAGE_QUEUED, position=1), progress(pb.STAGE_LOADING, bytes_done=2)]
    assert queue.bytes == 0


def test_flush_time_holds_back_all_but_the_first_and_last_token() -> None:
    queue = FrameQueue(flush_seconds=1.0)
    assert queue.due(0.0) is None
    queue.put(chunk("first", 1))
    assert queue.due(5.0) == 0.0
    queue.take(5.0)
    queue.put(chunk("second", 2))
    assert queue.due(5.25) == 0.75
    assert queue.due(6.5) == 0.0
    queue.put(finished())
    assert queue.due(5.25) == 0.0
    assert queue.take(5.25) == chunk("second", 2)
    assert queue.due(5.25) == 0.0


def test_merged_chunks_stay_small() -> None:
    queue = FrameQueue()
    for number in range(50):
        queue.put(chunk("x" * 10_000, number))
    sizes = [queue.take(0.0).ByteSize() for _ in range(len(queue))]
    assert len(sizes) == 9
    assert max(sizes) <= 64 << 10
    assert queue.largest < 10_100


@st.composite
def scripts(draw: st.DrawFn) -> list[pb.GenerateResponse | None]:
    """Frames of up to three choices in a legal order, with reads (None) in between."""
    steps: list[pb.GenerateResponse | None] = []
    open_ = [0, 1, 2]
    for token in range(draw(st.integers(0, 40))):
        action = draw(st.sampled_from(["chunk", "chunk", "chunk", "read", "finish", "progress"]))
        if action == "read" or not open_:
            steps.append(None)
        elif action == "progress":
            steps.append(progress(draw(st.sampled_from([pb.STAGE_QUEUED, pb.STAGE_LOADING])), position=token))
        else:
            index = draw(st.sampled_from(open_))
            if action == "finish":
                open_.remove(index)
                steps.append(finished(index))
            else:
                steps.append(chunk(draw(st.sampled_from(["", "a", "é漢"])), token, index=index))
    return steps


@given(scripts())
def test_any_interleaving_of_reads_gives_the_same_output(steps: list[pb.GenerateResponse | None]) -> None:
    queue, taken = FrameQueue(), []
    for step in steps:
        if step is not None:
            queue.put(step)
        elif len(queue):
            taken.append(queue.take(0.0))
    while len(queue):
        taken.append(queue.take(0.0))
    assert queue.bytes == 0
    given_ = [s for s in steps if s is not None]
    for index in range(3):
        assert output(taken, index) == output(given_, index)


def output(frames: list[pb.GenerateResponse], index: int) -> tuple[str, list[int], int | None]:
    chunks = [f.chunk for f in frames if f.HasField("chunk") and f.chunk.index == index]
    ends = [at for at, f in enumerate(frames) if f.HasField("finished") and f.finished.index == index]
    last = max((at for at, f in enumerate(frames) if f.HasField("chunk") and f.chunk.index == index), default=-1)
    assert all(at > last for at in ends)
    return "".join(c.text for c in chunks), [t for c in chunks for t in c.token_ids], len(ends)
