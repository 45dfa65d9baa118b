"""`sequoia certs`: certificates for development."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sequoia import config


def certs(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for certificates and keys.")],
    name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            help="Host name or address by which roles are called, beside localhost and their own; "
            "may be repeated.",
        ),
    ] = None,
    days: Annotated[
        int, typer.Option(min=1, max=3650, help="Days that the certificates are valid for.")
    ] = 90,
) -> None:
    """Make development certificates: one per role, one for clients, and their two authorities.

    Authorities that the folder already holds sign again, which renews the certificates.
    """
    from sequoia.certificates import CertificatesError, HostNameError, write_certificates

    try:
        written = write_certificates(out, name or [], days)
    except HostNameError as error:
        config.fail(f"--name: {error}", 2)
    except CertificatesError as error:
        config.fail(f"--out: {error}", 2)
    except (FileExistsError, NotADirectoryError) as error:
        config.fail(f"--out: {error.filename}: is no folder", 2)
    except OSError as error:
        config.fail(f"--out: {error.filename or out}: {error.strerror}", 2)
    for path in written:
        typer.echo(path)
