"""`sequoia demo`: the whole system, a real text, and what speculation gave."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from statistics import median

import typer
from rich.console import Console
from rich.table import Table

from sequoia import config
from sequoia.cli.generate import Answer, ask, show_text
from sequoia.cli.session import interrupt_on_terminate, quiet_system
from sequoia.errors import SequoiaError
from sequoia.generation import ChatMessage, GenerationRequest
from sequoia.launcher import LaunchOptions, LocalSystem
from sequoia.plans import Plan, request_class
from sequoia.rpc.channel import Endpoint, RpcChannel
from sequoia.rpc.planner_codec import GET_PLAN
from sequoia.settings import DrawRule, SamplingSettings

PROMPT = "Explain in a few sentences why the sky is blue."
REPETITIONS = 3


def demo(
    target: config.Target = config.DEFAULT_TARGET,
    draft: config.Draft = None,
    dtype: config.DTypeOption = config.DType.AUTO,
    device: config.DeviceOption = config.Device.AUTO,
    placement: config.PlacementOption = config.Placement.AUTO,
    device_memory: config.DeviceMemory = None,
    host_memory: config.HostMemory = None,
) -> None:
    """Start everything, generate a text with and without speculation, show the figures, stop."""
    interrupt_on_terminate()
    options = LaunchOptions(
        target,
        draft,
        dtype=dtype,
        device=device,
        placement=placement,
        device_memory=device_memory,
        host_memory=host_memory,
        max_batch_size=1,  # there is one request
    )
    try:
        with quiet_system(options) as system:
            _run(system)
    except SequoiaError as error:
        config.fail(f"{error.reason}: {error.message}")
    except KeyboardInterrupt:
        typer.echo("\ninterrupted", err=True)
        raise typer.Exit(130) from None


def _run(system: LocalSystem) -> None:
    request = GenerationRequest(
        chat=(ChatMessage("user", PROMPT),),
        sampling=SamplingSettings(temperature=0.0),
        max_new_tokens=128,
    )
    alone = replace(request, disable_speculation=True)
    typer.echo("==> the planner measures the workers", err=True)
    if system.planner:
        system.planner.wait_until_serving()
    place = Endpoint(system.address)
    typer.echo(f"\nuser: {PROMPT}\n\nassistant: ", nl=False)
    with_speculation = [asyncio.run(ask(place, request, show_text))]
    without = [asyncio.run(ask(place, alone))]
    for _ in range(REPETITIONS - 1):
        with_speculation.append(asyncio.run(ask(place, request)))
        without.append(asyncio.run(ask(place, alone)))
    plan = asyncio.run(_plan(system))
    typer.echo("\n")
    Console().print(_table(with_speculation, without, plan))
    same = {answer.token_ids for answer in (*with_speculation, *without)}
    verdict = "the same" if len(same) == 1 else "DIFFERENT"
    typer.echo(f"text with and without speculation: {verdict}, token for token")


def _table(with_speculation: list[Answer], without: list[Answer], plan: Plan) -> Table:
    table = Table(title=f"median of {REPETITIONS} generations each, one after the other")
    table.add_column("")
    table.add_column("with speculation", justify="right")
    table.add_column("without", justify="right")
    both = (with_speculation, without)
    usages = [answers[-1].completion.usage for answers in both]
    seconds = [median(a.seconds / len(a.token_ids) for a in answers) for answers in both]
    table.add_row("tokens", *(str(usage.completion_token_count) for usage in usages))
    table.add_row("tokens per step", *(f"{usage.tokens_per_step:.2f}" for usage in usages))
    table.add_row("seconds per token", *(f"{value:.4f}" for value in seconds))
    table.add_row("times as fast", f"{seconds[1] / seconds[0]:.2f}", "1.00")
    tree = plan.tree_for(request_class(0.0, DrawRule.GREEDY), 1)
    if tree:
        shape = f"{tree.topology.node_count} nodes, {tree.topology.level_count} levels"
        table.add_row(f"tree in force (plan {plan.version})", shape, "1 node")
    return table


async def _plan(system: LocalSystem) -> Plan:
    if system.planner is None:
        raise SequoiaError("the planner is not running")
    channel = RpcChannel(system.planner.address)
    try:
        return await channel.call(GET_PLAN, None, timeout=10)
    finally:
        await channel.close()
