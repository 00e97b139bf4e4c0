"""Every command of the README runs, and prints what the README shows (numbers aside)."""

import os
import re

import pytest

from tests.e2e.conftest import ROOT
from tests.e2e.pages import blocks, check, console, run, run_python, up

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]

README = (ROOT / "README.md").read_text()
MAKE_TARGETS = {"demo", "test"}  # `make demo` is test_demo.py, `make test` is this run


@pytest.mark.timeout(600)
async def test_the_session_runs_as_shown(environment: dict[str, str]) -> None:
    (first, _), *commands = console(README)
    assert first.startswith("deltaserve up ")
    assert len(commands) >= 4
    server = await up(first, environment)
    try:
        for written, shown in commands:
            command = written.replace("127.0.0.1:8000", environment["README_HTTP"])
            await check(command, shown, environment)
        for code in blocks("python", README):
            await run_python(code, environment)
    finally:
        server.terminate()
        await server.wait()


async def test_make_targets_exist() -> None:
    for target in re.findall(r"^make (\S+)", "".join(blocks("sh", README)), re.MULTILINE):
        assert target in MAKE_TARGETS
        await run(f"make --dry-run {target}", dict(os.environ))


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
