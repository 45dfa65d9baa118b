"""`sequoia plan`: the best tree for an acceptance vector, and for measured times if given.

The vector file is `{"vector": [0, a_1, ..., a_k, reject]}`, the latency file
`{"draft_level_ms": 0.3, "target_ms": {"1": 10, "2": 10, ...}}`; other keys are comments. Only the
measured sizes are considered for a plan, because no time is known for the others.

The authors' implementation charges one draft pass per level (golden values in the tests), the
service makes one pass fewer, as nothing is drawn from the leaves. The first convention decides and
gives `ms_per_token` and `speedup`, so that figures compare with published ones; the same tree under
the second is shown as `ms_per_token_by_draft_calls` and `speedup_by_draft_calls`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from planner.latency import Curve, Latency
from planner.solver import SolvedTree, choose, solve
from planner.vector import SUM_SLACK, require_vector
from sequoia import config
from sequoia.tree import MAX_NODES, Topology

MAX_LEVELS = MAX_NODES


class _InputError(Exception):
    """Something the caller handed over is unusable; the message names it and its limit."""


def plan(
    acceptance: Annotated[
        Path, typer.Option(help='JSON: {"vector": [0, a_1, ..., a_k, reject]}.', metavar="FILE")
    ],
    max_nodes: Annotated[
        int, typer.Option(help=f"Most nodes, root included (1..{MAX_NODES}).", metavar="N")
    ],
    max_levels: Annotated[
        int, typer.Option(help=f"Most levels, root included (1..{MAX_LEVELS}).", metavar="L")
    ],
    latency: Annotated[
        Path | None,
        typer.Option(
            help='JSON: {"draft_level_ms": 0.3, "target_ms": {"1": 10, "2": 10, ...}}.',
            metavar="FILE",
        ),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print the best tree for measured acceptance, and for measured times if given."""
    try:
        _require_range("--max-nodes", max_nodes, MAX_NODES)
        _require_range("--max-levels", max_levels, MAX_LEVELS)
        vector = _read_vector(acceptance)
        if latency is None:
            report = _describe(solve(vector, max_nodes, max_levels))
        else:
            report = _plan_for(vector, _read_latency(latency), max_nodes, max_levels)
    except _InputError as error:
        config.fail(str(error), 2)
    if json_output:
        typer.echo(json.dumps(report))
    else:
        for name, value in report.items():
            typer.echo(f"{name}: {value:.6f}" if isinstance(value, float) else f"{name}: {value}")


def _describe(tree: SolvedTree) -> dict[str, object]:
    return {
        "nodes": tree.node_count,
        "levels": tree.levels,
        "expected_tokens": tree.expected_tokens,
        "parents": list(tree.parents),
    }


def _plan_for(
    vector: tuple[float, ...], times: Latency, max_nodes: int, max_levels: int
) -> dict[str, object]:
    """Choose by the convention of `times`, and cost the same tree by real draft calls as well."""
    choice = choose(vector, times, max_nodes, max_levels, sizes=times.target_ms.points)
    by_calls = dataclasses.replace(times, charge_leaves=False)
    widths = [len(level) for level in Topology(choice.tree.parents).levels]
    ms_by_calls = by_calls.step_ms(widths) / choice.tree.expected_tokens
    return _describe(choice.tree) | {
        "ms_per_token": choice.ms_per_token,
        "speedup": choice.speedup,
        "ms_per_token_by_draft_calls": ms_by_calls,
        "speedup_by_draft_calls": by_calls.plain_ms() / ms_by_calls,
    }


def _read_vector(path: Path) -> tuple[float, ...]:
    """The probabilities a_1..a_k of a vector file, the entries around them checked and cut off."""
    entries = _field(path, _read_object(path), "vector")
    if not isinstance(entries, list) or len(entries) < 3:
        raise _InputError(f"{path}: vector must be a list of at least 3 numbers [0, a_1, reject]")
    numbers = [_number(path, f"vector[{index}]", entry) for index, entry in enumerate(entries)]
    if numbers[0] != 0:
        raise _InputError(f"{path}: vector[0] is {numbers[0]}, must be the placeholder 0")
    if (total := math.fsum(numbers)) > 1 + SUM_SLACK:
        raise _InputError(f"{path}: vector sums to {total:.6g}, must not exceed 1")
    try:
        return require_vector(numbers[1:-1])
    except ValueError as error:
        raise _InputError(f"{path}: vector: {error}") from None


def _read_latency(path: Path) -> Latency:
    """The times of a latency file, under the convention of the authors' implementation."""
    fields = _read_object(path)
    draft = _number(path, "draft_level_ms", _field(path, fields, "draft_level_ms"))
    table = _field(path, fields, "target_ms")
    if not isinstance(table, dict) or "1" not in table:
        raise _InputError(f'{path}: target_ms must be an object of times that has the key "1"')
    for size in table:
        if not (size.isascii() and size.isdigit() and not size.startswith("0")):
            raise _InputError(f"{path}: target_ms key {size!r} must be a whole number from 1")
        if len(size) > len(str(MAX_NODES)) or int(size) > MAX_NODES:
            raise _InputError(f"{path}: target_ms key {size[:20]!r} must not exceed {MAX_NODES}")
    times = {int(size): _number(path, f'target_ms["{size}"]', ms) for size, ms in table.items()}
    for size, ms in times.items():
        if ms == 0:
            raise _InputError(f'{path}: target_ms["{size}"] is 0, must be above 0')
    return Latency(Curve.constant(draft), Curve.measured(times), charge_leaves=True)


def _read_object(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise _InputError(f"{path}: is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise _InputError(f"{path}: must hold a JSON object, not {type(content).__name__}")
    return content


def _field(path: Path, fields: Mapping[str, object], name: str) -> object:
    if name not in fields:
        found = ", ".join(sorted(fields)) or "none"
        raise _InputError(f"{path}: {name} is missing (keys found: {found})")
    return fields[name]


def _number(path: Path, name: str, value: object) -> float:
    """`value` as a float, if it is a finite JSON number that is not negative."""
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        number = math.inf
    if isinstance(value, bool) or not (math.isfinite(number) and number >= 0):
        raise _InputError(f"{path}: {name} is {str(value)[:40]}, must be a finite number >= 0")
    return number


def _require_range(flag: str, value: int, limit: int) -> None:
    if not 1 <= value <= limit:
        raise _InputError(f"{flag} is {value}, must be 1..{limit}")
