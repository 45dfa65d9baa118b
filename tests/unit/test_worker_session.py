from __future__ import annotations

from typing import Any

import pytest

from coordinator.seat import Seat
from coordinator.step import StepState
from coordinator.worker_session import WorkerSession
from sequoia.errors import CapacityError, UnknownSessionError
from sequoia.messages import SessionSettings
from sequoia.rpc.codec import VERIFY_TREE
from sequoia.settings import DrawRule, SamplingSettings
from tests.fleet import ONE, TWO, Fleet, found, seat

SETTINGS = SessionSettings(SamplingSettings(), DrawRule.GREEDY, 0, 3, 10)


def state(step: int = 0) -> StepState:
    """Where a request stands."""
    return StepState(step, (1, 2, 3), ())


def session(on: Seat) -> WorkerSession[Any, Any]:
    """A session on the worker of a seat."""
    return WorkerSession(on, VERIFY_TREE, "s", SETTINGS)


def prefill_counts(fleet: Fleet) -> list[int]:
    """Of both workers."""
    return [fleet.channels[address].prefill_count for address in (ONE, TWO)]


async def test_a_session_leaves_a_full_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others have filled it; where there is room it is opened."""
    monkeypatch.setattr("coordinator.worker_session.RETRY_SECONDS", 0.0)
    async with found(ONE, TWO) as (pool, fleet):
        one = session(seat(pool))
        full = one.worker.address
        fleet.channels[full].is_full = True
        await one.open_patiently(state(), patience=10.0)
        assert one.worker.address != full
        assert (one.moved_count, one.rebuilt_count) == (1, 0)
        assert sum(prefill_counts(fleet)) == 2


async def test_between_full_workers_a_session_is_in_no_haste(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It goes from one to the other no faster than it would ask a single one again."""
    monkeypatch.setattr("coordinator.worker_session.RETRY_SECONDS", 0.05)
    async with found(ONE, TWO) as (pool, fleet):
        for channel in fleet.channels.values():
            channel.is_full = True
        one = session(seat(pool))
        with pytest.raises(CapacityError):
            await one.open_patiently(state(), patience=0.2)
        assert 2 <= sum(prefill_counts(fleet)) <= 6


async def test_without_patience_a_full_worker_is_left_at_the_next_step() -> None:
    """A draft's session costs a step without a tree, and not one at every step."""
    async with found(ONE, TWO) as (pool, fleet):
        one = session(seat(pool))
        fleet.channels[one.worker.address].is_full = True
        with pytest.raises(CapacityError):
            await one.open_patiently(state(), patience=0.0)
        assert one.is_worth_trying
        await one.open_patiently(state(1), patience=0.0)
        assert one.moved_count == 1


async def test_where_all_are_full_nobody_is_asked_at_every_step() -> None:
    """Who can do without waits a moment before asking again."""
    async with found(ONE) as (pool, fleet):
        one = session(seat(pool))
        fleet.channels[ONE].is_full = True
        with pytest.raises(CapacityError):
            await one.open_patiently(state(), patience=0.0)
        assert not one.is_worth_trying


async def test_only_what_was_read_before_counts_as_rebuilt() -> None:
    """Neither attempts that failed nor a prefill for features that nobody had asked for."""
    async with found(ONE) as (pool, fleet):
        one = session(seat(pool))
        fleet.channels[ONE].is_full = True
        with pytest.raises(CapacityError):
            await one.open_patiently(state(), patience=0.0)
        fleet.channels[ONE].is_full = False
        await one.open_patiently(state(), patience=0.0)
        one.ask_for_features()
        await one.open_patiently(state(), patience=0.0)
        assert one.rebuilt_count == 0
        one._forget()
        await one.open_patiently(state(1), patience=0.0)
        assert one.rebuilt_count == 1


async def test_a_session_lost_on_the_worker_that_it_moved_to_stays_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker that was full is another one."""
    monkeypatch.setattr("coordinator.worker_session.RETRY_SECONDS", 0.0)
    async with found(ONE, TWO) as (pool, fleet):
        one = session(seat(pool))
        full = one.worker.address
        fleet.channels[full].is_full = True
        attempts = 0

        async def attempt() -> None:
            nonlocal attempts
            attempts += 1
            if one.worker.address == full:
                raise CapacityError("all sessions are busy")
            if attempts == 2:
                raise UnknownSessionError("lost")

        await one._patiently(attempt, 10.0)
        assert (attempts, one.moved_count) == (3, 1)
