"""Every command of docs/openai.md runs, and prints what the page shows (numbers aside)."""

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, System
from tests.e2e.pages import console, run, shape

pytestmark = pytest.mark.asyncio(loop_scope="session")

PAGE = (ROOT / "docs" / "openai.md").read_text()
ADDRESS = "127.0.0.1:8000"


async def _until_published(system: System, models: list[str]) -> None:
    async with asyncio.timeout(60):
        while not set(models) <= {model.model for model in await system.client.models()}:
            await asyncio.sleep(0.2)


async def test_commands_print_what_is_shown(system: System, four_models: list[str]) -> None:
    await _until_published(system, four_models)
    commands = console(PAGE)
    assert len(commands) >= 4
    for command, shown in commands:
        assert ADDRESS in command
        printed = await run(command.replace(ADDRESS, system.stack.http_address), dict(os.environ))
        lines = [shape(line) for line in printed.splitlines()]
        for line in shown:
            assert shape(line) in lines, f"{command!r} does not print {line!r}, but:\n{printed}"


async def test_snippets_run(system: System, four_models: list[str], tmp_path: Path) -> None:
    await _until_published(system, four_models)
    snippets = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert snippets
    for number, code in enumerate(snippets):
        path = tmp_path / f"snippet{number}.py"
        path.write_text(code.replace(ADDRESS, system.stack.http_address))
        assert "verb" in await run(f"{sys.executable} {path}", dict(os.environ))
