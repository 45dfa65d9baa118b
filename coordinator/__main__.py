"""`python -m coordinator`: run a coordinator."""

from __future__ import annotations

import structlog
import typer

from sequoia import config, observability_options, security_options
from sequoia.log import configure_logging
from sequoia.rpc.role import is_loopback, run, serve
from sequoia.rpc.server import RpcServer

app = typer.Typer(add_completion=False)


@app.command()
def main(
    target: config.Target = config.DEFAULT_TARGET,
    target_address: config.TargetAddresses = "127.0.0.1:50053",
    draft_address: config.DraftAddresses = None,
    redis: config.RedisUrl = None,
    host: config.Host = "127.0.0.1",
    port: config.Port = 50051,
    request_limit: config.RequestLimit = 64,
    max_new_tokens_limit: config.MaxNewTokens = 4096,
    call_timeout: config.CallSeconds = 30.0,
    draft_timeout: config.DraftSeconds = 5.0,
    target_patience: config.Patience = 60.0,
    queue_limit: config.QueueLimit = 256,
    queue_seconds: config.QueueSeconds = 60.0,
    drain_seconds: config.DrainSeconds = 10.0,
    redis_password_file: security_options.RedisPasswordFile = None,
    clients: security_options.ClientsFile = None,
    client_authority: security_options.ClientAuthority = None,
    log_level: config.LogLevelOption = config.LogLevel.INFO,
    metrics_port: observability_options.MetricsPort = 0,
    otlp_endpoint: observability_options.OtlpEndpoint = None,
    trace_steps: observability_options.TraceSteps = 32,
    tls_certificate: security_options.TlsCertificate = None,
    tls_key: security_options.TlsKey = None,
    tls_authority: security_options.TlsAuthority = None,
    reflection: security_options.Reflection = False,
) -> None:
    """Serve Generate: grow, verify, accept, emit.

    Without a draft worker every step is one token from the target alone; without Redis the built-in
    plan stays in force.
    """
    config.check_environment()
    if redis is None and redis_password_file is not None:
        config.fail("--redis-password-file needs --redis", 2)
    configure_logging("coordinator", log_level)
    from coordinator.clients import Clients, ClientsError
    from coordinator.service import CoordinatorService, CoordinatorSettings
    from sequoia.runtime.catalogue import resolve
    from sequoia.security import coordinator_credentials, redis_url
    from sequoia.tracing.opening import opened

    tracer = opened("coordinator", otlp_endpoint, trace_steps)
    credentials = coordinator_credentials(tls_certificate, tls_key, tls_authority, client_authority)
    try:
        known = Clients(clients) if clients else None
    except ClientsError as error:
        config.fail(f"--clients: {error}", 2)
    if not is_loopback(host):
        _warn_of_exposure(
            is_open=known is None and client_authority is None,
            shows_tokens=known is not None and credentials.server is None,
        )

    settings = CoordinatorSettings(
        config.addresses(target_address),
        config.addresses(draft_address),
        redis_url(redis, redis_password_file) if redis else None,
        request_limit,
        max_new_tokens_limit,
        call_timeout,
        draft_timeout,
        target_patience,
        queue_limit,
        queue_seconds,
        drain_seconds,
        credentials.channel,
    )

    async def coordinate() -> None:
        server = RpcServer(
            credentials.server,
            reflection=reflection,
            tracer=tracer,
            drain_seconds=drain_seconds,
        )
        service = CoordinatorService(server, resolve(target), settings, clients=known)
        await serve(server, host, port, service.get_ready, service.stop, metrics_port)

    run(coordinate())


def _warn_of_exposure(*, is_open: bool, shows_tokens: bool) -> None:
    """Say in the log what an address beyond loopback opens to the network."""
    log = structlog.get_logger(__name__)
    if is_open:
        log.warning(
            "anyone who reaches this address may generate; see --clients, --client-authority"
        )
    if shows_tokens:
        log.warning("tokens travel unencrypted; see --tls-certificate")


if __name__ == "__main__":
    app()
