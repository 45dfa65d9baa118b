"""Certificates for development: an authority for the roles, one for clients, and what they sign.

Two authorities, because workers let in whoever shows a certificate of the roles': a client's must not
be one. Keys are on the curve P-256, files PEM, and keys readable by their owner alone.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ROLES = ("coordinator", "draft", "target", "planner")
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
ROLE_AUTHORITY = "authority"
CLIENT_AUTHORITY = "client-authority"
CLIENT = "client"
AUTHORITY_DAYS = 3650
BACKDATED = timedelta(minutes=5)  # clocks differ


class CertificatesError(ValueError):
    """Certificates that cannot be made; the message names the file or the name at fault."""


class HostNameError(CertificatesError):
    """What should be a host name or an address is neither."""


@dataclass(frozen=True, slots=True)
class Authority:
    """Someone who signs."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def write_certificates(folder: Path, names: Sequence[str], days: int) -> list[Path]:
    """Write every certificate and its key into a folder; authorities that are there sign again.

    Args:
        folder: made where it is missing.
        names: host names and addresses by which roles are called, beside `localhost` and their own.
        days: that certificates are valid for; the authorities are for ten years.

    Returns:
        The files written, in order.

    Raises:
        HostNameError: a name is none.
        CertificatesError: an authority that is there cannot sign.
        OSError: the folder cannot be written to.
    """
    alternatives = [_alternative(name) for name in (*LOCAL_NAMES, *names)]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    written: list[Path] = []
    roles = _authority(folder, ROLE_AUTHORITY, written)
    clients = _authority(folder, CLIENT_AUTHORITY, written)
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    for role in ROLES:
        own = list(dict.fromkeys([x509.DNSName(role), *alternatives]))
        _sign(folder, role, roles, own, both, days, written)
    _sign(folder, CLIENT, clients, [], [ExtendedKeyUsageOID.CLIENT_AUTH], days, written)
    return written


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    labels = name.removeprefix("*.").split(".")
    plain = all(label and label.replace("-", "").isalnum() and len(label) < 64 for label in labels)
    if not plain or not name.isascii() or len(name) > 253:
        raise HostNameError(f"{name!r:.80} is no host name and no address")
    return x509.DNSName(name)


def _authority(folder: Path, name: str, written: list[Path]) -> Authority:
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    if certificate.exists() or key.exists():
        return _read_authority(certificate, key)
    secret = ec.generate_private_key(ec.SECP256R1())
    subject = _name(f"Sequoia development {name}")
    signed = (
        _builder(subject, subject, secret.public_key(), secret.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(secret, hashes.SHA256())
    )
    _write(certificate, key, signed, secret, written)
    return Authority(signed, secret)


def _read_authority(certificate: Path, key: Path) -> Authority:
    try:
        signed = x509.load_pem_x509_certificate(certificate.read_bytes())
        secret = load_pem_private_key(key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise CertificatesError(
            f"{certificate} and {key.name} are not an authority that can sign: {error}"
        ) from error
    if not isinstance(secret, ec.EllipticCurvePrivateKey) or (
        secret.public_key() != signed.public_key()
    ):
        raise CertificatesError(f"{key} is not the key of {certificate.name}")
    return Authority(signed, secret)


def _sign(
    folder: Path,
    name: str,
    authority: Authority,
    alternatives: Sequence[x509.GeneralName],
    purposes: Sequence[x509.ObjectIdentifier],
    days: int,
    written: list[Path],
) -> None:
    secret = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.certificate.subject
    builder = (
        _builder(_name(name), issuer, secret.public_key(), authority.key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    signed = builder.sign(authority.key, hashes.SHA256())
    _write(folder / f"{name}.crt", folder / f"{name}.key", signed, secret, written)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    days: int,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False
        )
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write(
    certificate: Path,
    key: Path,
    signed: x509.Certificate,
    secret: ec.EllipticCurvePrivateKey,
    written: list[Path],
) -> None:
    pem = secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    _replace(key, pem, 0o600)
    _replace(certificate, signed.public_bytes(Encoding.PEM), 0o644)
    written += [certificate, key]


def _replace(path: Path, data: bytes, mode: int) -> None:
    """Write a file whole, never readable by more than `mode` says."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    partial.replace(path)
