"""docs/reliability.md, written from what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from sequoia.bench.environment import Environment
from sequoia.bench.report import Table
from sequoia.config import DEFAULT_TARGET
from tests.chaos import requests
from tests.chaos.faults import FAULTS
from tests.chaos.figures import BACK_SHARE, WINDOW_SECONDS
from tests.chaos.load import CLIENTS
from tests.chaos.observation import BEFORE_SECONDS, LIMIT_SECONDS, Figures
from tests.chaos.system import DTYPE, HELD_PARENTS

TEMPLATE = Path(__file__).parent / "page_template.md"
HEADER = (
    "fault",
    "requests",
    "lost",
    "repeated",
    "differing",
    "tokens/s before",
    "lowest",
    "back after, s",
    "silence, s",
    "first token, s",
)


def page(environment: Environment, entries: Sequence[Mapping[str, Any]]) -> str:
    """The whole page, from the entries of the figures file and the machine of the last run."""
    names = {one.name for one in fields(Figures)}
    figures = [Figures(**{key: entry[key] for key in names}) for entry in entries]
    models = f"{DEFAULT_TARGET} and its draft, {DTYPE}"
    place = [("models", models), *environment.as_rows()]
    return TEMPLATE.read_text(encoding="utf-8").format(
        table=table(figures).as_markdown(),
        notes=notes(figures),
        runs=runs(environment, entries),
        place=Table("Where it ran", ("what", "which"), place, of_numbers=False).as_markdown(),
        limit=LIMIT_SECONDS,
        before=BEFORE_SECONDS,
        window=WINDOW_SECONDS,
        share=BACK_SHARE,
        clients=CLIENTS,
        requests=requests.REQUEST_COUNT,
        temperature=requests.TEMPERATURE,
        least=requests.LEAST_TOKENS,
        most=requests.MOST_TOKENS,
        nodes=len(HELD_PARENTS),
    )


def table(figures: Sequence[Figures]) -> Table:
    """One row for each fault."""
    return Table("Faults", HEADER, [_row(one) for one in figures])


def notes(figures: Sequence[Figures]) -> str:
    """What does not fit into the table."""
    told = [f"- {FAULTS[one.fault]}: {one.note}." for one in figures if one.note]
    return "\n".join([*told, ""])


def runs(environment: Environment, entries: Sequence[Mapping[str, Any]]) -> str:
    """What the last run did not measure, fault by fault; nothing after a whole run."""
    told = [
        f"- {FAULTS[entry['fault']]}: measured {entry['started_at']} at {entry['commit']}."
        for entry in entries
        if entry["started_at"] != environment.started_at
    ]
    missing = FAULTS.keys() - {entry["fault"] for entry in entries}
    told += [f"- {words}: not measured yet." for name, words in FAULTS.items() if name in missing]
    return (
        "\n".join(["Not from the run named at the end of the page:", "", *told, ""]) if told else ""
    )


def _row(one: Figures) -> tuple[str, ...]:
    return (
        FAULTS[one.fault],
        str(one.request_count),
        str(one.lost_count),
        str(one.repeated_count),
        str(one.differing_count),
        _shown(one.before, ".0f"),
        _shown(one.lowest_share, ".0%"),
        _shown(one.back_seconds, ".1f"),
        f"{one.longest_silence:.1f}",
        f"{one.longest_first:.1f}",
    )


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
