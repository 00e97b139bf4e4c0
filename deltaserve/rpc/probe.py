"""`python -m deltaserve.rpc.probe HOST:PORT`: exit status 0 when the server there says SERVING; for health checks."""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_SECONDS = 3.0


def probe(address: str) -> str:
    """Returns the server's overall health as its name in the health protocol, or what kept it from answering."""
    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=_SECONDS)
        except grpc.RpcError as error:
            code = getattr(error, "code", None)  # a failed call is an RpcError and a Call, which stubs do not say
            name: str = code().name if callable(code) else str(error)
            return name
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


if __name__ == "__main__":
    state = probe(sys.argv[1])
    sys.stdout.write(f"{state}\n")
    sys.exit(state != "SERVING")
