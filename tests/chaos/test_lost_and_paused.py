"""A role that is killed and started again, or that does nothing for a while."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from sequoia.launcher import LocalSystem
from tests.chaos.journal import Journal
from tests.chaos.load import UNAVAILABLE, Load, Tokens
from tests.chaos.marks import CHAOS
from tests.chaos.observation import observe
from tests.chaos.requests import REQUESTS
from tests.chaos.signals import kill, pause
from tests.chaos.system import get_ready, until_serving

pytestmark = CHAOS

Disturbance = Callable[[LocalSystem], Awaitable[str]]


def killed(module: str) -> Disturbance:
    """kill -9; the launcher starts it again."""

    async def disturb(system: LocalSystem) -> str:
        await kill(lambda: system.role(module).pid)
        seconds = await until_serving(system.role(module))
        return f"serves again {seconds:.1f} s after it was started again"

    return disturb


def paused(module: str) -> Disturbance:
    """Ten seconds in which it does nothing, and its connections stay open."""

    async def disturb(system: LocalSystem) -> str:
        await pause(lambda: system.role(module).pid)
        return ""

    return disturb


async def without_redis(system: LocalSystem) -> str:
    """kill -9 of Valkey; it comes back empty."""
    await kill(lambda: system.process_ids().get("valkey"))
    return ""


@pytest.mark.parametrize(
    ("fault", "disturb"),
    [
        ("draft_killed", killed("draft_service")),
        ("target_killed", killed("target_service")),
        ("redis_killed", without_redis),
        ("target_paused", paused("target_service")),
        ("draft_paused", paused("draft_service")),
    ],
)
async def test_no_request_is_lost_or_changed(
    system: LocalSystem,
    undisturbed: list[Tokens],
    journal: Journal,
    fault: str,
    disturb: Disturbance,
) -> None:
    """Every request says what it says undisturbed, no client asks again, and throughput comes back."""
    await get_ready(system)
    load = Load([system.address], REQUESTS, undisturbed)

    figures = journal.add(await observe(fault, load, lambda: disturb(system)))

    figures.require_nothing_lost()
    assert figures.back_seconds is not None


async def test_after_a_lost_coordinator_the_same_seed_gives_the_same_text(
    system: LocalSystem, undisturbed: list[Tokens], journal: Journal
) -> None:
    """Clients see UNAVAILABLE, ask again, and get the undisturbed text."""
    await get_ready(system)
    load = Load([system.address], REQUESTS, undisturbed, repeated=UNAVAILABLE)

    disturb = killed("coordinator")
    figures = journal.add(await observe("coordinator_killed", load, lambda: disturb(system)))

    figures.require_nothing_lost()
    assert figures.back_seconds is not None
    assert sum(one.attempts_refused > 0 for one in load.asked) >= load.clients
