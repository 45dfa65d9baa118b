"""How long a coordinator waits for a worker, by what the worker says of its passes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator.workers import Compatibility, Worker
from sequoia.messages import PASSES_PER_CALL, WorkerInfo
from sequoia.rpc.codec import GET_INFO
from sequoia.rpc.server import Context, RpcServer

INFO = WorkerInfo("m", "sha", 12, 512, "float32", "cpu", 1, 1, 0, 0, 64, "one")


@pytest.mark.parametrize("pass_seconds", [0.0, 9.0])
async def test_calls_to_a_worker_with_long_passes_get_the_time(pass_seconds: float) -> None:
    """So many passes may stand before a call, on top of what the operator gives."""
    info = replace(INFO, placement="offload", pass_seconds=pass_seconds)

    async def answer(_request: None, _context: Context) -> WorkerInfo:
        return info

    server = RpcServer()
    server.add_unary(GET_INFO, answer)
    worker = Worker("target", f"127.0.0.1:{await server.start('127.0.0.1', 0)}", 30.0)
    await server.set_serving(True)
    found = await worker.find(Compatibility("sha"))
    await worker.close()
    await server.kill()

    assert found == info
    assert worker.call_seconds == pytest.approx(30.0 + PASSES_PER_CALL * pass_seconds)
