"""Plans and acceptance counts as values; `sequoia.plan_store` keeps them in Redis."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from sequoia.messages import WorkerInfo
from sequoia.settings import DrawRule
from sequoia.tree import Topology, TreeError, level_order

PLAN_BYTES_LIMIT = 2**20
VERSION_LIMIT = 2**63  # what the wire holds
RANK_LIMIT = 64

# Requests that share a class share one acceptance vector: the rule matters, and so does whether the
# target's distribution is sharp or flat.
FLAT_FROM_TEMPERATURE = 0.8
GREEDY = "greedy"
REQUEST_CLASSES = (GREEDY, "sharp", "flat", "sharp-seeded", "flat-seeded")


class PlanError(ValueError):
    """A plan that is not valid; the message names the field."""


def request_class(temperature: float, draw_rule: DrawRule) -> str:
    """The class of requests with these settings."""
    if draw_rule is DrawRule.GREEDY:
        return GREEDY
    shape = "flat" if temperature >= FLAT_FROM_TEMPERATURE else "sharp"
    return f"{shape}-seeded" if draw_rule is DrawRule.COUPLED else shape


def pair_name(draft: WorkerInfo | None, target: WorkerInfo | None) -> str:
    """Names a pair of models in the statistics, whatever characters their references hold."""
    names = (
        f"{one.model_sha256 or one.model} {one.dtype}" if one else "" for one in (draft, target)
    )
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class PlannedTree:
    """The tree for one class of requests when `batch_size` of them are in flight.

    Raises:
        PlanError: naming the field that is out of range.
    """

    request_class: str
    batch_size: int
    parents: tuple[int, ...]
    expected_tokens_per_step: float
    predicted_seconds_per_token: float
    predicted_seconds_per_token_without_speculation: float

    def __post_init__(self) -> None:
        if self.request_class not in REQUEST_CLASSES:
            raise PlanError(f"request_class: unknown class {self.request_class!r:.64}")
        if not 1 <= self.batch_size <= 4096:
            raise PlanError(f"batch_size: {self.batch_size} is outside [1, 4096]")
        for name in (
            "expected_tokens_per_step",
            "predicted_seconds_per_token",
            "predicted_seconds_per_token_without_speculation",
        ):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise PlanError(f"{name}: {value} is not a finite number of at least 0")
        try:
            _ = self.topology
        except TreeError as error:
            raise PlanError(f"parents: {error}") from error

    @cached_property
    def topology(self) -> Topology:
        """The shape."""
        return Topology(self.parents)


@dataclass(frozen=True)
class Plan:
    """Which tree to grow under which circumstances; version 0 is the built-in plan."""

    version: int
    created_at: float  # seconds since the epoch
    trees: tuple[PlannedTree, ...]

    @cached_property
    def level_count(self) -> int:
        """Levels of the deepest tree, the root's included; 1 where there is none."""
        return max((tree.topology.level_count for tree in self.trees), default=1)

    def tree_for(self, request_class: str, batch_size: int) -> PlannedTree | None:
        """The tree of the class, planned for the least load that covers `batch_size`.

        Beyond the largest load planned for, that load's tree. None: the plan says nothing about
        the class.
        """
        mine = [tree for tree in self.trees if tree.request_class == request_class]
        covering = [tree for tree in mine if tree.batch_size >= batch_size]
        if covering:
            return min(covering, key=lambda tree: tree.batch_size)
        return max(mine, key=lambda tree: tree.batch_size, default=None)

    def to_json(self) -> str:
        """The plan as it lies in Redis."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """Read a plan, trusting nothing.

        Raises:
            PlanError: naming the field: not JSON, a missing or extra field, a wrong type, a number
                out of range, or a tree that is none.
        """
        if len(text) > PLAN_BYTES_LIMIT:
            raise PlanError(f"plan: {len(text)} bytes exceed {PLAN_BYTES_LIMIT}")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PlanError(f"plan: {type(error).__name__}: {error}") from error
        fields = _fields("plan", value, cls)
        version = _integer(fields, "version")
        if not 1 <= version < VERSION_LIMIT:
            raise PlanError(f"version: {version} is outside [1, {VERSION_LIMIT})")
        created_at = _number(fields, "created_at")
        trees = tuple(_planned_tree(tree) for tree in _list(fields, "trees"))
        if not trees:
            raise PlanError("trees: there are none")
        if len({(tree.request_class, tree.batch_size) for tree in trees}) < len(trees):
            raise PlanError("trees: two for the same class and batch size")
        return cls(version, created_at, trees)


def _fields(name: str, value: object, described: type[Plan | PlannedTree]) -> dict[str, Any]:
    """Check that a JSON value is an object with exactly the fields of a dataclass."""
    if not isinstance(value, dict):
        raise PlanError(f"{name}: not an object")
    wanted = set(described.__dataclass_fields__)
    for problem, names in (("missing", wanted - value.keys()), ("unknown", value.keys() - wanted)):
        if names:
            raise PlanError(f"{min(names)[:64]}: {problem} in the {name}")
    return value


def _integer(fields: Mapping[str, Any], name: str) -> int:
    value = fields[name]
    if not isinstance(value, int) or isinstance(value, bool):
        raise PlanError(f"{name}: {value!r:.64} is not an integer")
    return value


def _number(fields: Mapping[str, Any], name: str) -> float:
    value = fields[name]
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise PlanError(f"{name}: {value!r:.64} is not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number < 0:
        raise PlanError(f"{name}: {number} is not a finite number of at least 0")
    return number


def _list(fields: Mapping[str, Any], name: str) -> list[Any]:
    value = fields[name]
    if not isinstance(value, list):
        raise PlanError(f"{name}: not a list")
    return value


def _planned_tree(value: object) -> PlannedTree:
    fields = _fields("tree", value, PlannedTree)
    parents = tuple(_list(fields, "parents"))
    if not all(isinstance(parent, int) and not isinstance(parent, bool) for parent in parents):
        raise PlanError("parents: not all are integers")
    return PlannedTree(
        fields["request_class"],
        _integer(fields, "batch_size"),
        parents,
        _number(fields, "expected_tokens_per_step"),
        _number(fields, "predicted_seconds_per_token"),
        _number(fields, "predicted_seconds_per_token_without_speculation"),
    )


# Before any planner has spoken: a small tree that is nearly free on most hardware.
_BUILT_IN_PARENTS = level_order((-1, 0, 0, 1, 1, 3))
BUILT_IN_PLAN = Plan(
    0,
    0.0,
    tuple(PlannedTree(name, 4, _BUILT_IN_PARENTS, 0.0, 0.0, 0.0) for name in REQUEST_CLASSES)
    + tuple(PlannedTree(name, 4096, (-1,), 0.0, 0.0, 0.0) for name in REQUEST_CLASSES),
)


@dataclass(frozen=True, slots=True)
class AcceptanceCounts:
    """Per child rank, how often it came to a trial and how often it was accepted.

    A node counts for rank k when it had at least k children and the first k-1 were rejected.

    Attributes:
        trials: nodes that came to a trial at each rank, rank 1 first.
        accepts: those of them that accepted the child of that rank.

    Raises:
        ValueError: naming the rank: different lengths, a count below 0, more accepts than trials.
    """

    trials: tuple[int, ...] = (0,) * RANK_LIMIT
    accepts: tuple[int, ...] = (0,) * RANK_LIMIT

    def __post_init__(self) -> None:
        if len(self.trials) != len(self.accepts):
            raise ValueError(f"{len(self.trials)} trials, but {len(self.accepts)} accepts")
        for rank, (trials, accepts) in enumerate(
            zip(self.trials, self.accepts, strict=True), start=1
        ):
            for name, count in (("trials", trials), ("accepts", accepts)):
                if count < 0:
                    raise ValueError(f"{name} at rank {rank} is {count}, must be >= 0")
            if accepts > trials:
                raise ValueError(f"rank {rank} has {accepts} accepts in {trials} trials")
