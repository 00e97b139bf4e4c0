"""Progress, refusals, deaths and cancellation of a real child process."""

import asyncio
import os
from pathlib import Path

import pytest

from deltaserve.errors import InternalError, QualityGateError
from services.compressor.jobs import process
from services.compressor.jobs.records import Progress

ERROR = QualityGateError("kl 0.2 is above 0.1", kl=0.2)


def module(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> list[str]:
    """Writes a module that stands where the pipeline stands; returns its arguments for `python -m`."""
    (folder / "stand_in.py").write_text(f"import os, sys, time\n{body}\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return ["stand_in", str(folder / "error.bin")]


async def test_progress_is_told_and_other_lines_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = """
print('{"stage": "compressing", "layers_done": 1, "layers_total": 2, "eta_seconds": 1.5}', flush=True)
print('a library says hello')
print('{"stage": "evaluating", "layers_done": 2, "layers_total": 2}')
"""
    seen: list[Progress] = []
    await process.run(module(tmp_path, monkeypatch, body), tmp_path / "error.bin", seen.append)
    assert [(p.stage, p.layers_done, p.eta_seconds) for p in seen] == [("compressing", 1, 1.5), ("evaluating", 2, None)]


async def test_a_refusal_is_the_error_that_was_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = ERROR.to_status().SerializeToString()
    body = f"open(sys.argv[1], 'wb').write({status!r}); sys.exit(3)"
    with pytest.raises(QualityGateError, match="above") as refused:
        await process.run(module(tmp_path, monkeypatch, body), tmp_path / "error.bin", lambda _: None)
    assert refused.value.metadata == {"kl": "0.2"}


async def test_an_error_of_a_former_run_is_not_taken_for_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "error.bin").write_bytes(ERROR.to_status().SerializeToString())
    with pytest.raises(InternalError, match="status 3"):
        await process.run(module(tmp_path, monkeypatch, "sys.exit(3)"), tmp_path / "error.bin", lambda _: None)


@pytest.mark.parametrize(
    ("body", "message"),
    [("os.kill(os.getpid(), 9)", "signal 9, perhaps because memory ran out"), ("raise KeyError('x')", "KeyError")],
)
async def test_deaths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str) -> None:
    with pytest.raises(InternalError, match=message):
        await process.run(module(tmp_path, monkeypatch, body), tmp_path / "error.bin", lambda _: None)


async def test_cancelling_kills_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "print('{\"layers_done\": %d}' % os.getpid(), flush=True)\ntime.sleep(600)"
    seen: list[Progress] = []
    running = asyncio.create_task(process.run(module(tmp_path, monkeypatch, body), tmp_path / "error.bin", seen.append))
    async with asyncio.timeout(20):
        while not seen:
            await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    with pytest.raises(ProcessLookupError):
        os.kill(seen[0].layers_done, 0)
