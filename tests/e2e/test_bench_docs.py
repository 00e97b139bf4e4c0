"""Every command of docs/bench.md runs, and prints what the page shows (numbers aside)."""

import os
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, System
from tests.e2e.pages import console, run, shape
from tests.e2e.test_openai_docs import _until_published

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]

PAGE = (ROOT / "docs" / "bench.md").read_text()
# what these lines say depends on what the machine has done before and does besides
VARIES = ("The generator", "deltas found in")


async def test_commands_print_what_is_shown(system: System, four_models: list[str], tmp_path: Path) -> None:
    await _until_published(system, four_models)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DELTASERVE_SERVER": system.stack.address,
        "COLUMNS": "120",
    }
    commands = console(PAGE)
    assert len(commands) >= 3
    for written, shown in commands:
        command = written.replace("127.0.0.1:8000", system.stack.http_address).replace("/tmp/", f"{tmp_path}/")
        printed = await run(command, environment)
        lines = [shape(line) for line in printed.splitlines()]
        for line in shown:
            start = next((start for start in VARIES if line.startswith(start)), None)
            if start is not None:
                assert any(other.startswith(start) for other in lines), printed
            else:
                assert shape(line) in lines, f"{command!r} does not print {line!r}, but:\n{printed}"
