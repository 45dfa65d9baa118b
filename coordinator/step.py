"""One step of a request: where it begins, what came back, and under which circumstances."""

from __future__ import annotations

from dataclasses import dataclass

from sequoia.messages import Features, GrownTree, Verdict
from sequoia.observations import Circumstance, StepKind, StepTimes
from sequoia.plans import PlannedTree


@dataclass(frozen=True, slots=True)
class StepState:
    """Where a request stands at the beginning of a step."""

    step: int
    token_ids: tuple[int, ...]  # committed; the last one is the root
    accepted: tuple[int, ...]  # nodes of the last step's tree
    features: Features | None = None  # of all committed tokens but the last, for the draft


@dataclass(frozen=True, slots=True)
class Step:
    """A tree, and the target's word on it.

    Attributes:
        grown: the tree.
        verdict: the target's word.
        plan_version: of the plan that was in force when the step began.
        circumstance: what the plan had to say on the step; None where it was nothing.
        times: what the step took.
    """

    grown: GrownTree
    verdict: Verdict
    plan_version: int
    circumstance: Circumstance | None
    times: StepTimes


def circumstance(
    planned: PlannedTree | None, request_class: str, node_count: int, was_disturbed: bool
) -> Circumstance | None:
    """Compare a step's tree with the planned one.

    Args:
        planned: the plan's tree for the class and the load; None: the plan has none.
        request_class: of the request.
        node_count: of the tree that was grown.
        was_disturbed: a session was opened in the step, or a call repeated.
    """
    if planned is None:
        return None
    wanted = len(planned.parents)
    if was_disturbed:
        kind = StepKind.OPENING
    elif node_count == wanted:
        kind = StepKind.PLANNED
    elif node_count == 1:
        kind = StepKind.ALONE
    else:
        kind = StepKind.CUT if node_count < wanted else StepKind.PROBE
    return Circumstance(request_class, planned.batch_size, kind)
