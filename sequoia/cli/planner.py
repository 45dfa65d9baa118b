"""`sequoia planner`: the plan in force, what it rests on, and what became of its predictions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from sequoia import config, security_options
from sequoia.cli.planner_view import as_json, as_tables
from sequoia.cli.session import interrupt_on_terminate, say
from sequoia.errors import Reason, SequoiaError
from sequoia.planner_report import Report
from sequoia.rpc.channel import Endpoint
from sequoia.rpc.planner_codec import GET_REPORT
from sequoia.security import endpoint

CALL_SECONDS = 10.0
DEFAULT_ADDRESS = "127.0.0.1:50054"

planner_app = typer.Typer(name="planner", help="Look at a running planner.", no_args_is_help=True)


@planner_app.command()
def show(
    address: config.PlannerAddress = DEFAULT_ADDRESS,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    tls_certificate: security_options.TlsCertificate = None,
    tls_key: security_options.TlsKey = None,
    tls_authority: security_options.TlsAuthority = None,
) -> None:
    """Print the plan in force, the estimates behind it, and predictions beside what was measured."""
    place = endpoint(address, tls_certificate, tls_key, tls_authority)
    try:
        report = asyncio.run(_ask_once(place))
    except SequoiaError as error:
        config.fail(_complaint(address, error))
    if json_output:
        typer.echo(json.dumps(as_json(report)))
    else:
        Console().print(as_tables(report))


@planner_app.command()
def watch(
    address: config.PlannerAddress = DEFAULT_ADDRESS,
    interval: Annotated[
        float, typer.Option(min=0.1, help="Seconds between looks.", metavar="SECONDS")
    ] = 2.0,
    tls_certificate: security_options.TlsCertificate = None,
    tls_key: security_options.TlsKey = None,
    tls_authority: security_options.TlsAuthority = None,
) -> None:
    """Show the same again and again, until Ctrl-C; into a pipe, one report after the other.

    A planner that is still measuring is waited for, and so is one that goes away later.
    """
    place = endpoint(address, tls_certificate, tls_key, tls_authority)
    interrupt_on_terminate()
    console = Console()
    try:
        if console.is_terminal:
            with Live(console=console, auto_refresh=False) as live:
                asyncio.run(
                    _ask_for_ever(place, interval, lambda view: live.update(view, refresh=True))
                )
        else:
            asyncio.run(_ask_for_ever(place, interval, console.print))
    except SequoiaError as error:
        config.fail(_complaint(address, error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


async def _ask_once(place: Endpoint) -> Report:
    channel = place.open()
    try:
        return await channel.call(GET_REPORT, None, timeout=CALL_SECONDS)
    finally:
        await channel.close()


async def _ask_for_ever(place: Endpoint, interval: float, put: Callable[[Group], None]) -> None:
    """Put a report every so many seconds.

    Raises:
        SequoiaError: there is no first report, and not because the planner is still measuring.
    """
    channel = place.open()
    report: Report | None = None
    is_waiting = False
    try:
        while True:
            complaint = ""
            try:
                report = await channel.call(GET_REPORT, None, timeout=CALL_SECONDS)
            except SequoiaError as error:
                complaint = _complaint(place.address, error)
                if report is None:
                    if error.reason is not Reason.NOT_READY:
                        raise
                    if not is_waiting:
                        say(complaint)
                    is_waiting = True
            if report is not None:
                put(Group(as_tables(report), Text(complaint, style="red")))
            await asyncio.sleep(interval)
    finally:
        await channel.close()


def _complaint(address: str, error: SequoiaError) -> str:
    if error.reason is Reason.NOT_READY:
        return f"{error.reason}: the planner at {address} is still measuring: {error.message}"
    return f"{error.reason}: no report from the planner at {address}: {error.message}"
