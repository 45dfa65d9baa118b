"""What every role answers besides its own methods: health and reflection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from draft_service.grower import Grower
from sequoia.errors import Reason
from sequoia.generation import GenerationRequest
from sequoia.messages import GrownTree, GrowTree
from sequoia.plans import BUILT_IN_PLAN, Plan
from sequoia.rpc.channel import _OPTIONS, RpcChannel
from sequoia.rpc.codec import GET_INFO, GROW_TREE
from sequoia.rpc.errors import RemoteError
from sequoia.rpc.generation_codec import GENERATE
from sequoia.rpc.planner_codec import REPLAN
from sequoia.rpc.server import Context, RpcServer
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.service import WorkerService
from sequoia.runtime.worker import WorkerLimits
from tests.stack import HOST
from tests.tiny import tiny_llama


class Role:
    """A draft worker whose model has not been loaded yet."""

    def __init__(self, server: RpcServer) -> None:
        self.server = server
        self.service: WorkerService[GrowTree, GrownTree] = WorkerService(server, GROW_TREE)

    async def become_ready(self) -> Grower:
        """Load."""
        worker = Grower("tiny", TreeModel(tiny_llama(12, seed=1)), "sha", WorkerLimits())
        self.service.set_worker(worker)
        await self.server.set_serving(True)
        return worker


@pytest.fixture
async def role() -> AsyncIterator[Role]:
    """A role that listens."""
    role = Role(RpcServer(reflection=True))
    await role.server.start(HOST, 0)
    yield role
    await role.server.kill()


async def test_health_is_not_serving_until_the_model_is_there(role: Role) -> None:
    """NOT_SERVING and UNAVAILABLE while loading, SERVING and an answer afterwards."""
    channel = RpcChannel(f"{HOST}:{role.server.port}")
    assert not await channel.is_serving()
    with pytest.raises(RemoteError) as raised:
        await channel.call(GET_INFO, None)
    assert raised.value.reason is Reason.NOT_READY

    worker = await role.become_ready()

    assert await channel.is_serving()
    assert (await channel.call(GET_INFO, None)).model == "tiny"
    await channel.close()
    worker.device.stop()


async def test_health_answers_during_a_pass(role: Role) -> None:
    """A model that computes for long keeps nobody from asking after its health."""
    worker = await role.become_ready()
    released = asyncio.Event()
    loop = asyncio.get_running_loop()

    def long_pass() -> None:
        asyncio.run_coroutine_threadsafe(released.wait(), loop).result()

    passing = asyncio.create_task(worker.device.run(long_pass))
    channel = RpcChannel(f"{HOST}:{role.server.port}")

    assert await channel.is_serving()
    assert not passing.done()
    released.set()
    await passing
    await channel.close()
    worker.device.stop()


async def test_every_service_reports_its_own_health(role: Role) -> None:
    """Health is asked of the server as a whole or of one service; an unknown one is an error."""
    async with grpc.aio.insecure_channel(f"{HOST}:{role.server.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "sequoia.v1.DraftService", "sequoia.v1.WorkerService"):
            reply = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert reply.status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Check(health_pb2.HealthCheckRequest(service="unknown"))


async def test_reflection_lists_the_services(role: Role) -> None:
    """A tool that knows no protos can ask what is served."""
    async with grpc.aio.insecure_channel(f"{HOST}:{role.server.port}") as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        async for reply in stub.ServerReflectionInfo(iter([request])):
            names = {service.name for service in reply.list_services_response.service}
            assert {"sequoia.v1.DraftService", "grpc.health.v1.Health"} <= names


async def test_a_port_in_use_is_told_without_grpcs_hints(
    role: Role, capfd: pytest.CaptureFixture[str]
) -> None:
    """In one sentence; nothing else is written."""
    port = role.server.port
    with pytest.raises(OSError, match=f"^port {port} is in use; --port 0 takes a free one$"):
        await RpcServer().start(HOST, port)
    assert capfd.readouterr().err == ""


async def test_calls_to_the_wrong_address_are_told_so(role: Role) -> None:
    """That of another role, and one where nobody is."""
    wrong = RpcChannel(f"{HOST}:{role.server.port}")
    with pytest.raises(RemoteError, match=f"^{HOST}:{role.server.port} is no planner$") as raised:
        await wrong.call(REPLAN, None)
    assert raised.value.reason is Reason.INVALID_ARGUMENT
    with pytest.raises(RemoteError, match=f"{HOST}:{role.server.port} is no coordinator"):
        async for _ in wrong.stream(GENERATE, GenerationRequest(text="hello")):
            pass
    await wrong.close()
    empty = RpcChannel(f"{HOST}:1")
    with pytest.raises(RemoteError, match=f"^nobody answers at {HOST}:1$") as raised:
        await empty.call(REPLAN, None)
    assert raised.value.reason is Reason.WORKER_UNAVAILABLE
    await empty.close()


async def test_reflection_is_off_unless_asked_for() -> None:
    """Who has no protos is told nothing; health answers all the same."""
    server = RpcServer()
    async with grpc.aio.insecure_channel(f"{HOST}:{await server.start(HOST, 0)}") as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async for _ in stub.ServerReflectionInfo(iter([request])):
                pass
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    await server.kill()


async def test_a_defect_is_told_in_the_log_alone() -> None:
    """The caller learns its kind; what it says may hold paths or a prompt."""
    server = RpcServer()
    server.add_unary(REPLAN, _defective)
    channel = RpcChannel(f"{HOST}:{await server.start(HOST, 0)}")
    with capture_logs() as logs, pytest.raises(RemoteError) as raised:
        await channel.call(REPLAN, None)
    assert raised.value.reason is Reason.INTERNAL
    assert "KeyError" in raised.value.message
    assert "secret" not in raised.value.message
    assert "call failed" in [line["event"] for line in logs]
    await channel.close()
    await server.kill()


async def _defective(_request: None, _context: Context) -> Plan:
    raise KeyError("secret")


@pytest.mark.parametrize("least_ms", [50, 300_000])
async def test_a_caller_may_ask_whether_the_server_is_there_while_it_waits(
    monkeypatch: pytest.MonkeyPatch, least_ms: int
) -> None:
    """A connection on which nothing moves but pings is kept, where they are as rare as the server asks."""
    monkeypatch.setattr("sequoia.rpc.server.LEAST_PING_MS", least_ms)
    pings = {"grpc.keepalive_time_ms": 100, "grpc.http2.max_pings_without_data": 0}
    options = dict(_OPTIONS) | pings
    monkeypatch.setattr("sequoia.rpc.channel._OPTIONS", list(options.items()))
    server = RpcServer()
    server.add_unary(REPLAN, _slow)
    await server.start(HOST, 0)
    channel = RpcChannel(f"{HOST}:{server.port}")
    try:
        if least_ms == 50:
            assert await channel.call(REPLAN, None, timeout=10) == BUILT_IN_PLAN
        else:
            with pytest.raises(RemoteError, match="Too many pings"):
                await channel.call(REPLAN, None, timeout=10)
    finally:
        await channel.close()
        await server.kill()


async def _slow(_request: None, _context: Context) -> Plan:
    await asyncio.sleep(5)
    return BUILT_IN_PLAN
