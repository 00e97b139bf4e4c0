"""The worker asked without a router: what of a time to first token is not the router's."""

from __future__ import annotations

import asyncio
import time

from deltaserve.rpc.channels import internal_channel
from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1 import worker_pb2 as wpb
from deltaserve.v1.worker_pb2_grpc import WorkerServiceStub


async def direct_firsts(address: str, requests: int) -> list[float]:
    """Returns the seconds to the first token of requests, one after the other over one Session."""
    request = pb.GenerateRequest(model="base", text="a", stopping=pb.StoppingParams(max_tokens=1))
    firsts = []
    async with internal_channel(address) as channel:
        call = WorkerServiceStub(channel).Session()
        await call.write(wpb.SessionRequest(hello=wpb.Hello(router="direct")))
        for number in range(requests):
            name = f"direct/{number}"
            began = time.perf_counter()
            await call.write(wpb.SessionRequest(submit=wpb.Submit(request_id=name, request=request)))
            while True:
                message = await call.read()
                if any(output.request_id == name for output in message.outputs.outputs):
                    break
            firsts.append(time.perf_counter() - began)
            await asyncio.sleep(0.005)
        call.cancel()
    return firsts
