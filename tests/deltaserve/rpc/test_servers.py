"""Errors, health and reflection of a real server over a real socket."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from deltaserve import errors
from deltaserve.rpc.channels import edge_channel, internal_channel
from deltaserve.rpc.servers import Host, serving
from deltaserve.rpc.status import RemoteError, error_from_rpc, error_from_status
from deltaserve.v1 import inference_pb2 as pb
from deltaserve.v1 import inference_pb2_grpc as rpc

EVERY = [
    errors.InvalidArgumentError("bad temperature -1", field="sampling.temperature"),
    errors.FormatError("header of 3 bytes", field="files", bytes=3),
    errors.NotFoundError("model 'x' is not published", kind="model", name="x"),
    errors.AlreadyExistsError("taken", request="r1"),
    errors.BaseMismatchError("base a, expected b", found="a", expected="b"),
    errors.UnsupportedModelError("GPT2"),
    errors.QualityGateError("kl 0.2 > 0.1", kl=0.2),
    errors.QuotaError("disk full", subject="disk", retry_seconds=5),
    errors.SlowConsumerError("slow", subject="buffer"),
    errors.UnavailableError("no worker", retry_seconds=0.5),
    errors.DrainingError("draining", retry_seconds=2),
    errors.WorkerLostError("lost", tokens_emitted=17),
    errors.DeadlineError("late"),
    errors.OffsetError("gap", expected_offset=1024),
    errors.DataLossError("crc", path="f"),
    errors.StoreError("down"),
    errors.InternalError("bug"),
]


class Raising(rpc.InferenceServiceServicer):
    """Raises the error whose number the request's model names."""

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:
        if request.model == "bug":
            raise KeyError("oops")
        raise EVERY[int(request.model)]

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        yield pb.GenerateResponse(chunk=pb.Chunk(text="a"))
        raise EVERY[int(request.model)]


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    def register(server: grpc.aio.Server) -> None:
        rpc.add_InferenceServiceServicer_to_server(Raising(), server)

    async with serving("127.0.0.1:0", register, ["deltaserve.v1.InferenceService"]) as host:
        yield host


@pytest.fixture(params=[edge_channel, internal_channel])
async def channel(request: pytest.FixtureRequest, host: Host) -> AsyncIterator[grpc.aio.Channel]:
    async with request.param(f"127.0.0.1:{host.port}") as channel:
        yield channel


@pytest.mark.parametrize("number", range(len(EVERY)))
async def test_errors_arrive_as_the_class_that_was_raised(channel: grpc.aio.Channel, number: int) -> None:
    stub, sent = rpc.InferenceServiceStub(channel), EVERY[number]
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub.Tokenize(pb.TokenizeRequest(model=str(number)))
    assert failed.value.code() == sent.code
    assert failed.value.details() == sent.message
    received = error_from_rpc(failed.value)
    assert type(received) is type(sent)
    assert vars(received) == vars(sent)
    assert vars(error_from_status(sent.to_status().SerializeToString())) == vars(sent)


async def test_a_stream_delivers_what_came_before_the_error(channel: grpc.aio.Channel) -> None:
    seen = []
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        async for frame in rpc.InferenceServiceStub(channel).Generate(pb.GenerateRequest(model="11")):
            seen.append(frame.chunk.text)
    assert seen == ["a"]
    error = error_from_rpc(failed.value)
    assert isinstance(error, errors.WorkerLostError)
    assert error.metadata == {"tokens_emitted": "17"}


async def test_details_are_google_rpc(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await rpc.InferenceServiceStub(channel).Tokenize(pb.TokenizeRequest(model="7"))
    trailing = dict(failed.value.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    kinds = [detail.TypeName().rsplit(".", 1)[-1] for detail in status.details]
    assert kinds == ["ErrorInfo", "QuotaFailure", "RetryInfo"]
    retry = error_details_pb2.RetryInfo()
    status.details[2].Unpack(retry)
    assert retry.retry_delay.seconds == 5


async def test_a_bug_is_internal_and_logged(channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(grpc.aio.AioRpcError) as failed:
        await rpc.InferenceServiceStub(channel).Tokenize(pb.TokenizeRequest(model="bug"))
    assert failed.value.code() == grpc.StatusCode.INTERNAL
    assert "KeyError" in (failed.value.details() or "")
    assert "oops" in caplog.text


async def test_unimplemented_keeps_its_code(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await rpc.InferenceServiceStub(channel).ListModels(pb.ListModelsRequest())
    error = error_from_rpc(failed.value)
    assert isinstance(error, RemoteError)
    assert error.code == grpc.StatusCode.UNIMPLEMENTED


async def test_health_follows_set_serving(host: Host, channel: grpc.aio.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    wanted = health_pb2.HealthCheckRequest(service="deltaserve.v1.InferenceService")
    states = health_pb2.HealthCheckResponse
    assert (await stub.Check(wanted)).status == states.NOT_SERVING
    await host.set_serving(True)
    assert (await stub.Check(wanted)).status == states.SERVING
    assert (await stub.Check(health_pb2.HealthCheckRequest())).status == states.SERVING
    await host.set_serving(False)
    assert (await stub.Check(wanted)).status == states.NOT_SERVING


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_lists_and_describes(channel: grpc.aio.Channel, version: str) -> None:
    call = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="deltaserve.v1.InferenceService"),
    ]
    listed, described = [answer async for answer in call(iter(asked))]
    names = {service.name for service in listed.list_services_response.service}
    assert {
        "deltaserve.v1.InferenceService",
        "grpc.health.v1.Health",
        f"grpc.reflection.{version}.ServerReflection",
    } <= names
    assert described.file_descriptor_response.file_descriptor_proto


async def test_a_taken_port_is_named(host: Host) -> None:
    with pytest.raises(errors.UnavailableError, match=f"cannot listen on 127.0.0.1:{host.port}"):
        async with serving(f"127.0.0.1:{host.port}", lambda _: None, []):
            await asyncio.sleep(0)
