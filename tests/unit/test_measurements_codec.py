"""Measurements as they are stored: they read back, and nothing else is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.measurements import Measurements, Overhead
from planner.measurements_codec import (
    BYTES_LIMIT,
    LEAST_MS,
    MOST_MS,
    MeasurementsError,
    from_json,
    to_json,
)
from planner.scope import Scope, largest_tree

SCOPE = Scope(8, 4, (1, 2, 4))
MAX_NODES = 6
PASSES = st.floats(LEAST_MS, MOST_MS)
BESIDE = st.floats(0.0, MOST_MS)


@st.composite
def measured(draw: st.DrawFn) -> tuple[Measurements, Scope]:
    """What may be measured under some scope."""
    scope = Scope(
        draw(st.integers(1, 64)),
        draw(st.integers(1, 24)),
        pass_nodes=draw(st.none() | st.integers(1, 200)),
        times_steps=draw(st.booleans()),
    )
    loads = scope.batch_sizes[: draw(st.integers(1, 5))]
    sizes = {
        load: scope.node_counts(largest_tree(scope.max_nodes, scope.pass_nodes, load))
        for load in loads
    }
    keys = [(load, size) for load in loads for size in sizes[load]]
    target, drafts = ({key: draw(PASSES) for key in keys} for _ in range(2))
    beside = {
        (load, drawn): Overhead(draw(BESIDE), draw(BESIDE))
        for load in loads
        for drawn in (False, True)
    }
    return Measurements(target, drafts, beside, scope.max_nodes, scope.pass_nodes), scope


@settings(max_examples=30, deadline=None)
@given(measured())
def test_measurements_read_back(example: tuple[Measurements, Scope]) -> None:
    """To the last bit, as text or bytes."""
    measurements, scope = example
    text = to_json(measurements, scope)
    assert from_json(text, scope, measurements.max_nodes) == measurements
    assert from_json(text.encode(), scope, measurements.max_nodes) == measurements


def stored() -> dict[str, Any]:
    """Two of three loads, as they lie in Redis."""
    measurements = Measurements(
        {(load, nodes): 30.0 + nodes for load in (1, 2) for nodes in (1, 2, 6)},
        {(load, width): 2.0 for load in (1, 2) for width in (1, 2)},
        {(load, drawn): Overhead(1.0, 2.0) for load in (1, 2) for drawn in (False, True)},
        MAX_NODES,
    )
    content: dict[str, Any] = json.loads(to_json(measurements, SCOPE))
    return content


@pytest.mark.parametrize(
    "other",
    [
        replace(SCOPE, max_nodes=16),
        replace(SCOPE, max_levels=5),
        replace(SCOPE, batch_sizes=(1, 2)),
        replace(SCOPE, step=4),
        replace(SCOPE, pass_nodes=6),
        replace(SCOPE, times_steps=False),
    ],
    ids=["max_nodes", "max_levels", "batch_sizes", "step", "pass_nodes", "times_steps"],
)
def test_another_scope_has_other_measurements(other: Scope) -> None:
    """They are valid, and of no use."""
    text = json.dumps(stored())
    assert from_json(text, SCOPE, MAX_NODES)
    assert from_json(text, other, MAX_NODES) is None


FAULTS: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "a field less": ("draft_ms", lambda f: f.pop("draft_ms")),
    "a field more": ("colour", lambda f: f.update(colour=1)),
    "no list": ("target_ms", lambda f: f.update(target_ms={"1": 2})),
    "a short row": ("target_ms", lambda f: f["target_ms"][0].pop()),
    "no row": ("overheads", lambda f: f["overheads"].append(7)),
    "a text for a time": ("draft_ms", lambda f: f["draft_ms"][0].__setitem__(2, "2.0")),
    "a truth for a time": ("draft_ms", lambda f: f["draft_ms"][0].__setitem__(2, True)),
    "no time": ("target_ms", lambda f: f["target_ms"][0].__setitem__(2, float("nan"))),
    "an endless time": ("target_ms", lambda f: f["target_ms"][0].__setitem__(2, float("inf"))),
    "a time without an end": ("target_ms", lambda f: f["target_ms"][0].__setitem__(2, 10**400)),
    "a time below 0": ("overheads", lambda f: f["overheads"][0].__setitem__(3, -0.1)),
    "a pass of no time": ("target_ms", lambda f: f["target_ms"][0].__setitem__(2, 0.0)),
    "an unknown load": ("target_ms", lambda f: f["target_ms"].append([3, 1, 30.0])),
    "the first load missing": (
        "target_ms",
        lambda f: f.update(target_ms=[row for row in f["target_ms"] if row[0] != 1]),
    ),
    "nothing": ("target_ms", lambda f: f.update(target_ms=[], draft_ms=[], overheads=[])),
    "another load of the draft": ("draft_ms", lambda f: f["draft_ms"].append([4, 1, 2.0])),
    "an overhead less": ("overheads", lambda f: f["overheads"].pop()),
    "a number for a truth": ("overheads", lambda f: f["overheads"][0].__setitem__(1, 0)),
    "a row twice": ("target_ms", lambda f: f["target_ms"].append(f["target_ms"][0])),
    "an overhead twice": ("overheads", lambda f: f["overheads"].append(f["overheads"][0])),
    "no time for one node": ("draft_ms", lambda f: f["draft_ms"].pop(0)),
    "too many nodes": ("target_ms", lambda f: f["target_ms"].append([1, 7, 30.0])),
    "no nodes": ("draft_ms", lambda f: f["draft_ms"].append([1, 0, 30.0])),
    "another limit": ("max_nodes", lambda f: f.update(max_nodes=7)),
    "a limit that is a fraction": ("max_nodes", lambda f: f.update(max_nodes=6.0)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_by_its_field(fault: str) -> None:
    """Whatever is wrong with one of them, all are refused."""
    field, spoil = FAULTS[fault]
    content = stored()
    spoil(content)
    with pytest.raises(MeasurementsError, match=field):
        from_json(json.dumps(content), SCOPE, MAX_NODES)


@pytest.mark.parametrize(
    "text",
    [b"", b"\xff\x00", b"[]", b"7", b"{}", b"[" * 9000, b" " * (BYTES_LIMIT + 1), b"1" * 5000],
    ids=["empty", "bytes", "list", "number", "object", "deep", "long", "many digits"],
)
def test_what_is_no_object_is_refused(text: bytes) -> None:
    """Other bytes, other values, too much of anything."""
    with pytest.raises(MeasurementsError, match="measurements"):
        from_json(text, SCOPE, MAX_NODES)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
ROWS = st.lists(st.lists(LEAVES, min_size=2, max_size=5), max_size=3)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["max_nodes", "target_ms", "draft_ms", "overheads"]), LEAVES | ROWS)
def test_any_value_in_a_field_is_refused(field: str, value: Any) -> None:
    """With the one error that readers expect."""
    content = {**stored(), field: value}
    if content == stored():
        return
    with pytest.raises(MeasurementsError, match=field):
        from_json(json.dumps(content), SCOPE, MAX_NODES)
