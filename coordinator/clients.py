"""Who may call `Generate`: clients by token, from a file that is read again when it changes.

    [clients.alice]
    token_sha256 = "…"          # as `sequoia token alice` prints it
    concurrency = 4             # the rest is optional: no limit without it
    tokens_per_minute = 60000
    prompt_tokens = 2048

A token has 256 random bits, so its plain SHA-256 can neither be guessed nor looked up.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from coordinator.quota import Client, ClientLimits
from sequoia.errors import UnauthenticatedError
from sequoia.file_signature import file_signature
from sequoia.rpc.server import AUTHORIZATION_KEY, Context

log = structlog.get_logger(__name__)

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
SHA256 = re.compile(r"[0-9a-f]{64}")
SCHEME = "bearer"
FILE_LIMIT_BYTES = 2**20
LIMIT = 2**53
LIMIT_NAMES = tuple(ClientLimits.__dataclass_fields__)


class ClientsError(ValueError):
    """A file of clients that cannot be used; the message names file and field, never a hash."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the file says of one client."""

    token_sha256: str
    limits: ClientLimits


class Clients:
    """The clients of a file.

    Args:
        path: of the file.
        clock: seconds, never going back.

    Raises:
        ClientsError: the file cannot be read, or is not as described above.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._seen = file_signature(path)
        self._hashes: dict[str, str] = {}  # by name
        self._clients: dict[str, Client] = {}
        self._take(read_clients(path))

    def authenticate(self, context: Context) -> Client:
        """The client whose token a call carries.

        Raises:
            UnauthenticatedError: it carries none, or an unknown one.
        """
        self._read_again()
        digest = hashlib.sha256(_token(context)).hexdigest()
        found: Client | None = None
        for name, stored in self._hashes.items():  # all of them: the time says nothing of which
            if hmac.compare_digest(digest, stored):
                found = self._clients[name]
        if found is None:
            raise UnauthenticatedError(
                "authorization: no client has this token", field=AUTHORIZATION_KEY
            )
        return found

    def _read_again(self) -> None:
        signature = file_signature(self._path)
        if signature == self._seen:
            return
        self._seen = signature
        try:
            self._take(read_clients(self._path))
        except ClientsError as error:
            log.error("clients kept as they were", error=str(error))
        else:
            log.info("clients read again", clients=len(self._clients))

    def _take(self, entries: Mapping[str, Entry]) -> None:
        """Put a file in force; a client that stays keeps what it has used."""
        clients = {}
        for name, entry in entries.items():
            client = self._clients.get(name) or Client(name, entry.limits, self._clock)
            client.set_limits(entry.limits)
            clients[name] = client
        self._clients = clients
        self._hashes = {name: entry.token_sha256 for name, entry in entries.items()}


def _token(context: Context) -> bytes:
    """The token in a call's metadata.

    Raises:
        UnauthenticatedError: saying what is missing, not what was sent.
    """
    sent = [value for key, value in context.invocation_metadata() or () if key == AUTHORIZATION_KEY]
    if not sent:
        problem = "the call carries no token; send `Bearer TOKEN`"
    elif len(sent) > 1:
        problem = "the call carries more than one"
    else:
        scheme, _, token = str(sent[0]).partition(" ")
        if scheme.lower() == SCHEME and token.strip():
            return token.strip().encode()
        problem = "not of the form `Bearer TOKEN`"
    raise UnauthenticatedError(f"authorization: {problem}", field=AUTHORIZATION_KEY)


def read_clients(path: Path) -> dict[str, Entry]:
    """The clients in a file, by name.

    Raises:
        ClientsError: it cannot be read or is not as described above.
    """
    try:
        with path.open("rb") as file:
            data = file.read(FILE_LIMIT_BYTES + 1)
    except OSError as error:
        raise ClientsError(f"{path}: {error.strerror}") from error
    if len(data) > FILE_LIMIT_BYTES:
        raise ClientsError(f"{path}: more than {FILE_LIMIT_BYTES} bytes")
    try:
        return parse_clients(data)
    except ClientsError as error:
        raise ClientsError(f"{path}: {error}") from error


def parse_clients(data: bytes) -> dict[str, Entry]:
    """The clients in a file's bytes, by name.

    Raises:
        ClientsError: naming the field.
    """
    try:
        tables = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ClientsError(f"not TOML: {error!s:.200}") from error
    _require_known(tables, ("clients",), "")
    clients = tables.get("clients", {})
    if not isinstance(clients, dict) or not clients:
        raise ClientsError("clients: there are none")
    entries = {name: _entry(name, fields) for name, fields in clients.items()}
    if len({entry.token_sha256 for entry in entries.values()}) < len(entries):
        raise ClientsError("clients: two have the same token")
    return entries


def _entry(name: str, fields: Any) -> Entry:
    where = f"clients.{name:.64}"
    if not NAME.fullmatch(name):
        raise ClientsError(
            f"{where}: a name holds 1 to 64 letters, digits, dots, dashes, underscores"
        )
    if not isinstance(fields, dict):
        raise ClientsError(f"{where}: not a table")
    _require_known(fields, ("token_sha256", *LIMIT_NAMES), f"{where}.")
    digest = fields.get("token_sha256")
    if not isinstance(digest, str) or not SHA256.fullmatch(digest):
        raise ClientsError(f"{where}.token_sha256: not a SHA-256 in 64 small hexadecimal digits")
    limits = {field: _limit(f"{where}.{field}", fields.get(field)) for field in LIMIT_NAMES}
    return Entry(digest, ClientLimits(**limits))


def _limit(where: str, value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LIMIT:
        raise ClientsError(f"{where}: not a whole number from 1 to {LIMIT}")
    return value


def _require_known(table: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise ClientsError(f"{where}{unknown[0]:.64}: unknown; known: {', '.join(known)}")
