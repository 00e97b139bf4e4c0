"""What running services tell Prometheus: the values are right, and the dashboard asks for nothing else."""

from collections.abc import Iterable

import httpx
import promql_parser as promql
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deltaserve.errors import NotFoundError
from tests.deploy.expressions import expressions, uses
from tests.e2e.conftest import Observed, prompts

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]

SCRAPED = frozenset({"instance", "job"})  # labels that Prometheus adds itself
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",), "info": ("_info",)}


class Scrape:
    """The metrics of services at one moment."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.names: set[str] = set()
        self.labels: dict[str, set[str]] = {}
        self._values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for text in texts:
            for family in text_string_to_metric_families(text):
                self.names |= {family.name + suffix for suffix in SUFFIXES.get(family.type, ("",))}
                for sample in family.samples:
                    self.labels.setdefault(sample.name, set()).update(sample.labels)
                    self._values[sample.name, frozenset(sample.labels.items())] = sample.value

    def total(self, name: str, **labels: str) -> float:
        """Returns the sum of a metric's samples that have these labels."""
        return sum(v for (n, having), v in self._values.items() if n == name and labels.items() <= dict(having).items())


async def scrape(observed: Observed, *services: str) -> Scrape:
    async with httpx.AsyncClient() as http:
        answers = [await http.get(f"http://{observed.metrics[service]}/metrics") for service in services]
    for answer in answers:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=")
    return Scrape(answer.text for answer in answers)


async def test_counts_are_those_of_the_requests(observed: Observed) -> None:
    model = await observed.publish("g2p")
    before = await scrape(observed, "router", "worker", "compressor")
    done = [await observed.client.complete(model, prompt, max_tokens=5) for prompt in prompts("g2p", 3)]
    with pytest.raises(NotFoundError):
        await observed.client.complete("nobody", "x")
    after = await scrape(observed, "router", "worker", "compressor")

    def grew(name: str, **labels: str) -> float:
        return after.total(name, **labels) - before.total(name, **labels)

    count = "gen_ai_server_request_duration_seconds_count"
    assert grew(count, model_class="fine_tune", error_type="", gen_ai_operation_name="text_completion") == 3
    assert grew(count, error_type="NOT_FOUND") == 1
    assert grew(count) == 4
    assert grew("gen_ai_server_time_to_first_token_seconds_count", model_class="fine_tune") == 3
    usage = [one.summary.usage for one in done]
    assert grew("deltaserve_router_tokens_total", kind="output") == sum(u.completion_tokens for u in usage)
    assert grew("deltaserve_router_tokens_total", kind="input") == sum(u.prompt_tokens for u in usage)
    assert grew("deltaserve_router_queue_wait_seconds_count") == 3
    assert grew("deltaserve_router_submits_total") == 3
    assert grew("deltaserve_router_submits_total", tier="store") >= 1
    assert grew("deltaserve_worker_requests_total", error_type="") == 3
    assert grew("deltaserve_worker_phase_seconds_count", phase="decode") == 3
    assert grew("deltaserve_worker_load_seconds_count", source="store") == 1
    assert grew("deltaserve_worker_load_bytes_total", source="store") > 0
    assert after.total("deltaserve_router_workers", state="serving") == 1
    assert after.total("deltaserve_router_worker_up", worker="worker-1") == 1
    assert after.total("deltaserve_router_arrival_rate", model=model) > 0
    assert after.total("deltaserve_worker_delta_resident", revision=f"{model}@1") == 0
    assert after.labels["deltaserve_worker_delta_resident"] == {"revision", "tier"}
    assert after.total("deltaserve_worker_kv_blocks", state="total") > 0


async def test_the_engines_counts_arrive(observed: Observed) -> None:
    before = await scrape(observed, "worker")
    done = await observed.client.complete("base", prompts("base", 1)[0], max_tokens=40, ignore_eos=True)
    after = await scrape(observed, "worker")  # the engine tells of its counts when it goes idle
    name = "deltaserve_worker_step_rows_total"
    decoded = after.total(name, kind="decode") - before.total(name, kind="decode")
    prefilled = after.total(name, kind="prefill") - before.total(name, kind="prefill")
    assert (decoded, prefilled) == (39, done.summary.usage.prompt_tokens)
    steps = after.total("deltaserve_worker_steps_total") - before.total("deltaserve_worker_steps_total")
    assert steps >= 40
    assert after.total("deltaserve_worker_step_seconds_count") - before.total("deltaserve_worker_step_seconds_count")


async def test_jobs_are_counted(observed: Observed) -> None:
    before = await scrape(observed, "compressor")
    await observed.publish("section")
    after = await scrape(observed, "compressor")
    name = "deltaserve_compressor_job_seconds_count"
    assert after.total(name, state="succeeded") - before.total(name, state="succeeded") == 1
    assert after.total("deltaserve_compressor_published_bytes_total") > before.total(
        "deltaserve_compressor_published_bytes_total"
    )
    assert after.total("deltaserve_compressor_stage_seconds_count", stage="publishing") >= 1


async def test_the_dashboard_and_the_alerts_ask_for_what_there_is(observed: Observed) -> None:
    model = await observed.publish("g2p")
    await observed.client.complete(model, prompts("g2p", 1)[0], max_tokens=2)
    told = await scrape(observed, "router", "worker", "compressor")
    for where, text in expressions():
        for used in uses(promql.parse(text)):
            assert used.metric in told.names, f"{where}: no service tells {used.metric}"
            known = told.labels.get(used.metric)
            if known is not None:  # a counter by label has no sample before its first event
                assert used.labels <= known | SCRAPED, f"{where}: {used.metric} has the labels {sorted(known)}"


async def test_other_paths_and_garbage_are_refused(observed: Observed) -> None:
    async with httpx.AsyncClient() as http:
        assert (await http.get(f"http://{observed.metrics['worker']}/")).status_code == 404
        assert (await http.post(f"http://{observed.metrics['worker']}/metrics")).status_code == 404
        wanted = {"accept": "application/openmetrics-text; version=1.0.0"}
        answer = await http.get(f"http://{observed.metrics['worker']}/metrics", headers=wanted)
    assert answer.text.endswith("# EOF\n")
