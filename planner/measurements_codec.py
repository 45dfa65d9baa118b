"""Measurements as they lie in Redis, together with the scope under which they were taken; pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from planner.measurements import Measurements, Overhead
from planner.scope import Scope

BYTES_LIMIT = 2**16
# No pass is shorter or longer; far beyond what is measured, and far from where fractions overflow.
LEAST_MS = 1e-6
MOST_MS = 1e7
_FIELDS = {"scope", "max_nodes", "target_ms", "draft_ms", "overheads"}


class MeasurementsError(ValueError):
    """Measurements that are not valid; the message names the field."""


def to_json(measurements: Measurements, scope: Scope) -> str:
    """Measurements that were taken under a scope."""
    content = {
        "scope": asdict(scope),
        "max_nodes": measurements.max_nodes,
        "target_ms": [[*key, ms] for key, ms in measurements.target_ms.items()],
        "draft_ms": [[*key, ms] for key, ms in measurements.draft_ms.items()],
        "overheads": [
            [*key, overhead.plain_ms, overhead.tree_ms]
            for key, overhead in measurements.overheads.items()
        ],
    }
    return json.dumps(content)


def from_json(text: str | bytes, scope: Scope, max_nodes: int) -> Measurements | None:
    """Read measurements, trusting nothing; None where they were taken under another scope.

    Args:
        text: what was stored.
        scope: what is worth measuring now.
        max_nodes: the largest tree that the workers take within it.

    Raises:
        MeasurementsError: naming the field: not JSON, a missing or extra field, a wrong type, a load
            or size that the scope does not have, one that is missing or there twice, or a time that is none.
    """
    fields = _fields(text)
    if fields["scope"] != json.loads(json.dumps(asdict(scope))):
        return None
    if fields["max_nodes"] != max_nodes or not _is_integer(fields["max_nodes"]):
        raise MeasurementsError(f"max_nodes: {fields['max_nodes']!r:.64} is not {max_nodes}")
    target_ms = _times(fields, "target_ms", max_nodes)
    draft_ms = _times(fields, "draft_ms", max_nodes)
    overheads = _overheads(fields)
    loads = sorted({batch for batch, _ in target_ms})
    if not loads or tuple(loads) != scope.batch_sizes[: len(loads)]:
        raise MeasurementsError(f"target_ms: {loads!r:.64} are not the first loads of the scope")
    if loads != sorted({batch for batch, _ in draft_ms}):
        raise MeasurementsError("draft_ms: not the loads of target_ms")
    if overheads.keys() != {(batch, samples) for batch in loads for samples in (False, True)}:
        raise MeasurementsError("overheads: not the loads of target_ms")
    try:
        return Measurements(target_ms, draft_ms, overheads, max_nodes, scope.pass_nodes)
    except ValueError as error:
        raise MeasurementsError(f"target_ms, draft_ms: {error}") from error


def _fields(text: str | bytes) -> Mapping[str, Any]:
    if len(text) > BYTES_LIMIT:
        raise MeasurementsError(f"measurements: more than {BYTES_LIMIT} bytes")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MeasurementsError(f"measurements: {type(error).__name__}: {error}") from error
    if not isinstance(value, dict):
        raise MeasurementsError("measurements: not an object")
    for problem, names in (
        ("missing", _FIELDS - value.keys()),
        ("unknown", value.keys() - _FIELDS),
    ):
        if names:
            raise MeasurementsError(f"{min(names)[:64]}: {problem} in the measurements")
    return value


def _times(fields: Mapping[str, Any], name: str, max_nodes: int) -> dict[tuple[int, int], float]:
    """Milliseconds by load and number of nodes."""
    times: dict[tuple[int, int], float] = {}
    for batch, nodes, ms in _rows(fields, name, 3):
        if not (_is_integer(batch) and _is_integer(nodes) and 1 <= nodes <= max_nodes):
            raise MeasurementsError(f"{name}: {batch!r:.32} times {nodes!r:.32} nodes are no pass")
        if (batch, nodes) in times:
            raise MeasurementsError(f"{name}: {batch!r:.32} times {nodes} nodes are there twice")
        times[batch, nodes] = _milliseconds(name, ms, LEAST_MS)
    return times


def _overheads(fields: Mapping[str, Any]) -> dict[tuple[int, bool], Overhead]:
    name = "overheads"
    found: dict[tuple[int, bool], Overhead] = {}
    for batch, samples, plain_ms, tree_ms in _rows(fields, name, 4):
        if not (_is_integer(batch) and isinstance(samples, bool)):
            raise MeasurementsError(f"{name}: {batch!r:.32}, {samples!r:.32} is no kind of step")
        if (batch, samples) in found:
            raise MeasurementsError(f"{name}: {batch!r:.32}, {samples} is there twice")
        plain, tree = (_milliseconds(name, ms, 0.0) for ms in (plain_ms, tree_ms))
        found[batch, samples] = Overhead(plain, tree)
    return found


def _rows(fields: Mapping[str, Any], name: str, length: int) -> list[list[Any]]:
    rows = fields[name]
    if not isinstance(rows, list):
        raise MeasurementsError(f"{name}: not a list")
    for row in rows:
        if not isinstance(row, list) or len(row) != length:
            raise MeasurementsError(f"{name}: {row!r:.64} is not a row of {length}")
    return rows


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _milliseconds(name: str, value: object, least: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise MeasurementsError(f"{name}: {value!r:.64} is not a number")
    if not least <= value <= MOST_MS:  # nor is NaN
        raise MeasurementsError(f"{name}: {value!r:.64} ms are outside [{least}, {MOST_MS}]")
    return float(value)
