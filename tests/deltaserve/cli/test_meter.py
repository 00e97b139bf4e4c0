"""What people see of a job that takes several attempts, on a terminal and in a pipe."""

import io

import pytest
from rich.console import Console

from deltaserve.cli.meter import Meter
from deltaserve.v1 import models_pb2 as pb


def told(*, terminal: bool, smallest: bool = False) -> str:
    """What a meter writes about a job that is compressed and measured twice."""
    out = io.StringIO()
    spec = pb.JobSpec(compression=pb.CompressionOptions(smallest=smallest))
    with Meter(Console(file=out, force_terminal=terminal, width=160)) as meter:
        for attempt in (1, 2):
            for stage in (pb.JOB_STAGE_COMPRESSING, pb.JOB_STAGE_EVALUATING):
                progress = pb.JobProgress(stage=stage, layers_done=attempt, layers_total=8, attempt=attempt)
                meter.job(pb.Job(spec=spec, state=pb.JOB_STATE_RUNNING, progress=progress))
    return out.getvalue()


def test_attempts_in_a_pipe() -> None:
    lines = told(terminal=False).splitlines()
    assert [line.split(":")[0].strip() for line in lines] == ["compress", "evaluate", "compress", "evaluate"]
    assert ["attempt 2: more bits" in line for line in lines] == [False, False, True, True]


def test_the_search_for_the_smallest_does_not_only_add_bits() -> None:
    last = told(terminal=False, smallest=True).splitlines()[-1]
    assert "attempt 2" in last
    assert "more bits" not in last


@pytest.mark.parametrize("smallest", [False, True])
def test_attempts_on_a_terminal(smallest: bool) -> None:
    said = told(terminal=True, smallest=smallest)
    assert "attempt 2" in said
    assert "attempt 1" not in said
