from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from coordinator.clients import Clients, ClientsError, parse_clients, read_clients
from coordinator.quota import ClientLimits
from sequoia.cli import app
from sequoia.errors import UnauthenticatedError

TOKENS = {"alice": "sequoia_alice-token", "bob": "sequoia_bob-token"}
HASHES = {name: hashlib.sha256(token.encode()).hexdigest() for name, token in TOKENS.items()}


class Context:
    """Stands in for a call: its metadata."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self._metadata = metadata

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata


def call(*values: str) -> Any:
    """A call with such authorizations."""
    return Context(("x-request-id", "1"), *(("authorization", value) for value in values))


def written(path: Path, *names: str, extra: str = "") -> Path:
    """A file of clients."""
    lines = [f'[clients.{name}]\ntoken_sha256 = "{HASHES[name]}"\n{extra}' for name in names]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with Alice and Bob."""
    return written(tmp_path / "clients.toml", "alice", "bob")


def test_a_token_is_its_clients(path: Path) -> None:
    """The scheme's case does not matter; the token's does."""
    clients = Clients(path)
    for name, token in TOKENS.items():
        assert clients.authenticate(call(f"Bearer {token}")).name == name
        assert clients.authenticate(call(f"bearer {token}")).name == name
    with pytest.raises(UnauthenticatedError):
        clients.authenticate(call(f"Bearer {TOKENS['bob'].upper()}"))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ((), "carries no token"),
        (("Bearer sequoia_other",), "no client has this token"),
        ((f"Bearer {HASHES['alice']}",), "no client has this token"),
        ((f"Basic {TOKENS['alice']}",), "not of the form"),
        ((TOKENS["alice"],), "not of the form"),
        (("Bearer ",), "not of the form"),
        (("",), "not of the form"),
        ((f"Bearer {TOKENS['alice']}", f"Bearer {TOKENS['bob']}"), "more than one"),
    ],
)
def test_a_refusal_says_what_is_missing_and_not_what_was_sent(
    path: Path, values: tuple[str, ...], problem: str
) -> None:
    """Neither in its sentence nor in its facts."""
    with pytest.raises(UnauthenticatedError, match=problem) as refused:
        Clients(path).authenticate(call(*values))
    told = f"{refused.value} {refused.value.metadata}"
    for secret in (*TOKENS.values(), *HASHES.values(), "sequoia_other"):
        assert secret not in told


def test_every_client_is_compared_with(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In constant time, also after the right one was found: the time says nothing of which it was."""
    compared: list[str] = []

    def compare(given: str, stored: str) -> bool:
        compared.append(stored)
        return given == stored

    monkeypatch.setattr("coordinator.clients.hmac.compare_digest", compare)
    Clients(path).authenticate(call(f"Bearer {TOKENS['alice']}"))
    assert compared == list(HASHES.values())


def test_a_changed_file_is_in_force_at_the_next_call(path: Path) -> None:
    """Without a restart; who stays keeps what it has used."""
    clients = Clients(path)
    alice = clients.authenticate(call(f"Bearer {TOKENS['alice']}"))

    written(path, "alice", extra="concurrency = 2\n")

    with pytest.raises(UnauthenticatedError):
        clients.authenticate(call(f"Bearer {TOKENS['bob']}"))
    assert clients.authenticate(call(f"Bearer {TOKENS['alice']}")) is alice
    assert alice.limits == ClientLimits(concurrency=2)


@pytest.mark.parametrize("damage", ["bad", "gone"])
def test_a_damaged_file_changes_nothing_and_is_logged_once(path: Path, damage: str) -> None:
    """Until it is good again."""
    clients = Clients(path)
    if damage == "bad":
        path.write_text("[clients.alice]\n")
    else:
        path.unlink()

    with capture_logs() as logs:
        for _ in range(3):
            assert clients.authenticate(call(f"Bearer {TOKENS['bob']}")).name == "bob"
    assert [line["event"] for line in logs] == ["clients kept as they were"]

    written(path, "alice")
    with pytest.raises(UnauthenticatedError):
        clients.authenticate(call(f"Bearer {TOKENS['bob']}"))


GOOD = f'token_sha256 = "{HASHES["alice"]}"'


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "clients: there are none"),
        ("[clients]", "clients: there are none"),
        ("clients = 3", "clients: there are none"),
        ("[clients.a", "not TOML"),
        (b"\xff", "not TOML"),
        ("x = 1", "x: unknown; known: clients"),
        ("[clients]\na = 1", "clients.a: not a table"),
        ("[clients.a]", "clients.a.token_sha256: not a SHA-256"),
        (f'[clients.a]\ntoken_sha256 = "{TOKENS["alice"]}"', "clients.a.token_sha256: not a SHA"),
        (f'[clients.a]\ntoken_sha256 = "{HASHES["alice"].upper()}"', "clients.a.token_sha256"),
        (f"[clients.a]\n{GOOD}\ntokens = 5", "clients.a.tokens: unknown; known: token_sha256, con"),
        (f"[clients.a]\n{GOOD}\nconcurrency = 0", "clients.a.concurrency: not a whole number"),
        (f"[clients.a]\n{GOOD}\nconcurrency = true", "clients.a.concurrency"),
        (f"[clients.a]\n{GOOD}\nprompt_tokens = 1.5", "clients.a.prompt_tokens"),
        (f'[clients.a]\n{GOOD}\ntokens_per_minute = "9"', "clients.a.tokens_per_minute"),
        (f"[clients.a]\n{GOOD}\ntokens_per_minute = {2**54}", "clients.a.tokens_per_minute"),
        (f'[clients."a b"]\n{GOOD}', "clients.a b: a name holds"),
        (f"[clients.a]\n{GOOD}\n[clients.b]\n{GOOD}", "clients: two have the same token"),
    ],
)
def test_a_bad_file_is_refused_by_its_field(text: str | bytes, field: str) -> None:
    """And no hash or token stands in the message."""
    with pytest.raises(ClientsError, match=f"^{re.escape(field)}") as refused:
        parse_clients(text.encode() if isinstance(text, str) else text)
    for secret in (*TOKENS.values(), *HASHES.values()):
        assert secret not in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """With what the system says of it; likewise one that is far too long."""
    with pytest.raises(ClientsError, match=r"none\.toml: No such file"):
        Clients(tmp_path / "none.toml")
    (tmp_path / "long.toml").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(ClientsError, match=r"long\.toml: more than 1048576 bytes"):
        read_clients(tmp_path / "long.toml")


@pytest.mark.parametrize("name", ["alice", "team.a-1"])
def test_a_new_token_comes_with_the_lines_that_let_it_in(tmp_path: Path, name: str) -> None:
    """The file holds the hash alone, and no two tokens are the same."""
    outputs = [CliRunner().invoke(app, ["token", name]).stdout for _ in range(2)]
    tokens = [re.findall(r"sequoia_[\w-]{43}", output) for output in outputs]
    assert [len(found) for found in tokens] == [1, 1]
    assert tokens[0] != tokens[1]
    (token,) = tokens[0]
    lines = outputs[0][outputs[0].index("[clients.") :]
    assert token not in lines
    path = tmp_path / "clients.toml"
    path.write_text(lines)
    assert Clients(path).authenticate(call(f"Bearer {token}")).name == name


def test_a_name_that_no_client_can_have_is_refused() -> None:
    """Before a token is made for it."""
    result = CliRunner().invoke(app, ["token", "a b"])
    assert result.exit_code == 2
    assert "NAME: 'a b'" in result.stderr
