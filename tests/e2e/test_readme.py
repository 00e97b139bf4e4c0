"""Every command of the README runs, and prints what the README shows (numbers aside)."""

import asyncio
import os
import re
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.e2e.conftest import ROOT

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]

README = (ROOT / "README.md").read_text()
MAKE_TARGETS = {"demo", "test"}  # `make demo` is test_demo.py, `make test` is this run


def _blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def _console(page: str = README) -> list[tuple[str, list[str]]]:
    """Returns commands with the output lines shown below each."""
    found: list[tuple[str, list[str]]] = []
    for line in "".join(_blocks("console", page)).splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif line.startswith("> "):  # a command that goes on in the next line
            found[-1] = (found[-1][0].removesuffix("\\") + line[2:], [])
        elif line.strip() and line.strip() != "...":
            found[-1][1].append(line)
    return found


def _shape(text: str) -> str:
    """Digits, units and spacing do not count."""
    text = re.sub(r"[0-9]+([.,:][0-9]+)*", "#", text)
    return " ".join(re.sub(r"# ?(KiB|MiB|GiB|B|ms|s|m)\b", "#", text).split())


@pytest_asyncio.fixture(loop_scope="session")
async def environment(tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """What the commands run in: the README's default port and folder may be taken, so the test has its own."""
    with socket.socket() as grpc, socket.socket() as http:
        addresses = []
        for probe in (grpc, http):
            probe.bind(("127.0.0.1", 0))
            addresses.append(f"127.0.0.1:{probe.getsockname()[1]}")
    yield os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DELTASERVE_SERVER": addresses[0],
        "README_HTTP": addresses[1],
        "README_HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
    }


async def _run(command: str, environment: dict[str, str]) -> str:
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", command, cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(200):
        out, err = await process.communicate()
    assert process.returncode == 0, f"{command!r} ended with {process.returncode}:\n{out.decode()}\n{err.decode()}"
    return out.decode()


async def _up(command: str, environment: dict[str, str]) -> asyncio.subprocess.Process:
    flags = f"--listen {environment['DELTASERVE_SERVER']} --http {environment['README_HTTP']}"
    flags += f" --home {environment['README_HOME']} --threads 1"
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", f"exec {command.removesuffix('&').strip()} {flags}", cwd=ROOT, env=environment,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    said = b""
    async with asyncio.timeout(120):
        while b"ready" not in said:
            line = await process.stderr.readline()
            assert line, said.decode()
            said += line
    return process


@pytest.mark.timeout(600)
async def test_the_session_runs_as_shown(environment: dict[str, str]) -> None:
    (up, _), *commands = _console()
    assert up.startswith("deltaserve up ")
    assert len(commands) >= 4
    server = await _up(up, environment)
    try:
        for written, shown in commands:
            command = written.replace("127.0.0.1:8000", environment["README_HTTP"])
            printed = [_shape(line) for line in (await _run(command, environment)).splitlines()]
            for line in shown:
                assert _shape(line) in printed, f"{command!r} does not print {line!r}, but:\n" + "\n".join(printed)
        for code in _blocks("python"):
            snippet = Path(environment["README_HOME"], "snippet.py")
            snippet.write_text(code.replace("Client()", f'Client("{environment["DELTASERVE_SERVER"]}")'))
            await _run(f"python {snippet}", environment)
    finally:
        server.terminate()
        await server.wait()


async def test_make_targets_exist() -> None:
    for target in re.findall(r"^make (\S+)", "".join(_blocks("sh")), re.MULTILINE):
        assert target in MAKE_TARGETS
        await _run(f"make --dry-run {target}", dict(os.environ))


async def test_links_lead_somewhere() -> None:
    for page in [
        ROOT / "README.md",
        ROOT / "ARCHITECTURE.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").rglob("*.md"),
    ]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"
