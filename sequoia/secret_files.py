"""Secrets come in files, which containers mount and which no process list shows."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

SECRET_BYTES_LIMIT = 4096


class SecretError(ValueError):
    """A secret that cannot be used; the message names the file, and never what is in it."""


def read_secret(path: Path) -> str:
    """The secret in a file, less the line break that an editor puts behind it.

    Raises:
        SecretError: the file cannot be read, is empty, too long, or holds several lines.
    """
    try:
        with path.open("rb") as file:
            text = file.read(SECRET_BYTES_LIMIT + 1)
        secret = text.decode().removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise SecretError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SecretError(f"{path}: is not UTF-8") from error
    if len(text) > SECRET_BYTES_LIMIT:
        raise SecretError(f"{path}: is longer than {SECRET_BYTES_LIMIT} bytes")
    if not secret:
        raise SecretError(f"{path}: is empty")
    if len(secret.splitlines()) > 1:
        raise SecretError(f"{path}: holds more than one line")
    return secret


def with_password(url: str, password: str) -> str:
    """A URL of Redis with a password in it.

    Raises:
        SecretError: it has one already.
    """
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if ":" in user:
        raise SecretError("the URL of Redis holds a password already")
    netloc = f"{user}:{quote(password, safe='')}@{host if at else parts.netloc}"
    return urlunsplit(parts._replace(netloc=netloc))
