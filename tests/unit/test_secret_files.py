from __future__ import annotations

from pathlib import Path

import pytest
import redis

from sequoia.secret_files import SECRET_BYTES_LIMIT, SecretError, read_secret, with_password


@pytest.mark.parametrize("text", ["s3cret", "s3cret\n", "s3cret\r\n"])
def test_a_secret_is_what_stands_in_its_file(tmp_path: Path, text: str) -> None:
    """Less the line break of the editor that wrote it."""
    (path := tmp_path / "secret").write_text(text, newline="")
    assert read_secret(path) == "s3cret"


def test_spaces_belong_to_a_secret(tmp_path: Path) -> None:
    """Only one line break is taken away."""
    (path := tmp_path / "secret").write_text(" a b \n")
    assert read_secret(path) == " a b "


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"one\ntwo\n", "more than one line"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"x" * (SECRET_BYTES_LIMIT + 1), f"longer than {SECRET_BYTES_LIMIT}"),
    ],
)
def test_what_cannot_be_a_secret_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    """The message names the file and the reason, never the content."""
    (path := tmp_path / "secret").write_bytes(content)
    with pytest.raises(SecretError, match=why) as caught:
        read_secret(path)
    assert str(path) in str(caught.value)
    assert "one" not in str(caught.value).replace("more than one", "")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A folder as well."""
    with pytest.raises(SecretError, match="absent: No such file"):
        read_secret(tmp_path / "absent")
    with pytest.raises(SecretError, match="directory"):
        read_secret(tmp_path)


@pytest.mark.parametrize(
    "url", ["redis://host:6379/2", "rediss://host", "redis://user@host:1", "unix:///run/redis?db=1"]
)
@pytest.mark.parametrize("password", ["plain", "a/b@c:d?e#f %41 é"])
def test_redis_reads_the_password_from_the_url(url: str, password: str) -> None:
    """Whatever characters it holds; the rest of the URL stays what it was."""
    before = redis.ConnectionPool.from_url(url).connection_kwargs
    after = redis.ConnectionPool.from_url(with_password(url, password)).connection_kwargs
    assert after["password"] == password
    assert after.get("username") == before.get("username")
    for name in ("host", "port", "db", "path"):
        assert after.get(name) == before.get(name)


def test_two_passwords_are_one_too_many() -> None:
    """Which one is meant cannot be known, and neither is shown."""
    with pytest.raises(SecretError, match="a password already") as caught:
        with_password("redis://:first@host", "second")
    assert "first" not in str(caught.value)
