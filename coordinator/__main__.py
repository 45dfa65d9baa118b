"""`python -m coordinator`: run a coordinator."""

from __future__ import annotations

import typer

from sequoia import config
from sequoia.log import configure_logging
from sequoia.rpc.role import run, serve
from sequoia.rpc.server import RpcServer

app = typer.Typer(add_completion=False)


@app.command()
def main(
    target: config.Target = config.DEFAULT_TARGET,
    target_address: config.TargetAddress = "127.0.0.1:50053",
    draft_address: config.DraftAddress = None,
    redis: config.RedisUrl = None,
    redis_password_file: config.RedisPasswordFile = None,
    host: config.Host = "127.0.0.1",
    port: config.Port = 50051,
    request_limit: config.RequestLimit = 64,
    max_new_tokens_limit: config.MaxNewTokens = 4096,
    call_timeout: config.CallSeconds = 30.0,
    draft_timeout: config.DraftSeconds = 5.0,
    target_patience: config.Patience = 60.0,
    queue_limit: config.QueueLimit = 256,
    queue_seconds: config.QueueSeconds = 60.0,
    log_level: config.LogLevelOption = config.LogLevel.INFO,
) -> None:
    """Serve Generate: grow, verify, accept, emit.

    Without a draft worker every step is one token from the target alone; without Redis the built-in
    plan stays in force.
    """
    config.check_environment()
    configure_logging("coordinator", log_level)
    from coordinator.service import CoordinatorService, CoordinatorSettings
    from sequoia.runtime.catalogue import resolve

    settings = CoordinatorSettings(
        target_address,
        draft_address,
        config.redis_url(redis, redis_password_file),
        request_limit,
        max_new_tokens_limit,
        call_timeout,
        draft_timeout,
        target_patience,
        queue_limit,
        queue_seconds,
    )

    async def coordinate() -> None:
        server = RpcServer()
        service = CoordinatorService(server, resolve(target), settings)
        await serve(server, host, port, service.get_ready, service.stop)

    run(coordinate())


if __name__ == "__main__":
    app()
