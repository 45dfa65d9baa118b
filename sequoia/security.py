"""From the options of a command line to credentials; whatever cannot be used ends the process.

Every failure is one line that names the option, with status 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc

from sequoia.config import fail
from sequoia.redis_url import RedisUrlError, with_password
from sequoia.rpc.channel import Endpoint
from sequoia.rpc.role import is_loopback
from sequoia.rpc.tls import (
    AUTHORITY,
    CLIENT_AUTHORITY,
    TlsError,
    TlsFiles,
    channel_credentials,
    chosen_files,
    server_credentials,
)
from sequoia.secret_file import SecretFileError, read_secret


@dataclass(frozen=True, slots=True)
class RoleCredentials:
    """What a role serves with and calls other roles with; None for neither is without TLS."""

    server: grpc.ServerCredentials | None = None
    channel: grpc.ChannelCredentials | None = None


def tls_files(
    certificate: Path | None, key: Path | None, authority: Path | None
) -> TlsFiles | None:
    """A role's files: all three or none."""
    try:
        return chosen_files(certificate, key, authority, needs_identity=True)
    except TlsError as error:
        fail(str(error), 2)


def role_credentials(
    certificate: Path | None, key: Path | None, authority: Path | None
) -> RoleCredentials:
    """For a role that only other roles call: they must show certificates of the same authority."""
    try:
        files = chosen_files(certificate, key, authority, needs_identity=True)
        if files is None or files.certificate is None or files.key is None:
            return RoleCredentials()
        return RoleCredentials(
            server_credentials(files.certificate, files.key, {AUTHORITY: files.authority}),
            channel_credentials(files),
        )
    except TlsError as error:
        fail(str(error), 2)


def coordinator_credentials(
    certificate: Path | None,
    key: Path | None,
    authority: Path | None,
    client_authority: Path | None,
) -> RoleCredentials:
    """For the role that clients call: they show certificates only where their authority is named."""
    try:
        files = chosen_files(certificate, key, authority, needs_identity=True)
        if files is None or files.certificate is None or files.key is None:
            if client_authority is not None:
                raise TlsError(
                    CLIENT_AUTHORITY, "needs --tls-certificate, --tls-key, --tls-authority"
                )
            return RoleCredentials()
        # Roles get in as well, for their probes; whether they may generate their tokens say.
        callers = {}
        if client_authority is not None:
            callers = {AUTHORITY: files.authority, CLIENT_AUTHORITY: client_authority}
        return RoleCredentials(
            server_credentials(files.certificate, files.key, callers),
            channel_credentials(files),
        )
    except TlsError as error:
        fail(str(error), 2)


def endpoint(
    address: str,
    certificate: Path | None = None,
    key: Path | None = None,
    authority: Path | None = None,
    token_file: Path | None = None,
) -> Endpoint:
    """Where to call, and what to show there.

    A token goes to other machines through TLS only: whoever can read it can use it.
    """
    try:
        files = chosen_files(certificate, key, authority, needs_identity=False)
        credentials = channel_credentials(files) if files else None
        token = read_secret(token_file) if token_file else None
    except TlsError as error:
        fail(str(error), 2)
    except SecretFileError as error:
        fail(f"--token-file: {error}", 2)
    if token and not credentials and not is_loopback(address.rpartition(":")[0]):
        fail(f"--token-file: {address} is another machine; its token needs --tls-authority", 2)
    return Endpoint(address, credentials, token)


def redis_url(url: str, password_file: Path | None) -> str:
    """The URL of Redis with the password of a file, if there is one."""
    if password_file is None:
        return url
    try:
        return with_password(url, password_file)
    except (RedisUrlError, SecretFileError) as error:
        fail(f"--redis-password-file: {error}", 2)
