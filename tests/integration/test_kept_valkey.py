"""A Valkey server that is looked after."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry
from structlog.testing import capture_logs

from sequoia import kept_valkey
from sequoia.embedded_valkey import EmbeddedValkey, EmbeddedValkeyError
from sequoia.kept_valkey import KeptValkey

PATIENT = Retry(ConstantBackoff(0.05), 400)


def test_a_killed_server_comes_back_on_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients go on with the address that they have; what was stored is gone."""
    monkeypatch.setattr(kept_valkey, "RESTART_SECONDS", 0.05)
    kept = KeptValkey()
    kept.start()
    try:
        with redis.Redis.from_url(kept.url, retry=PATIENT) as client, capture_logs() as lines:
            client.set("key", "value")
            killed, url = kept.pid, kept.url
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
            client.connection_pool.disconnect()

            assert client.get("key") is None
            assert client.info("server")["process_id"] != killed
            assert kept.url == url
        assert lines[0]["event"] == "Valkey ended, starting it again"
    finally:
        kept.stop()
    assert kept.pid is None
    kept.stop()


def test_the_server_outlives_the_thread_that_asked_for_it() -> None:
    """Linux ends a child with the thread that started it; that is the keeper, not the caller."""
    kept = KeptValkey()
    caller = threading.Thread(target=kept.start)
    caller.start()
    caller.join()
    try:
        with redis.Redis.from_url(kept.url) as client:
            assert client.ping()
    finally:
        kept.stop()


def test_a_server_that_does_not_start_is_told_to_the_caller(tmp_path: Path) -> None:
    """What the server said reaches whoever asked for it, and to stop it then is harmless."""
    binary = tmp_path / "valkey-server"
    binary.write_text("#!/bin/sh\necho 'cannot run here'\nexit 1\n")
    binary.chmod(0o755)
    kept = KeptValkey(EmbeddedValkey(binary=binary))
    with pytest.raises(EmbeddedValkeyError, match="cannot run here"):
        kept.start()
    kept.stop()
