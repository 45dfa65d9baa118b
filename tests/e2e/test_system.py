"""The system as people run it: processes, signals and the command line, with a tiny pair."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.tiny import byte_pair

SEQUOIA = [sys.executable, "-m", "sequoia"]
ROLES = ("target_service", "draft_service", "planner", "coordinator", "valkey")

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options for a tiny pair."""
    target, draft = byte_pair(tmp_path_factory.mktemp("pair"))
    return ["--target", str(target), "--draft", str(draft)]


def descendants(pid: int) -> dict[int, str]:
    """Processes below `pid` and their command lines."""
    parents: dict[int, int] = {}
    commands: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                commands[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
                parents[int(entry.name)] = int(fields[1])
            except OSError:
                continue
    below = {pid}
    while more := {p for p, parent in parents.items() if parent in below} - below:
        below |= more
    return {p: commands[p] for p in below - {pid}}


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@contextmanager
def running_system(pair: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`sequoia up`, and the address that it prints."""
    process = subprocess.Popen(
        [*SEQUOIA, "up", *pair, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout
        word, _, address = process.stdout.readline().strip().partition(" ")
        assert word == "ready"
        yield process, address
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)
        if process.stdout is not None:
            process.stdout.close()


def generate(*arguments: str) -> dict[str, object]:
    """What `sequoia generate --json` prints."""
    command = [*SEQUOIA, "generate", "--json", *arguments]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    answer: dict[str, object] = json.loads(output.stdout)
    return answer


def gone(pids: dict[int, str]) -> bool:
    """Whether none of these processes is left."""
    return not any(Path(f"/proc/{pid}/cmdline").exists() and _alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_up_serves_survives_losses_and_leaves_nothing_behind(pair: list[str]) -> None:
    """A system generates, loses its workers to kill -9, gives the same text, and ends cleanly."""
    with running_system(pair) as (process, address):
        arguments = [
            "--address",
            address,
            "--raw",
            "--seed",
            "7",
            "--max-new-tokens",
            "40",
            "hello",
        ]
        first = generate(*arguments)
        children = descendants(process.pid)
        for role in ROLES:
            assert any(role in command for command in children.values()), role

        for role in ("draft_service", "target_service"):
            os.kill(
                next(pid for pid, command in children.items() if role in command), signal.SIGKILL
            )
        again = generate(*arguments)
        alone = generate(*arguments, "--no-speculation")

        assert first["text"] == again["text"] == alone["text"]
        assert first["token_ids"] == alone["token_ids"]
        assert alone["tokens_per_step"] == 1.0
        children |= descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        until(lambda: gone(children))


def test_a_killed_parent_takes_its_children_along(pair: list[str]) -> None:
    """Even kill -9 of `sequoia up` leaves no role behind."""
    with running_system(pair) as (process, _):
        children = descendants(process.pid)
        assert len(children) >= len(ROLES)

        process.kill()

        until(lambda: gone(children))


def test_generate_starts_and_ends_a_system_of_its_own(pair: list[str]) -> None:
    """Without an address the command brings its own system; the answer has every promised key."""
    answer = generate(*pair, "--temperature", "0", "--max-new-tokens", "12", "hello")

    assert set(answer) == {
        "text",
        "token_ids",
        "finish_reason",
        "prompt_token_count",
        "completion_token_count",
        "step_count",
        "tokens_per_step",
        "seconds",
        "seconds_per_token",
    }
    assert len(str(answer["token_ids"]).split(",")) == answer["completion_token_count"]


def test_up_does_not_begin_where_its_port_is_in_use() -> None:
    """It is told before models are fetched and roles started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [*SEQUOIA, "up", "--target", "/no/such/model", "--port", str(port)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr == f"error: port {port} is in use; --port 0 takes a free one\n"


def test_a_system_that_a_command_starts_keeps_its_warnings_from_stdout(pair: list[str]) -> None:
    """A role that dies meanwhile is told on stderr: stdout is the command's own."""
    program = (
        "import os, signal, sys, time\n"
        "from sequoia.cli.session import quiet_system\n"
        "from sequoia.launcher import LaunchOptions\n"
        "with quiet_system(LaunchOptions(sys.argv[1], sys.argv[2], max_batch_size=1)) as system:\n"
        "    lost = system.role('planner').pid\n"
        "    os.kill(lost, signal.SIGKILL)\n"
        "    while system.role('planner').pid == lost:\n"
        "        time.sleep(0.05)\n"
    )
    command = [sys.executable, "-c", program, pair[1], pair[3]]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout == ""
    warning = next(line for line in ended.stderr.splitlines() if line.startswith("{"))
    found = json.loads(warning)
    assert found["event"] == "role ended, starting it again"
    assert (found["role"], found["process"]) == ("launcher", "planner")


@pytest.mark.parametrize(
    ("arguments", "variables", "status", "words"),
    [
        (["up", "--dtype", "float8"], {}, 2, ["--dtype"]),
        (["up", "--port", "70000"], {}, 2, ["--port"]),
        (["up", "--no-such-flag"], {}, 2, ["--no-such-flag"]),
        (["up"], {"SEQUOIA_PORT": "many"}, 2, ["SEQUOIA_PORT"]),
        (["up"], {"SEQUOIA_PROT": "1"}, 2, ["SEQUOIA_PROT"]),
        (["up", "--redis", "localhost"], {}, 2, ["--redis", "redis://"]),
        (["up", "--target", "/no/such/model"], {}, 1, ["/no/such/model"]),
        (["generate", "--temperature", "nan", "hi"], {}, 2, ["temperature", "[0, 100]"]),
        (["generate", "--address", "nowhere", "hi"], {}, 2, ["--address", "HOST:PORT"]),
        (["generate", "--address", "127.0.0.1:9", "hi"], {}, 1, ["nobody answers at 127.0.0.1:9"]),
    ],
)
def test_a_wrong_word_is_named(
    arguments: list[str], variables: dict[str, str], status: int, words: list[str]
) -> None:
    """Wrong flags and variables end the command with status 2, missing things with 1, and a name."""
    environment = {**os.environ, **variables, "COLUMNS": "200"}
    ended = subprocess.run(
        [*SEQUOIA, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )

    assert ended.returncode == status, ended.stderr
    for word in words:
        assert word in ended.stderr
    assert "Traceback" not in ended.stderr


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    """A folder with nothing but a pickle is not loaded, and the message says what is."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")

    ended = subprocess.run(
        [*SEQUOIA, "up", "--target", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert ended.returncode == 1
    assert "safetensors" in ended.stderr
