"""Load on the real services over both protocols: what the report counts is what the system did."""

import asyncio
import json
import sys
import time
from pathlib import Path

import pytest

from deltaserve.bench.figures import Objectives
from deltaserve.bench.lengths import parse_lengths
from deltaserve.bench.processes import Target, run
from deltaserve.bench.records import CANCELLED, OK, Record
from deltaserve.bench.summary import Summary, summarise
from deltaserve.bench.workload import Planned, Workload, plan
from deltaserve.v1 import admin_pb2
from tests.e2e.conftest import System

pytestmark = pytest.mark.asyncio(loop_scope="session")

GONE = "not-published"


def target(system: System, protocol: str) -> Target:
    return Target(system.stack.address, f"http://{system.stack.http_address}" if protocol == "HTTP" else "", 120.0)


async def measure(system: System, protocol: str, planned: list[Planned]) -> tuple[list[Record], Summary]:
    shares = await run(target(system, protocol), planned, 1)
    records = [record for share in shares for record in share.records]
    objectives = Objectives(ttft=60.0, inter_token=30.0, e2e=110.0)
    return records, summarise(records, objectives, warm_up=0, cpu=[s.cpu for s in shares], settings={})


async def _until_idle(system: System) -> admin_pb2.Worker:
    async with asyncio.timeout(30):
        while True:
            (worker,) = await system.client.workers()
            if not worker.running and not worker.waiting and worker.kv_blocks_free == worker.kv_blocks_total:
                return worker
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("protocol", ["gRPC", "HTTP"])
async def test_figures_are_what_was_asked_for(system: System, four_models: list[str], protocol: str) -> None:
    planned = plan(
        Workload(
            models=tuple(four_models), rate=8.0, seconds=60.0, most=24, popularity="zipf", exponent=0.5,
            prompt_tokens=parse_lengths("uniform:4,40", ""), output_tokens=parse_lengths("uniform:2,12", ""),
            seed=time.time_ns(),
        )
    )  # fmt: skip
    records, summary = await measure(system, protocol, planned)
    assert [r.status for r in records] == [OK] * 24
    # the server counts what was drawn
    assert [r.output_tokens for r in records] == [p.max_tokens for p in planned]
    assert [r.prompt_tokens for r in records] == [len(p.prompt) for p in planned]
    total = summary.total
    assert total.output_tokens == sum(p.max_tokens for p in planned)
    assert total.output_rate * total.seconds == pytest.approx(total.output_tokens)
    assert sum(one.output_tokens for one in summary.models.values()) == total.output_tokens
    assert total.attainment == {"ttft": 1.0, "inter_token": 1.0, "e2e": 1.0, "all": 1.0}
    assert total.goodput == pytest.approx(24 / total.seconds)
    assert total.e2e.p50 >= total.ttft.p50 > 0  # type: ignore[operator]
    if protocol == "gRPC":  # HTTP does not tell where deltas were
        tuned = sum(p.model != "base" for p in planned)
        assert sum(total.tiers.values()) == tuned
    await _until_idle(system)


@pytest.mark.parametrize("protocol", ["gRPC", "HTTP"])
async def test_who_leaves_and_what_fails_is_counted_apart(
    system: System, four_models: list[str], protocol: str
) -> None:
    prompt = list(range(20, 40))
    planned = [Planned(i / 10, "g2p", prompt, 6, 6, True) for i in range(4)]
    planned += [Planned(0.5 + i / 10, "conj_fr", prompt, 1500, 1500, True, cancel_after=2 + i) for i in range(3)]
    planned += [Planned(0.9, GONE, prompt, 4), Planned(1.0, "base", prompt, 5000)]
    records, summary = await measure(system, protocol, planned)
    total = summary.total
    assert (total.requests, total.ok, total.cancelled) == (9, 4, 3)
    expected = ["NOT_FOUND", "INVALID_ARGUMENT"] if protocol == "gRPC" else ["HTTP 404", "HTTP 400"]
    assert [r.status for r in records[7:]] == expected
    assert total.errors == dict.fromkeys(sorted(expected), 1)
    left = [r for r in records if r.status == CANCELLED]
    assert all(r.output_tokens < 1500 for r in left)
    assert total.attainment["all"] == pytest.approx(4 / 6)
    assert summary.models[GONE].ok == 0
    # the worker stops what nobody reads: 1,500 tokens each would take it minutes
    await _until_idle(system)


async def test_the_command_over_http_by_two_processes(system: System, four_models: list[str], tmp_path: Path) -> None:
    page, records = tmp_path / "page.html", tmp_path / "records.jsonl"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "deltaserve.cli", "bench", *four_models,  # other tests publish more
        "--http", f"http://{system.stack.http_address}", "--rate", "4",
        "--duration", "3", "--output-tokens", "4", "--processes", "2", "--json", "--html", str(page),
        "--records", str(records), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode == 0
    found = json.loads(out)
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    assert found["total"]["ok"] == len(rows) > 0
    assert found["generator"]["processes"] == 2
    assert set(four_models) >= found["models"].keys()
    assert "How latencies spread" in page.read_text()
