"""`python -m sequoia.rpc.health HOST:PORT`: whether a role can do its work, for containers' health checks.

Ends with status 0 when it is serving, 1 when it is not, 2 when called wrongly. It imports little, for it
may run every few seconds.
"""

from __future__ import annotations

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sequoia import security_options
from sequoia.config import fail, read_address


def is_serving(
    address: str, seconds: float, credentials: grpc.ChannelCredentials | None = None
) -> bool:
    """Ask a role's health, without an event loop: Ctrl-C must get through while waiting."""
    open_channel = (
        grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address)
    )
    with open_channel as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=seconds
            )
        except grpc.RpcError:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


def main(
    address: str = typer.Argument(metavar="HOST:PORT", callback=read_address),
    seconds: float = typer.Option(3.0, min=0.1, help="How long to wait for the answer."),
    tls_certificate: security_options.TlsCertificate = None,
    tls_key: security_options.TlsKey = None,
    tls_authority: security_options.TlsAuthority = None,
) -> None:
    """Say whether the role at an address is serving."""
    credentials = None
    if tls_authority or tls_certificate or tls_key:
        from sequoia.rpc.tls import TlsError, channel_credentials, chosen_files

        try:
            files = chosen_files(tls_certificate, tls_key, tls_authority, needs_identity=False)
            credentials = channel_credentials(files) if files else None
        except TlsError as error:
            fail(str(error), 2)
    serving = is_serving(address, seconds, credentials)
    typer.echo("serving" if serving else "not serving")
    raise typer.Exit(0 if serving else 1)


if __name__ == "__main__":
    typer.run(main)
