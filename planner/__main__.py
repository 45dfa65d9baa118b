"""`python -m planner`: run a planner."""

from __future__ import annotations

import typer

from sequoia import config
from sequoia.log import configure_logging
from sequoia.rpc.role import run, serve
from sequoia.rpc.server import RpcServer

app = typer.Typer(add_completion=False)


@app.command()
def main(
    target_address: config.TargetAddress = "127.0.0.1:50053",
    draft_address: config.DraftAddress = None,
    redis: config.RedisUrl = None,
    redis_password_file: config.RedisPasswordFile = None,
    host: config.Host = "127.0.0.1",
    port: config.Port = 50054,
    max_nodes: config.MaxNodes = None,
    max_levels: config.MaxLevels = None,
    replan_interval: config.ReplanSeconds = 5.0,
    log_level: config.LogLevelOption = config.LogLevel.INFO,
) -> None:
    """Measure both workers, estimate acceptance and decide the trees.

    The draft's address and Redis are required: without either there is nothing to plan.
    """
    config.check_environment()
    if draft_address is None:
        config.fail("--draft-address (or SEQUOIA_DRAFT_ADDRESS) is required by the planner", 2)
    url = config.redis_url(redis, redis_password_file)
    if url is None:
        config.fail("--redis (or SEQUOIA_REDIS) is required: the planner publishes there", 2)
    configure_logging("planner", log_level)
    from planner.service import PlannerService, PlannerSettings

    settings = PlannerSettings(
        target_address, draft_address, url, max_nodes, max_levels, replan_interval
    )

    async def plan() -> None:
        server = RpcServer()
        service = PlannerService(server, settings)
        await serve(server, host, port, service.get_ready, service.stop)

    run(plan())


if __name__ == "__main__":
    app()
