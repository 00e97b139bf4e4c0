"""Uploads that break off, resume and are checked, against a real server."""

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest

from deltaserve import errors
from deltaserve.client import AsyncClient, UploadProgress


def contents(peer: Any) -> dict[str, bytes]:
    return {path: bytes(data) for (_, path), data in peer.models.stored.items()}


async def test_an_upload_sends_weights_side_files_and_extras(peer: Any, checkpoint: Path) -> None:
    seen: list[UploadProgress] = []
    async with AsyncClient(peer.address) as client:
        uri = await client.upload(checkpoint, extra=[checkpoint / "train.jsonl"], progress=seen.append)
    names = ["config.json", "model.safetensors", "tokenizer.json", "train.jsonl"]
    assert contents(peer) == {name: (checkpoint / name).read_bytes() for name in names}
    declared = next(iter(peer.models.declared.values()))
    assert uri == f"upload:{declared.upload_id}"
    assert declared.config_json == (checkpoint / "config.json").read_bytes()
    assert [(t.name, t.dtype, list(t.shape)) for t in declared.tensors] == [
        ("model.norm.weight", "BF16", [16]),
        ("model.layers.0.self_attn.q_proj.weight", "BF16", [64, 16]),
    ]
    assert [p.stage for p in seen if p.done == p.total] == ["hashing", "sending", "verifying"]
    assert all(former.done <= later.done for former, later in itertools.pairwise(seen[4:]))


@pytest.mark.parametrize("cuts", [[1], [1, 500, 1], [0, 0, 0]])
async def test_an_upload_goes_on_where_it_broke_off(peer: Any, checkpoint: Path, cuts: list[int]) -> None:
    peer.models.break_after = list(cuts)
    async with AsyncClient(peer.address) as client:
        await client.upload(checkpoint)
    assert contents(peer)["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()
    assert len(peer.models.calls) == len(cuts) + 1
    assert sum(peer.models.calls) == sum(len(data) for data in contents(peer).values())  # nothing was sent twice


async def test_an_upload_survives_a_restarted_server(peer: Any, checkpoint: Path) -> None:
    peer.stop()
    async with AsyncClient(peer.address) as client:
        upload = asyncio.create_task(client.upload(checkpoint))
        await asyncio.sleep(0.3)
        peer.start()
        await upload


async def test_a_new_client_continues_a_former_ones_upload(peer: Any, checkpoint: Path) -> None:
    peer.models.break_after = [1000] + [0] * 100
    async with AsyncClient(peer.address, patience=0) as client:
        with pytest.raises(errors.UnavailableError, match="restarting"):
            await client.upload(checkpoint)
    before = sum(len(data) for data in contents(peer).values())
    peer.models.break_after, peer.models.calls = [], []
    async with AsyncClient(peer.address) as client:
        await client.upload(checkpoint)
    total = sum(len(data) for data in contents(peer).values())
    assert 0 < before < total
    assert sum(peer.models.calls) == total - before


async def test_a_committed_upload_costs_no_bytes(peer: Any, checkpoint: Path) -> None:
    async with AsyncClient(peer.address) as client:
        first = await client.upload(checkpoint)
        peer.models.calls = []
        assert await client.upload(checkpoint) == first
    assert not peer.models.calls


async def test_a_file_that_arrived_damaged_goes_once_more(peer: Any, checkpoint: Path) -> None:
    peer.models.damage = ["tokenizer.json"]
    async with AsyncClient(peer.address) as client:
        await client.upload(checkpoint)
    assert contents(peer)["tokenizer.json"] == b"{}"
    peer.models.damage = ["tokenizer.json", "tokenizer.json"]
    async with AsyncClient(peer.address) as client:
        with pytest.raises(errors.DataLossError, match=r"tokenizer\.json"):
            await client.upload(checkpoint)


async def test_a_refusal_is_not_repeated(peer: Any, checkpoint: Path) -> None:
    async with AsyncClient(peer.address) as client:
        await client.upload(checkpoint)
        declared = next(iter(peer.models.declared.values()))
        declared.files[0].sha256 = "0" * 64
        with pytest.raises(errors.AlreadyExistsError):
            await client.upload(checkpoint)
