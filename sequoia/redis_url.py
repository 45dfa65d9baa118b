"""URLs of Redis: checked before use, and with a password that stands in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit, urlunsplit

from sequoia.secret_file import read_secret

SCHEMES = ("redis://", "rediss://", "unix://")
FILES = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})


class RedisUrlError(ValueError):
    """A URL that Redis cannot be reached by; the message never repeats it, for its password's sake."""


def check_redis_url(url: str) -> None:
    """Check what can be checked without a connection.

    Raises:
        RedisUrlError: another scheme, a host, port or parameter that cannot be read, or a file named
            there that is none.
    """
    if not url.startswith(SCHEMES):
        raise RedisUrlError("does not begin with redis://, rediss:// or unix://")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # The cause would show what it took for a port: part of a password, mostly.
        raise RedisUrlError("is not a URL; write special characters of a password as %XX") from None
    if parts.scheme == "unix":
        if not parts.path:
            raise RedisUrlError("names no socket")
    elif not parts.hostname or port == 0:
        raise RedisUrlError("names no host, or port 0")
    _check_parameters(url)


def _check_parameters(url: str) -> None:
    from redis.asyncio import Redis
    from redis.exceptions import RedisError

    try:
        pool: Any = Redis.from_url(url).connection_pool
        pool.make_connection()
    except (ValueError, TypeError, RedisError):
        raise RedisUrlError(
            "has a parameter, or a value of one, that Redis does not know"
        ) from None
    for name, values in parse_qs(urlsplit(url).query).items():
        if name in FILES and not Path(values[-1]).is_file():
            raise RedisUrlError(f"{name}: there is no file {values[-1]}")


def with_password(url: str, path: Path) -> str:
    """The URL with the password that a file holds.

    Raises:
        RedisUrlError: the URL of --redis holds a password as well.
        SecretFileError: the file holds none.
    """
    parts = urlsplit(url)
    if parts.password is not None or "password=" in parts.query:
        raise RedisUrlError("of --redis holds a password as well")
    user, at, place = parts.netloc.rpartition("@")
    password = quote(read_secret(path), safe="")
    return urlunsplit(parts._replace(netloc=f"{user if at else ''}:{password}@{place}"))
