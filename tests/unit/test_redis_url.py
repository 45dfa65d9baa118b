"""URLs of Redis and files of secrets: what is refused, and that no refusal shows a password."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis.asyncio import Redis

from coordinator.service import CoordinatorSettings
from planner.settings import PlannerSettings
from sequoia.launcher import LaunchOptions
from sequoia.redis_url import RedisUrlError, check_redis_url, with_password
from sequoia.secret_file import LIMIT_BYTES, SecretFileError, read_secret

SECRET = "hunter2"  # noqa: S105 what must not be shown
SPECIAL = "p@ss/w:rd?#%"


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://:p%2Fw@localhost:6379/1",
        "rediss://user:pw@[::1]:6380/0",
        "rediss://localhost?ssl_cert_reqs=required",
        "unix:///run/redis.sock?db=2",
    ],
)
def test_urls_that_redis_understands_are_taken(url: str) -> None:
    """With and without TLS, passwords, databases; over sockets too."""
    check_redis_url(url)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (f":{SECRET}@localhost:6379", "does not begin with redis://, rediss:// or unix://"),
        (f"https://:{SECRET}@localhost", "does not begin with"),
        (f"redis://:{SECRET}/x@localhost", "write special characters of a password as %XX"),
        (f"redis://:{SECRET}@localhost:99999", "is not a URL"),
        (f"redis://:{SECRET}@", "names no host"),
        (f"redis://:{SECRET}@localhost:0", "port 0"),
        (f"unix://:{SECRET}@", "names no socket"),
        (f"redis://localhost?pasword={SECRET}", "a parameter"),
        (f"redis://:{SECRET}@localhost?socket_timeout=soon", "a parameter"),
        (f"rediss://:{SECRET}@localhost?ssl_cert_reqs=maybe", "a parameter"),
        (f"rediss://:{SECRET}@h?ssl_ca_certs=/no/such", "ssl_ca_certs: there is no file /no/such"),
    ],
)
def test_a_bad_url_is_refused_without_its_password(url: str, problem: str) -> None:
    """Nor is the password in the chain of errors behind the refusal."""
    with pytest.raises(RedisUrlError, match=problem) as refused:
        check_redis_url(url)
    error: BaseException | None = refused.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


@pytest.mark.parametrize(
    ("url", "user"),
    [
        ("redis://localhost:6380/1", None),
        ("redis://alice@localhost:6380/1", "alice"),
        ("rediss://localhost:6380/1?ssl_check_hostname=true", None),
    ],
)
def test_a_password_comes_from_a_file(tmp_path: Path, url: str, user: str | None) -> None:
    """Whatever characters it holds; white space around it is no part of it."""
    path = tmp_path / "password"
    path.write_text(f"{SPECIAL}\n")

    given = Redis.from_url(with_password(url, path)).connection_pool.connection_kwargs

    assert given["password"] == SPECIAL
    assert (given.get("username") or None) == user
    assert (given["host"], given["port"], given["db"]) == ("localhost", 6380, 1)


@pytest.mark.parametrize("url", ["redis://:x@localhost", "redis://localhost?password=x"])
def test_two_passwords_are_refused(tmp_path: Path, url: str) -> None:
    """One of them would be ignored."""
    (tmp_path / "password").write_text("y")
    with pytest.raises(RedisUrlError, match="holds a password as well"):
        with_password(url, tmp_path / "password")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"two words", "printable ASCII"),
        (b"caf\xc3\xa9", "printable ASCII"),
        (b"a\x00b", "printable ASCII"),
        (b"x" * (LIMIT_BYTES + 1), "more than 4096 bytes"),
        (None, "No such file"),
    ],
)
def test_a_file_without_a_secret_is_named(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    """With what is wrong, not with what it holds."""
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SecretFileError, match=rf"secret: .*{problem}") as refused:
        read_secret(path)
    assert "two words" not in str(refused.value)


def test_settings_do_not_show_their_url() -> None:
    """Whoever logs them shows no password."""
    url = f"redis://:{SECRET}@localhost"
    shown = [
        repr(CoordinatorSettings(["a:1"], [], url)),
        repr(PlannerSettings(["a:1"], ["b:1"], url)),
        repr(LaunchOptions("target", redis_url=url)),
    ]
    assert not any(SECRET in text for text in shown)
