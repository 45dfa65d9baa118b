"""Options that say who a process is, whom it trusts and who may call it.

No option takes a secret itself: flags stand in process lists. Each names the file that holds one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

TlsCertificate = Annotated[
    Path | None,
    typer.Option(
        envvar="SEQUOIA_TLS_CERTIFICATE",
        metavar="FILE",
        help="PEM certificate (chain) that this process shows to others.",
    ),
]
TlsKey = Annotated[
    Path | None,
    typer.Option(
        envvar="SEQUOIA_TLS_KEY", metavar="FILE", help="PEM private key of that certificate."
    ),
]
TlsAuthority = Annotated[
    Path | None,
    typer.Option(
        envvar="SEQUOIA_TLS_AUTHORITY",
        metavar="FILE",
        help="PEM certificates of the authority that this process trusts; turns TLS on.",
    ),
]
ClientAuthority = Annotated[
    Path | None,
    typer.Option(
        envvar="SEQUOIA_CLIENT_AUTHORITY",
        metavar="FILE",
        help="PEM certificates of the authority whose certificates clients must show.",
    ),
]
ClientsFile = Annotated[
    Path | None,
    typer.Option(
        "--clients",
        envvar="SEQUOIA_CLIENTS",
        metavar="FILE",
        help="TOML file of the clients that may call Generate, with their limits; anyone may "
        "without it.",
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        envvar="SEQUOIA_TOKEN_FILE",
        metavar="FILE",
        help="File that holds the token to show to the server.",
    ),
]
RedisPasswordFile = Annotated[
    Path | None,
    typer.Option(
        envvar="SEQUOIA_REDIS_PASSWORD_FILE",
        metavar="FILE",
        help="File that holds the password of Redis.",
    ),
]
Reflection = Annotated[
    bool,
    typer.Option(
        "--reflection/--no-reflection",
        envvar="SEQUOIA_REFLECTION",
        help="Tell callers which services there are and what their messages look like.",
    ),
]
