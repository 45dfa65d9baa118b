"""`python -m sequoia.rpc.health`, as containers ask it."""

from __future__ import annotations

import asyncio
import sys

import pytest

from sequoia.rpc.server import RpcServer


async def ask(*arguments: str) -> tuple[int, str]:
    """Status and output of the command."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sequoia.rpc.health", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_health_follows_the_role() -> None:
    """Listening is not serving; 0 from the moment that the role can do its work, 1 when it is gone."""
    server = RpcServer()
    address = f"localhost:{await server.start('127.0.0.1', 0)}"
    assert await ask(address) == (1, "not serving\n")

    await server.set_serving(True)
    assert await ask(address) == (0, "serving\n")

    await server.stop()
    assert await ask(address, "--seconds", "0.5") == (1, "not serving\n")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["localhost"], "HOST:PORT"),
        (["localhost:70000"], "70000"),
        ([], "HOST:PORT"),
        (["localhost:1", "--seconds", "0"], "--seconds"),
    ],
)
async def test_a_wrong_call_is_no_answer(arguments: list[str], named: str) -> None:
    """Status 2, and what is wrong."""
    status, output = await ask(*arguments)
    assert status == 2
    assert named in output
    assert "Traceback" not in output
