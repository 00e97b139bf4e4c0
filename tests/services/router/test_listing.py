"""ListModels pages."""

from __future__ import annotations

import pytest

from deltaserve.catalog import ModelRecord
from deltaserve.errors import InvalidArgumentError
from deltaserve.v1 import inference_pb2 as pb
from services.router.listing import list_page
from services.router.rates import RateBook

from .conftest import BASE_NAME, ScriptedWorker, connected, manifest, publish, rest, routing, serve


def page(names: list[str], size: int = 0, token: str = "") -> pb.ListModelsResponse:
    records = [ModelRecord(name, ("1",), manifest(name, "1")) for name in names]
    request = pb.ListModelsRequest(page_size=size, page_token=token)
    return list_page(request, ["base"], records, [], RateBook(0.0), 1.0)


def test_pages_follow_each_other_without_loss() -> None:
    names = [f"m{i:03d}" for i in range(250)]
    seen, token = [], ""
    while True:
        response = page(names, 60, token)
        assert len(response.models) <= 60
        seen += [model.model for model in response.models]
        token = response.next_page_token
        if not token:
            break
    assert seen == ["base", *names]


def test_default_and_largest_page() -> None:
    names = [f"m{i:04d}" for i in range(1200)]
    assert len(page(names).models) == 100
    assert len(page(names, 5000).models) == 1000


def test_a_page_goes_on_when_its_last_model_was_deleted() -> None:
    token = page(["a", "b", "c"], 3).next_page_token
    assert [model.model for model in page(["a", "c"], 3, token).models] == ["c"]


def test_foreign_tokens_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="page_token"):
        page(["a"], token="what")


async def test_models_are_told_with_rates_sizes_and_residency(store: str, worker: ScriptedWorker) -> None:
    await publish(store, "m", "1")
    await publish(store, "m", "2", delta_bytes=1234)
    worker.state.residency.add(worker="w0", revision="m@2", tier=pb.TIER_DEVICE, bytes=1200, in_use=1)
    worker.state.residency.add(worker="w0", revision="m@1", tier=pb.TIER_DISK, bytes=1200)
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"]) as (router, client):
        await connected(router)
        for _ in range(3):
            await rest(client.generate(model="m"))
        await rest(client.generate(model="m@1"))
        response = await client.inference.ListModels(pb.ListModelsRequest())
    base, tuned = response.models
    assert (base.model, base.base, base.name, base.rates.total) == (BASE_NAME, True, "models/tiny", 0)
    assert (tuned.model, tuned.revision, list(tuned.revisions)) == ("m", "2", ["1", "2"])
    assert (tuned.delta_bytes, tuned.checkpoint_bytes) == (1234, 20_000)
    assert tuned.create_time.ToJsonString() == "2026-01-02T03:04:05Z"
    assert (tuned.rates.total, tuned.rates.in_flight) == (4, 0)
    assert tuned.rates.short_rate > tuned.rates.long_rate * 0.9 > 0
    assert [(r.revision, r.tier, r.in_use) for r in tuned.residency] == [("m@2", pb.TIER_DEVICE, 1)]
