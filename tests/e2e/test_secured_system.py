"""`sequoia up` with everything turned on: TLS, clients' certificates, tokens, a password for Redis."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from sequoia.certificates import write_certificates
from sequoia.embedded_valkey import EmbeddedValkey
from tests.e2e.test_system import SEQUOIA, descendants
from tests.tiny import byte_pair

PASSWORD = "hunter2-of-redis"  # noqa: S105 what must not be shown
LIMITS = "prompt_tokens = 20\n"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates, a token, a file of clients, a password, a tiny pair."""
    folder = tmp_path_factory.mktemp("secured")
    write_certificates(folder, [], 30)
    made = run("token", "alice").stdout
    (folder / "token").write_text(re.findall(r"sequoia_\S+", made)[0])
    (folder / "clients.toml").write_text(made[made.index("[clients.") :] + LIMITS)
    (folder / "password").write_text(PASSWORD)
    byte_pair(folder)
    return folder


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of ours, to its end."""
    return ended([*SEQUOIA, *arguments])


def health(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A role's health, as containers ask for it."""
    return ended([sys.executable, "-m", "sequoia.rpc.health", *arguments])


def ended(command: list[str]) -> subprocess.CompletedProcess[str]:
    """A process, to its end."""
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def identity(folder: Path, name: str) -> list[str]:
    """Flags of somebody with a certificate."""
    files = {"certificate": f"{name}.crt", "key": f"{name}.key", "authority": "authority.crt"}
    return [word for key, file in files.items() for word in (f"--tls-{key}", str(folder / file))]


class System:
    """A running system, and all that its roles have written."""

    def __init__(self, process: subprocess.Popen[str], address: str, log: Path) -> None:
        self.process, self.address, self.log = process, address, log

    def generate(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`sequoia generate` at its address."""
        wanted = ["--json", "--raw", "--max-new-tokens", "5", "hello"]
        return run("generate", "--address", self.address, *arguments, *wanted)


@pytest.fixture(scope="module")
def system(folder: Path) -> Iterator[System]:
    """Everything turned on."""
    with EmbeddedValkey() as valkey, (folder / "log").open("w") as log:
        with redis.Redis.from_url(valkey.url) as client:
            client.config_set("requirepass", PASSWORD)
        models = ["--target", str(folder / "target"), "--draft", str(folder / "draft")]
        files = {
            "--redis": valkey.url,
            "--redis-password-file": folder / "password",
            "--client-authority": folder / "client-authority.crt",
            "--clients": folder / "clients.toml",
        }
        flags = [word for name, value in files.items() for word in (name, str(value))]
        process = subprocess.Popen(
            [
                *(*SEQUOIA, "up", *models, "--port", "0", "--log-level", "debug"),
                *(*flags, *identity(folder, "coordinator")),
            ],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            assert process.stdout
            word, _, address = process.stdout.readline().strip().partition(" ")
            assert word == "ready"
            yield System(process, address, folder / "log")
        finally:
            process.terminate()
            process.wait(60)
            if process.stdout is not None:
                process.stdout.close()


def test_a_client_with_certificate_and_token_is_served(system: System, folder: Path) -> None:
    """From the command line, as anyone would."""
    done = system.generate(*identity(folder, "client"), "--token-file", str(folder / "token"))

    assert done.returncode == 0, done.stderr
    assert 1 <= json.loads(done.stdout)["completion_token_count"] <= 5


def test_a_client_without_either_is_not(system: System, folder: Path) -> None:
    """Nor over its prompt limit; each refusal says what is missing."""
    token = ["--token-file", str(folder / "token")]
    refusals = {
        "UNAUTHENTICATED": system.generate(*identity(folder, "client")),
        "WORKER_UNAVAILABLE": system.generate(
            "--tls-authority", str(folder / "authority.crt"), *token
        ),
        "PROMPT_TOO_LONG": run(
            *("generate", "--address", system.address, *identity(folder, "client"), *token),
            *("--raw", "x" * 21),
        ),
    }
    for reason, done in refusals.items():
        assert done.returncode != 0
        assert done.stderr.startswith(f"error: {reason}: "), done.stderr


def test_health_is_asked_through_tls(system: System, folder: Path) -> None:
    """By whom the role lets in; others learn nothing."""
    asked = health(system.address, *identity(folder, "client"))
    assert (asked.returncode, asked.stdout) == (0, "serving\n")
    unknown = health(system.address)
    assert (unknown.returncode, unknown.stdout) == (1, "not serving\n")
    wrong = health(system.address, "--tls-authority", "/none")
    assert wrong.returncode == 2
    assert "--tls-authority: " in wrong.stderr


def test_no_secret_is_shown(system: System, folder: Path) -> None:
    """In no line of any role's log, and in no process list."""
    token = ["--token-file", str(folder / "token")]
    assert system.generate(*identity(folder, "client"), *token).returncode == 0
    system.generate("--tls-authority", str(folder / "authority.crt"))
    secrets = [PASSWORD, (folder / "token").read_text()]
    secrets += re.findall(r"[0-9a-f]{64}", (folder / "clients.toml").read_text())
    secrets += [path.read_text().splitlines()[1] for path in folder.glob("*.key")]
    log = system.log.read_text()
    commands = descendants(system.process.pid)

    assert "generation finished" in log
    assert '"client": "alice"' in log
    assert len(commands) >= 4
    for secret in secrets:
        assert secret not in log
        assert not any(secret in command for command in commands.values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "--address", "10.0.0.1:1", "--token-file", "TOKEN", "hi"], "another machine"),
        (["generate", "--address", "127.0.0.1:1", "--token-file", "/none", "hi"], "--token-file"),
        (["up", "--clients", "/none", "--tls-key", "/none"], "--tls-certificate: is missing"),
    ],
)
def test_a_wrong_file_is_named(folder: Path, arguments: list[str], words: str) -> None:
    """With status 2, and no traceback."""
    filled = [str(folder / "token") if word == "TOKEN" else word for word in arguments]
    done = run(*filled)

    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert sys.executable not in done.stderr
