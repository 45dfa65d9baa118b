"""A Redis that wants a password, asked with the one from a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.exceptions import AuthenticationError

from sequoia import config
from sequoia.embedded_valkey import EmbeddedValkey
from sequoia.plans import PlannedTree, PlanStore

PASSWORD = "a/b@c:d ?#%41"  # noqa: S105 of a server that lives as long as the test
TREES = (PlannedTree("greedy", 1, (-1, 0), 1.6, 0.01, 0.02),)


@pytest.fixture
def guarded_url() -> Iterator[str]:
    """Where a server is that answers to the password alone."""
    with EmbeddedValkey() as server, redis.Redis(port=server.port) as client:
        client.config_set("requirepass", PASSWORD)
        yield server.url


async def test_plans_go_through_a_guarded_redis(guarded_url: str, tmp_path: Path) -> None:
    """What is published with the password is read with it."""
    (file := tmp_path / "password").write_text(f"{PASSWORD}\n")
    url = config.redis_url(guarded_url, file)
    assert url is not None
    store = PlanStore(url)
    try:
        plan = await store.publish(TREES)
        assert await store.read() == plan
    finally:
        await store.close()


async def test_without_the_password_nothing_is_read(guarded_url: str) -> None:
    """The server is really guarded."""
    store = PlanStore(guarded_url)
    try:
        with pytest.raises(AuthenticationError):
            await store.read()
    finally:
        await store.close()
