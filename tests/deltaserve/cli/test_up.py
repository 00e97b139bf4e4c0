"""`deltaserve up` with the real services, as a process that people start and stop."""

import contextlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deltaserve import errors
from deltaserve.cli import home
from deltaserve.client import Client

BASE = Path(__file__).parents[3] / "examples" / "models" / "base"


@contextlib.contextmanager
def deltaserve_up(*flags: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "deltaserve.cli", "up", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    command += ["--threads", "1", *flags]
    with subprocess.Popen(command, cwd=cwd, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)


def read_until(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    said = ""
    assert process.stderr is not None
    for line in process.stderr:
        said += line
        if found := re.search(pattern, line):
            return found
    raise AssertionError(f"{pattern!r} never came; it said:\n{said}")


@pytest.mark.slow
def test_up_serves_restarts_what_dies_and_stops(tmp_path: Path) -> None:
    with deltaserve_up("--base", str(BASE), "--base-name", "tiny", cwd=tmp_path) as process:
        address = read_until(process, r"^ready after .* at (\S+)$")[1]
        children = psutil.Process(process.pid).children()
        assert len(children) == 3
        with Client(address) as client:
            assert [model.model for model in client.models()] == ["tiny"]
            assert client.complete("tiny", "The package", max_tokens=4, temperature=0).text
            assert client.jobs() == []
            compressor = next(c for c in children if "services.compressor" in c.cmdline())
            compressor.kill()
            read_until(process, "compressor ended with status -9; starting it again")
            assert client.jobs() == []  # waits until it is back
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        assert process.wait(timeout=60) == 0
        assert time.monotonic() - started < 20
        assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert {path.stem for path in (tmp_path / ".deltaserve" / "logs").iterdir()} == {"compressor", "router", "worker-1"}


@pytest.mark.slow
def test_nothing_outlives_a_killed_up(tmp_path: Path) -> None:
    with deltaserve_up("--base", str(BASE), cwd=tmp_path) as process:
        read_until(process, "^starting")
        deadline = time.monotonic() + 60
        while len(children := psutil.Process(process.pid).children(recursive=True)) < 4:  # the worker's engine too
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.kill()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


def test_a_service_that_cannot_start_is_told_with_its_log(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(BASE / name, broken / name)
    with deltaserve_up("--base", str(broken), cwd=tmp_path) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "error: " in err
    assert re.search(r"(compressor|worker-1) ended with status 1; the end of .*\.log:", err)
    assert "model.safetensors" in err


async def test_a_home_is_used_by_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home, "_PATIENCE_SECONDS", 0.3)
    first = await home.HomeLock.take(tmp_path)
    with pytest.raises(errors.PreconditionError, match="another --home"):
        await home.HomeLock.take(tmp_path)
    (tmp_path / "store").mkdir()
    (tmp_path / "file").touch()
    first.empty()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    first.release()
    (await home.HomeLock.take(tmp_path)).release()


def test_a_folder_without_a_base_is_refused(tmp_path: Path) -> None:
    with deltaserve_up("--base", str(tmp_path), cwd=tmp_path) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.splitlines()[-1].endswith("has no config.json; expected the folder of the base model")
