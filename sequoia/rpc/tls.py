"""TLS between the roles and to clients: PEM files in, gRPC's credentials out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc
import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from sequoia.file_signature import FileSignature, file_signature

log = structlog.get_logger(__name__)

CERTIFICATE = "--tls-certificate"
KEY = "--tls-key"
AUTHORITY = "--tls-authority"
CLIENT_AUTHORITY = "--client-authority"


class TlsError(ValueError):
    """Files that TLS cannot work with; the message names the option and the file."""

    def __init__(self, option: str, problem: str) -> None:
        super().__init__(f"{option}: {problem}")
        self.option = option


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Whom a process trusts and who it is, as PEM files.

    Attributes:
        authority: whose certificates it takes from others.
        certificate: its own, with the chain behind it; None for a caller without one.
        key: of that certificate.
    """

    authority: Path
    certificate: Path | None = None
    key: Path | None = None


def chosen_files(
    certificate: Path | None, key: Path | None, authority: Path | None, *, needs_identity: bool
) -> TlsFiles | None:
    """The files of a process's options, checked; None where no option is given.

    Raises:
        TlsError: an option is missing beside the others, a file cannot be read or is not what it
            should be, the key is another certificate's, or the certificate is not valid today.
    """
    given = {CERTIFICATE: certificate, KEY: key, AUTHORITY: authority}
    named = [option for option, path in given.items() if path is not None]
    if not named:
        return None
    needed = (CERTIFICATE, KEY, AUTHORITY) if needs_identity else (AUTHORITY,)
    pair = (CERTIFICATE, KEY) if certificate or key else ()
    for option in (*needed, *pair):
        if given[option] is None:
            raise TlsError(option, f"is missing beside {', '.join(named)}")
    if authority is None:
        raise TlsError(AUTHORITY, f"is missing beside {', '.join(named)}")
    files = TlsFiles(authority, certificate, key)
    read_authority(authority, AUTHORITY)
    if certificate and key:
        read_identity(certificate, key)
    return files


def read_authority(path: Path, option: str) -> bytes:
    """The certificates of an authority.

    Raises:
        TlsError: the file cannot be read, or holds no certificate.
    """
    data = _read(path, option)
    _certificates(data, path, option)
    return data


def read_identity(certificate: Path, key: Path) -> tuple[bytes, bytes]:
    """A private key and the certificate chain that it belongs to.

    Raises:
        TlsError: a file is not what it should be, they do not belong together, or the certificate is
            not valid today.
    """
    chain, secret = _read(certificate, CERTIFICATE), _read(key, KEY)
    own = _certificates(chain, certificate, CERTIFICATE)[0]
    if _public(_private_key(secret, key)) != own.public_key().public_bytes(*_PUBLIC_FORM):
        raise TlsError(KEY, f"{key} is not the key of the certificate {certificate}")
    now = datetime.now(UTC)
    if not own.not_valid_before_utc <= now <= own.not_valid_after_utc:
        period = (
            f"{own.not_valid_before_utc:%Y-%m-%d %H:%M} to {own.not_valid_after_utc:%Y-%m-%d %H:%M}"
        )
        raise TlsError(CERTIFICATE, f"{certificate} is valid from {period} UTC, not now")
    return secret, chain


def channel_credentials(files: TlsFiles) -> grpc.ChannelCredentials:
    """For a caller: the server must show a certificate of the authority, for the name it is called by.

    Raises:
        TlsError: a file has changed since it was checked.
    """
    key = chain = None
    if files.certificate and files.key:
        key, chain = read_identity(files.certificate, files.key)
    return grpc.ssl_channel_credentials(read_authority(files.authority, AUTHORITY), key, chain)


def server_credentials(
    certificate: Path, key: Path, callers: Mapping[str, Path]
) -> grpc.ServerCredentials:
    """For one server, which takes up renewed files with the next connection.

    Args:
        certificate: the server's own.
        key: of that certificate.
        callers: authorities whose certificates callers must show, by the option that names each;
            none asks callers for none.

    Raises:
        TlsError: a file cannot be used.
    """
    source = _ServerFiles(certificate, key, callers)
    return grpc.dynamic_ssl_server_credentials(
        source.read(),
        source.renewed,  # type: ignore[arg-type]  # the stubs do not know that None keeps the last
        require_client_authentication=bool(callers),
    )


class _ServerFiles:
    """What a server shows and trusts, read again when one of the files has changed."""

    def __init__(self, certificate: Path, key: Path, callers: Mapping[str, Path]) -> None:
        self._certificate = certificate
        self._key = key
        self._callers = callers
        self._seen = self._signature()

    def read(self) -> grpc.ServerCertificateConfiguration:
        identity = read_identity(self._certificate, self._key)
        trusted = [read_authority(path, option) for option, path in self._callers.items()]
        return grpc.ssl_server_certificate_configuration([identity], b"\n".join(trusted) or None)

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC before every handshake; None keeps what was read last."""
        signature = self._signature()
        if signature == self._seen:
            return None
        self._seen = signature
        try:
            configuration = self.read()
        except TlsError as error:  # half of a renewal, mostly; the other half changes the signature
            log.warning("certificate kept", error=str(error))
            return None
        log.info("certificate renewed", certificate=str(self._certificate))
        return configuration

    def _signature(self) -> tuple[FileSignature, ...]:
        paths = (self._certificate, self._key, *self._callers.values())
        return tuple(file_signature(path) for path in paths)


_PUBLIC_FORM = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _public(key: PrivateKeyTypes) -> bytes:
    return key.public_key().public_bytes(*_PUBLIC_FORM)


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(option, f"{path}: {error.strerror}") from error


def _certificates(data: bytes, path: Path, option: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise TlsError(option, f"{path} holds no PEM certificate") from error


def _private_key(data: bytes, path: Path) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(data, password=None)
    except TypeError as error:
        raise TlsError(KEY, f"{path} is encrypted; a role needs it without a password") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise TlsError(KEY, f"{path} holds no PEM private key") from error
