"""Streams that workers hand over because they leave."""

from __future__ import annotations

from deltaserve.errors import DrainingError
from deltaserve.v1 import worker_pb2 as wpb

from .conftest import ScriptedWorker, chunk, connected, ending, rest, routing, serve


async def test_a_stream_moves_as_often_as_its_workers_drain(store: str, worker: ScriptedWorker) -> None:
    async def script(worker: ScriptedWorker, submit: wpb.Submit) -> None:
        made = len(submit.resume[0].ids) if submit.resume else 0
        worker.emit(submit.request_id, chunk("x", made))
        if made < 6:
            worker.emit(submit.request_id, error=DrainingError("shutting down"))
        else:
            worker.emit(submit.request_id, *ending(worker, submit, 7))

    worker.script = script
    async with serve(worker) as port, routing(store, [f"127.0.0.1:{port}"]) as (router, client):
        await connected(router)
        frames = await rest(client.generate())
    assert [t for f in frames for t in f.chunk.token_ids] == list(range(7))
    assert frames[-1].HasField("summary")
