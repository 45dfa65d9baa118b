"""`sequoia token`: a token for a client of `Generate`."""

from __future__ import annotations

import hashlib
import secrets
from typing import Annotated

import typer

from coordinator.clients import NAME
from sequoia import config

PREFIX = "sequoia_"  # scanners for leaked secrets can look for it
RANDOM_BYTES = 32


def token(
    name: Annotated[
        str, typer.Argument(help="What the client is called, in the file and in logs.")
    ],
) -> None:
    """Make a token, and the lines for the coordinator's file of clients that let it in.

    The token is shown this once; the file holds its hash alone.
    """
    if not NAME.fullmatch(name):
        config.fail(
            f"NAME: {name!r:.80} is not 1 to 64 letters, digits, dots, dashes and underscores", 2
        )
    secret = PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
    table = name if "." not in name else f'"{name}"'
    typer.echo(f"token, for {name} alone: {secret}")
    typer.echo("lines for the file of --clients:\n")
    typer.echo(f"[clients.{table}]")
    typer.echo(f'token_sha256 = "{hashlib.sha256(secret.encode()).hexdigest()}"')
