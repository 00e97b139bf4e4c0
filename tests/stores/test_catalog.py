"""Names that are known resolve while the store is away; unknown ones say that it is."""

import asyncio

import pytest

from deltaserve.catalog import Catalog
from deltaserve.errors import NotFoundError, StoreError
from deltaserve.names import RevisionName
from deltaserve.patience import Patience
from deltaserve.store import Store
from tests.deltaserve.test_catalog import publish
from tests.stores.fault_proxy import OK, Fault, FaultProxy


@pytest.fixture
async def catalog(faults: FaultProxy, bucket: str) -> Catalog:
    store = Store.open(f"s3://{bucket}/p", Patience(seconds=0.5, read_seconds=5))
    await publish(store, "a", "1")
    found = Catalog(store, ttl=0, patience=0.2)
    assert await found.resolve("a") == RevisionName("a", "1")
    return found


@pytest.mark.parametrize("fault", [Fault(status=503), Fault(reset=True), Fault(stall=True)], ids=str)
async def test_a_store_that_is_away_stops_only_what_is_unknown(
    faults: FaultProxy, catalog: Catalog, fault: Fault, bucket: str
) -> None:
    faults.plan = lambda _: fault
    for _ in range(20):
        assert await catalog.resolve("a") == RevisionName("a", "1")
    with pytest.raises(StoreError):
        await catalog.resolve("b")
    faults.plan = lambda _: OK
    await publish(Store.open(f"s3://{bucket}/p"), "a", "2")
    while await catalog.resolve("a") != RevisionName("a", "2"):
        await asyncio.sleep(0.05)
    with pytest.raises(NotFoundError):
        await catalog.resolve("b")
