"""The system, the undisturbed texts and the journal that all faults share."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO

import pytest
from rich.console import Console

from sequoia.cli.session import fetch_models
from sequoia.embedded_valkey import EmbeddedValkey
from sequoia.launcher import LocalSystem
from tests.chaos import requests
from tests.chaos.journal import PAGE, RESULTS, ROOT, Journal
from tests.chaos.load import CLIENTS, Load, Tokens
from tests.chaos.page import table
from tests.chaos.system import OPTIONS, Processes, hold_plan, running_system

JOURNAL = pytest.StashKey[Journal]()
WIDTH = 160


@pytest.fixture(scope="session")
def journal(pytestconfig: pytest.Config) -> Journal:
    """Where figures go."""
    return pytestconfig.stash.setdefault(JOURNAL, Journal())


@pytest.fixture(scope="session")
def errors() -> Iterator[IO[bytes]]:
    """The log of all role processes; CHAOS_LOG names a file to keep."""
    if path := os.environ.get("CHAOS_LOG"):
        with Path(path).open("wb") as kept:
            yield kept
    else:
        with tempfile.TemporaryFile() as forgotten:
            yield forgotten


@pytest.fixture(scope="session")
def system(errors: IO[bytes]) -> Iterator[LocalSystem]:
    """One of each role, as `sequoia up` runs them; each test leaves it serving."""
    fetch_models(OPTIONS)
    with running_system(OPTIONS, errors) as running:
        yield running


@pytest.fixture
def extra(system: LocalSystem, errors: IO[bytes]) -> Iterator[Processes]:
    """More role processes, on the system's Redis, for the length of one test."""
    with Processes(system.redis_url, errors) as beside:
        yield beside


@pytest.fixture
def alone(errors: IO[bytes]) -> Iterator[Processes]:
    """Role processes with a Redis of their own, which nobody starts again."""
    with EmbeddedValkey() as valkey, Processes(valkey.url, errors) as processes:
        yield processes


@pytest.fixture(scope="session")
def undisturbed(system: LocalSystem) -> list[Tokens]:
    """What the requests say when nothing happens."""
    return asyncio.run(_ask_all(system))


async def _ask_all(system: LocalSystem) -> list[Tokens]:
    await hold_plan(system.redis_url)
    rounds = len(requests.REQUESTS) // CLIENTS
    load = Load([system.address], requests.REQUESTS, None, rounds=rounds)
    async with load.running():
        pass
    assert not [one.problem for one in load.asked if one.problem]
    return [tuple(one.tokens) for one in sorted(load.asked, key=lambda one: one.number)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell the journal whether the test passed of which it has figures."""
    report = yield
    journal = item.config.stash.get(JOURNAL, None)
    if journal is not None and call.when == "call":
        journal.close_test(has_passed=report.passed)
    return report


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Show the table, and write the page from what passed."""
    journal = config.stash.get(JOURNAL, None)
    if journal is None:
        return
    found = [*journal.passed, *journal.failed]
    Console(width=WIDTH, file=terminalreporter._tw._file).print(table(found).as_rich())
    for figures in found:
        if figures.note:
            terminalreporter.write_line(f"{figures.fault}: {figures.note}")
    if journal.passed:
        journal.write()
        terminalreporter.write_line(
            f"written: {PAGE.relative_to(ROOT)}, {RESULTS.relative_to(ROOT)}"
        )
