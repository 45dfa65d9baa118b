from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID
from typer.testing import CliRunner

from sequoia import certificates
from sequoia.certificates import CLIENT, ROLES, CertificatesError, write_certificates
from sequoia.cli import app
from sequoia.rpc.tls import TlsError, TlsFiles, chosen_files


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of certificates, not to be written to."""
    folder = tmp_path_factory.mktemp("certificates")
    write_certificates(folder, ["sequoia.example", "10.1.2.3"], 30)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """The same, to be written to."""
    return shutil.copytree(made, tmp_path / "certificates")


def certificate(path: Path) -> x509.Certificate:
    """What a file holds."""
    return x509.load_pem_x509_certificate(path.read_bytes())


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_called_by_its_own_name_this_machines_and_those_asked_for(
    made: Path, role: str
) -> None:
    """A caller checks the name that it calls."""
    names = certificate(made / f"{role}.crt").extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )

    assert names.value.get_values_for_type(x509.DNSName) == [role, "localhost", "sequoia.example"]
    addresses = [str(one) for one in names.value.get_values_for_type(x509.IPAddress)]
    assert addresses == ["127.0.0.1", "::1", "10.1.2.3"]


def test_roles_and_clients_are_signed_by_different_authorities(made: Path) -> None:
    """A client's certificate opens no worker."""
    roles, clients = certificate(made / "authority.crt"), certificate(made / "client-authority.crt")
    for role in ROLES:
        certificate(made / f"{role}.crt").verify_directly_issued_by(roles)
    certificate(made / f"{CLIENT}.crt").verify_directly_issued_by(clients)
    with pytest.raises(ValueError, match="subject"):
        certificate(made / f"{CLIENT}.crt").verify_directly_issued_by(roles)


def test_a_client_cannot_pass_for_a_server(made: Path) -> None:
    """Its certificate is for callers alone."""
    usage = certificate(made / f"{CLIENT}.crt").extensions.get_extension_for_class(
        x509.ExtendedKeyUsage
    )
    assert list(usage.value) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_keys_are_their_owners_alone(made: Path) -> None:
    """Nobody else on the machine can read one."""
    keys = list(made.glob("*.key"))
    assert len(keys) == len(ROLES) + 3
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}


def test_authorities_that_are_there_sign_again(folder: Path) -> None:
    """So certificates can be renewed without telling everyone of a new authority."""
    authority = (folder / "authority.crt").read_bytes()
    before = certificate(folder / "target.crt")

    write_certificates(folder, [], 60)

    after = certificate(folder / "target.crt")
    assert (folder / "authority.crt").read_bytes() == authority
    assert after.serial_number != before.serial_number
    assert after.not_valid_after_utc > before.not_valid_after_utc


@pytest.mark.parametrize("damage", ["missing", "garbage", "another"])
def test_an_authority_that_cannot_sign_is_named(folder: Path, damage: str) -> None:
    """Rather than replaced by a new one that nobody trusts."""
    key = folder / "authority.key"
    if damage == "missing":
        key.unlink()
    else:
        key.write_bytes(
            b"no key" if damage == "garbage" else (folder / "client-authority.key").read_bytes()
        )

    with pytest.raises(CertificatesError, match=r"authority\.key"):
        write_certificates(folder, [], 30)


@pytest.mark.parametrize("name", ["", "a b", "a..b", "-", "x" * 64, "é.example", "10.0.0.0/8"])
def test_a_name_that_is_none_is_named(tmp_path: Path, name: str) -> None:
    """Before anything is written."""
    result = CliRunner().invoke(app, ["certs", "--out", str(tmp_path / "out"), "--name", name])

    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: --name: {name!r} is no host name"[:80])
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    """In one line."""
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(app, ["certs", "--out", str(tmp_path / "file" / "out")])

    assert result.exit_code == 2
    assert result.stderr.startswith("error: --out: ")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """Neither where the folder should be nor above it."""
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        result = CliRunner().invoke(app, ["certs", "--out", str(out)])
        assert (result.exit_code, result.stderr) == (2, f"error: --out: {out}: is no folder\n")


def test_the_files_made_are_the_files_that_roles_take(made: Path) -> None:
    """All checks of a role's start pass."""
    for role in ROLES:
        paths = made / f"{role}.crt", made / f"{role}.key", made / "authority.crt"
        assert chosen_files(*paths, needs_identity=True) == TlsFiles(paths[2], paths[0], paths[1])
    assert chosen_files(None, None, None, needs_identity=True) is None


def encrypted(path: Path) -> bytes:
    """A key under a password."""
    key = load_pem_private_key(path.read_bytes(), None)
    secret = BestAvailableEncryption(b"password")
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret)


def test_files_that_do_not_fit_are_named_by_their_option(folder: Path) -> None:
    """A role with wrong files does not start, and says which option to mend."""
    good = {name: folder / f"target.{name}" for name in ("crt", "key")}
    authority = folder / "authority.crt"
    bad = folder / "bad"
    bad.write_bytes(b"nothing")
    locked = folder / "locked.key"
    locked.write_bytes(encrypted(good["key"]))
    cases = [
        (folder / "none", good["key"], authority, r"--tls-certificate: .*none: No such file"),
        (bad, good["key"], authority, r"--tls-certificate: .*holds no PEM certificate"),
        (good["crt"], bad, authority, r"--tls-key: .*holds no PEM private key"),
        (good["crt"], locked, authority, r"--tls-key: .*encrypted"),
        (good["crt"], folder / "draft.key", authority, r"--tls-key: .*not the key of"),
        (good["crt"], good["key"], bad, r"--tls-authority: .*holds no PEM certificate"),
        (good["crt"], good["key"], folder, r"--tls-authority: .*Is a directory"),
        (good["crt"], good["key"], None, r"--tls-authority: is missing beside"),
        (good["crt"], None, authority, r"--tls-key: is missing beside"),
        (None, good["key"], authority, r"--tls-certificate: is missing beside"),
        (None, None, authority, r"--tls-certificate: is missing beside --tls-authority"),
    ]
    for certificate_file, key, trusted, message in cases:
        with pytest.raises(TlsError, match=message):
            chosen_files(certificate_file, key, trusted, needs_identity=True)


def test_a_caller_needs_an_authority_alone(made: Path) -> None:
    """Where the server does not ask for more; half an identity is refused all the same."""
    authority = made / "authority.crt"
    assert chosen_files(None, None, authority, needs_identity=False) == TlsFiles(authority)
    with pytest.raises(TlsError, match="--tls-key: is missing"):
        chosen_files(made / "client.crt", None, authority, needs_identity=False)


@pytest.mark.parametrize("shift", [timedelta(days=-40), timedelta(days=2)])
def test_a_certificate_out_of_its_time_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, shift: timedelta
) -> None:
    """Expired, or from a clock that is ahead."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> Clock:
            moved = datetime.now(UTC) + shift
            return cls.fromtimestamp(moved.timestamp(), UTC)

    monkeypatch.setattr(certificates, "datetime", Clock)
    write_certificates(folder, [], 30)

    with pytest.raises(TlsError, match=r"--tls-certificate: .*is valid from .*, not now"):
        chosen_files(
            folder / "target.crt",
            folder / "target.key",
            folder / "authority.crt",
            needs_identity=True,
        )
