"""What is known of a stream when its worker is lost."""

from __future__ import annotations

from deltaserve.v1 import inference_pb2 as pb
from services.router.output import Output

from .conftest import chunk, progress


def finished(index: int) -> pb.GenerateResponse:
    return pb.GenerateResponse(finished=pb.Finished(index=index))


def test_tokens_are_kept_by_choice() -> None:
    output = Output()
    assert (output.started, output.tokens, output.resume()) == (False, 0, [])
    for frame in (chunk("a", 1, 2), chunk("b", 70_000, index=2), chunk("", 3)):
        assert output.admit(frame)
    assert (output.started, output.tokens) == (True, 4)
    assert [list(t.ids) for t in output.resume()] == [[1, 2, 3], [], [70_000]]


def test_what_a_second_worker_repeats_is_left_out() -> None:
    output = Output()
    assert output.admit(progress(pb.STAGE_LOADING))
    assert output.admit(finished(0))
    assert output.started
    assert not output.admit(progress(pb.STAGE_PREFILL))
    assert not output.admit(finished(0))
    assert output.admit(finished(1))
    assert output.admit(pb.GenerateResponse(summary=pb.Summary()))
    assert [list(t.ids) for t in output.resume()] == [[], []]
