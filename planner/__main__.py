"""`python -m planner`: run a planner."""

from __future__ import annotations

import typer

from sequoia import config, observability_options, security_options
from sequoia.log import configure_logging
from sequoia.rpc.role import run, serve
from sequoia.rpc.server import RpcServer

app = typer.Typer(add_completion=False)


@app.command()
def main(
    target_address: config.TargetAddresses = "127.0.0.1:50053",
    draft_address: config.DraftAddresses = None,
    redis: config.RedisUrl = None,
    host: config.Host = "127.0.0.1",
    port: config.Port = 50054,
    max_nodes: config.MaxNodes = None,
    max_levels: config.MaxLevels = None,
    max_batch_size: config.MaxBatchSize = None,
    replan_interval: config.ReplanSeconds = 1.0,
    redis_password_file: security_options.RedisPasswordFile = None,
    log_level: config.LogLevelOption = config.LogLevel.INFO,
    metrics_port: observability_options.MetricsPort = 0,
    otlp_endpoint: observability_options.OtlpEndpoint = None,
    trace_steps: observability_options.TraceSteps = 32,
    tls_certificate: security_options.TlsCertificate = None,
    tls_key: security_options.TlsKey = None,
    tls_authority: security_options.TlsAuthority = None,
    reflection: security_options.Reflection = False,
) -> None:
    """Measure both workers, estimate acceptance and decide the trees.

    The draft's address and Redis are required: without either there is nothing to plan.
    """
    config.check_environment()
    if draft_address is None:
        config.fail("--draft-address (or SEQUOIA_DRAFT_ADDRESS) is required by the planner", 2)
    if redis is None:
        config.fail("--redis (or SEQUOIA_REDIS) is required: the planner publishes there", 2)
    configure_logging("planner", log_level)
    from planner.service import PlannerService
    from planner.settings import PlannerSettings
    from sequoia.security import redis_url, role_credentials
    from sequoia.tracing.opening import opened

    tracer = opened("planner", otlp_endpoint, trace_steps)
    credentials = role_credentials(tls_certificate, tls_key, tls_authority)

    settings = PlannerSettings(
        config.addresses(target_address),
        config.addresses(draft_address),
        redis_url(redis, redis_password_file),
        max_nodes,
        max_levels,
        max_batch_size,
        replan_interval,
        credentials.channel,
    )

    async def plan() -> None:
        server = RpcServer(credentials.server, reflection=reflection, tracer=tracer)
        service = PlannerService(server, settings)
        await serve(server, host, port, service.get_ready, service.stop, metrics_port)

    run(plan())


if __name__ == "__main__":
    app()
