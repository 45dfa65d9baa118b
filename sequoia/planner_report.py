"""What the planner says of itself: beliefs, and predictions against what coordinators measured."""

from __future__ import annotations

from dataclasses import dataclass

from sequoia.plans import Plan, PlannedTree


@dataclass(frozen=True, slots=True)
class ClassReport:
    """What is believed of the acceptance of a class of requests.

    Attributes:
        request_class: which class.
        node_count: nodes that the belief rests on, beside the prior.
        shift_count: how often traffic has shifted since the planner began.
        dispersion: how many nodes of this traffic say as much as one independent node.
        vector: a_1..a_k.
        deviations: the standard deviation of every a_k.
    """

    request_class: str
    node_count: float
    shift_count: int
    dispersion: float
    vector: tuple[float, ...]
    deviations: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TreeReport:
    """A tree in force, with its predictions, and what was measured since it came in force.

    Attributes:
        tree: the tree and what was predicted of it.
        step_count: steps that went as planned.
        other_step_count: steps of the class at this load that did not: shorter trees near a text's
            end, no tree because the draft was away or not wanted, sessions that were opened, probes.
        tokens_per_step: over about the last thousand steps as planned; 0 before any.
        seconds_per_token: likewise.
        sessions_per_pass: sessions that shared a pass of the target's; likewise.
        prefix_length: tokens before the tree; likewise.
        cause: acceptance or latency, where the prediction is off by more than a tenth; else empty.
    """

    tree: PlannedTree
    step_count: int
    other_step_count: int
    tokens_per_step: float
    seconds_per_token: float
    sessions_per_pass: float
    prefix_length: float
    cause: str


@dataclass(frozen=True, slots=True)
class TimeReport:
    """How much longer a part of a step takes than was profiled.

    Attributes:
        part: target, draft or beside (what is neither).
        batch_size: the load.
        has_tree: of steps with a tree, or without one.
        ratio: measured over profiled time.
        deviation: the standard deviation of the ratio.
    """

    part: str
    batch_size: int
    has_tree: bool
    ratio: float
    deviation: float


@dataclass(frozen=True, slots=True)
class Report:
    """The plan in force, what it rests on, and what became of it."""

    plan: Plan
    classes: tuple[ClassReport, ...]
    trees: tuple[TreeReport, ...]
    times: tuple[TimeReport, ...]
