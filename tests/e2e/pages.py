"""Pages of documentation as tests read them: their commands, what is shown below each, and a shell to run them in."""

import asyncio
import re
from pathlib import Path

from tests.e2e.conftest import ROOT


def blocks(language: str, page: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def console(page: str) -> list[tuple[str, list[str]]]:
    """Returns commands with the output lines shown below each."""
    found: list[tuple[str, list[str]]] = []
    for line in "".join(blocks("console", page)).splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif line.startswith("> "):  # a command that goes on in the next line
            found[-1] = (found[-1][0].removesuffix("\\") + line[2:], [])
        elif line.strip() and line.strip() != "...":
            found[-1][1].append(line)
    return found


def shape(text: str) -> str:
    """Digits, units and spacing do not count."""
    text = re.sub(r"[0-9]+([.,:][0-9]+)*", "#", text)
    return " ".join(re.sub(r"# ?(KiB|MiB|GiB|B|ms|s|m)\b", "#", text).split())


async def run(command: str, environment: dict[str, str]) -> str:
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", command, cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(400):
        out, err = await process.communicate()
    assert process.returncode == 0, f"{command!r} ended with {process.returncode}:\n{out.decode()}\n{err.decode()}"
    return out.decode()


async def check(command: str, shown: list[str], environment: dict[str, str]) -> None:
    """Runs a command, which must print every line that is shown."""
    printed = [shape(line) for line in (await run(command, environment)).splitlines()]
    for line in shown:
        assert shape(line) in printed, f"{command!r} does not print {line!r}, but:\n" + "\n".join(printed)


async def up(command: str, environment: dict[str, str]) -> asyncio.subprocess.Process:
    """Starts `deltaserve up`, at the test's own addresses and in its own folder, and waits until it is ready."""
    flags = f"--listen {environment['DELTASERVE_SERVER']} --http {environment['README_HTTP']}"
    flags += f" --home {environment['README_HOME']} --threads 1"
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", f"exec {command.removesuffix('&').strip()} {flags}", cwd=ROOT, env=environment,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    said = b""
    async with asyncio.timeout(240):
        while b"ready" not in said:
            line = await process.stderr.readline()
            assert line, said.decode()
            said += line
    return process


async def run_python(code: str, environment: dict[str, str]) -> str:
    """Runs a snippet as a script."""
    snippet = Path(environment["README_HOME"], "snippet.py")
    snippet.write_text(code.replace("Client()", f'Client("{environment["DELTASERVE_SERVER"]}")'))
    return await run(f"python {snippet}", environment)
