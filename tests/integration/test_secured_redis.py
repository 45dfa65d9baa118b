"""Redis with a password and behind TLS, as plans and counts reach it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import redis
from redis.exceptions import RedisError
from structlog.testing import capture_logs

from sequoia.certificates import write_certificates
from sequoia.embedded_valkey import EmbeddedValkey
from sequoia.plan_store import PlanStore
from sequoia.plans import PlannedTree
from sequoia.redis_url import with_password
from sequoia.tasks import end_tasks
from tests.stack import HOST

SECRET = "hunter2/+@"  # noqa: S105 what must not be shown
TREES = (PlannedTree("greedy", 1, (-1, 0), 1.6, 0.01, 0.02),)


@pytest.fixture
def valkey() -> Iterator[EmbeddedValkey]:
    """A server that asks for a password."""
    with EmbeddedValkey() as server:
        with redis.Redis.from_url(server.url) as client:
            client.config_set("requirepass", SECRET)
        yield server


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    """Where the password stands."""
    path = tmp_path / "password"
    path.write_text(f"{SECRET}\n")
    return path


async def is_served(url: str) -> bool:
    """Whether plans can be written and read back.

    Raises:
        RedisError: the server does not let us.
    """
    store = PlanStore(url)
    try:
        plan = await store.publish(TREES)
        return await store.read() == plan
    finally:
        await store.close()


async def test_a_password_from_a_file_opens_redis(
    valkey: EmbeddedValkey, password_file: Path
) -> None:
    """And a URL without one does not."""
    assert await is_served(with_password(valkey.url, password_file))
    with pytest.raises(RedisError):
        await is_served(valkey.url)


async def test_a_failing_connection_shows_no_password(
    valkey: EmbeddedValkey, password_file: Path
) -> None:
    """Neither its error, nor the line in the log of whoever waits for it."""
    wrong = with_password(valkey.url.replace(HOST, f"nobody@{HOST}"), password_file)
    nowhere = with_password(f"redis://{HOST}:9/0", password_file)
    for url in (wrong, nowhere):
        with pytest.raises(RedisError) as refused:
            await is_served(url)
        assert "hunter2" not in f"{refused.value!r} {refused.value}"
        with capture_logs() as logs:
            await _follow_for_a_moment(url)
        assert [line["event"] for line in logs] == ["redis unavailable"]
        assert "hunter2" not in str(logs)


async def _follow_for_a_moment(url: str) -> None:
    store = PlanStore(url)

    async def follow() -> None:
        async for _ in store.plans():
            pass

    following = asyncio.create_task(follow())
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.shield(following), 1.0)
    await end_tasks([following])
    await store.close()


@asynccontextmanager
async def tls_before(port: int, folder: Path) -> AsyncIterator[int]:
    """A port that speaks TLS and hands everything on to another one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "target.crt", folder / "target.key")

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(2**16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, before = await asyncio.open_connection(HOST, port)
        await asyncio.gather(pump(reader, before), pump(behind, writer))

    server = await asyncio.start_server(relay, HOST, 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_redis_is_reached_through_tls(
    valkey: EmbeddedValkey,
    password_file: Path,
    tmp_path: Path,
) -> None:
    """With the authority named in the URL; an authority that did not sign is not believed."""
    write_certificates(tmp_path, [], 30)
    async with tls_before(valkey.port, tmp_path) as port:
        url = with_password(f"rediss://{HOST}:{port}/0", password_file)
        assert await is_served(f"{url}?ssl_ca_certs={tmp_path / 'authority.crt'}")
        for other in (f"?ssl_ca_certs={tmp_path / 'client-authority.crt'}", ""):
            with pytest.raises(RedisError) as refused:
                await is_served(url + other)
            assert "hunter2" not in str(refused.value)
