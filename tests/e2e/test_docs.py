"""Every command and snippet of the documentation runs, in order, and prints what the page shows (numbers aside)."""

import re

import httpx
import pytest

from tests.e2e.collector import Collector
from tests.e2e.conftest import ROOT, Observed, free_port
from tests.e2e.pages import blocks, check, console, run_python, up

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]

DOCS = ROOT / "docs"


def _steps(page: str) -> list[str]:
    """Returns the blocks that are to run, in order; `sh` is for what needs Docker or a clone."""
    return re.findall(r"^```(?:console|python)\n.*?^```", page, re.DOTALL | re.MULTILINE)


async def _walk(name: str, environment: dict[str, str], places: dict[str, str]) -> None:
    """Runs a page with the addresses and folders of the test in place of its own."""
    page = (DOCS / name).read_text()
    for written, own in places.items():
        page = page.replace(written, own)
    server = None
    try:
        for step in _steps(page):
            for code in blocks("python", step):
                await run_python(code, environment)
            for command, shown in console(step):
                exported = re.fullmatch(r"export (\w+)=(\S+)", command)
                if exported:
                    environment[exported[1]] = exported[2]
                elif command.startswith("deltaserve up "):
                    server = await up(command, environment)
                else:
                    await check(command, shown, environment)
    finally:
        if server is not None:
            server.terminate()
            await server.wait()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["quickstart.md", "operations.md", "metrics.md"])
async def test_pages_run_as_shown(name: str, environment: dict[str, str]) -> None:
    places = {
        "my-fine-tune": f"{environment['README_HOME']}/my-fine-tune",
        "127.0.0.1:8000": environment["README_HTTP"],
        "127.0.0.1:9464": f"127.0.0.1:{free_port()}",
    }
    await _walk(name, environment, places)


@pytest.mark.timeout(900)
async def test_the_walkthrough_leads_to_the_trace_it_promises(environment: dict[str, str]) -> None:
    async with Collector() as collector:
        collector_at = collector.endpoint.removeprefix("http://")
        await _walk(
            "tracing.md", environment, {"127.0.0.1:4317": collector_at, "127.0.0.1:8000": environment["README_HTTP"]}
        )
    by_name = {(span.service, span.name) for span in collector.spans}
    assert {("deltaserve-cli", "text_completion g2p"), ("deltaserve-router", "text_completion g2p")} <= by_name
    page = (DOCS / "tracing.md").read_text()
    tree = re.search(r"^```\n(text_completion g2p .*?)^```", page, re.DOTALL | re.MULTILINE)
    assert tree
    promised = {re.sub(r"^[ │├└]*", "", line).split("  ")[0] for line in tree[1].splitlines()}
    made = {span.name for span in collector.spans}
    assert promised <= made, promised - made
    assert "0af7651916cd43dd8448eb211c80319c" in {span.trace for span in collector.spans}


async def test_the_pages_name_metrics_and_settings_that_there_are(observed: Observed) -> None:
    told = ""
    async with httpx.AsyncClient() as http:
        for address in observed.metrics.values():
            told += (await http.get(f"http://{address}/metrics")).text
    families = set(re.findall(r"^# TYPE (\S+)", told, re.MULTILINE))
    page = (DOCS / "metrics.md").read_text()
    documented = set(re.findall(r"`((?:deltaserve|gen_ai_server)_\w+)`", page)) - {"gen_ai_operation_name"}
    assert documented == {name for name in families if name.startswith(("deltaserve_", "gen_ai_"))}
