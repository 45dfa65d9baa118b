"""Predicted against measured: what the trees in force were said to do, and what they do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from sequoia.observations import StepKind, StepsByCircumstance, StepSums
from sequoia.plans import PlannedTree

STEPS_REMEMBERED = 1000.0
LEAST_STEPS = 100.0
TOLERANCE = math.log(1.1)  # of a prediction, before it counts as off
SETTLED = math.log(1.05)  # it counts as right again
CERTAINTY = 2.0  # standard deviations of the tokens per step

Key = tuple[str, int]  # request class and batch size


@dataclass(frozen=True, slots=True)
class Offence:
    """A prediction that is off.

    Attributes:
        tree: with its predictions.
        cause: acceptance, where the tokens per step are off; latency, where the time of a step is.
        tokens_per_step: measured.
        seconds_per_token: measured.
    """

    tree: PlannedTree
    cause: str
    tokens_per_step: float
    seconds_per_token: float


@dataclass(slots=True)
class Record:
    """What was seen of one tree since it came in force.

    Attributes:
        recent: sums over about the last steps that went as planned.
        step_count: all steps that went as planned.
        other_count: steps of the class at this load that did not.
        cause: why the prediction is off; empty while it is not.
    """

    recent: StepSums = field(default_factory=StepSums)
    step_count: float = 0.0
    other_count: float = 0.0
    cause: str = ""

    def add(self, steps: StepSums) -> None:
        """Take in more steps that went as planned."""
        fading = self.recent.scaled(math.exp(-steps.count / STEPS_REMEMBERED))
        fading.add(steps)
        excess = max(fading.count / STEPS_REMEMBERED, 1.0)
        self.recent = fading.scaled(1.0 / excess)
        self.step_count += steps.count

    @property
    def tokens_per_step(self) -> float:
        """Measured; 0 before any step."""
        return self.recent.tokens / self.recent.count if self.recent.count else 0.0

    @property
    def seconds_per_token(self) -> float:
        """Measured; 0 before any step."""
        return self.recent.seconds / self.recent.tokens if self.recent.tokens else 0.0


class Accuracy:
    """The records of the trees in force."""

    def __init__(self) -> None:
        self._trees: dict[Key, PlannedTree] = {}
        self.records: dict[Key, Record] = {}

    def begin(self, trees: Sequence[PlannedTree]) -> None:
        """A new plan is in force: its predictions are measured from here on."""
        self._trees = {(tree.request_class, tree.batch_size): tree for tree in trees}
        self.records = {key: Record() for key in self._trees}

    def observe(self, steps: StepsByCircumstance) -> list[Offence]:
        """Take in steps under the plan in force; the predictions that have turned out to be off."""
        for circumstance, sums in steps.items():
            record = self.records.get((circumstance.request_class, circumstance.batch_size))
            if record is None:
                continue
            if circumstance.kind is StepKind.PLANNED:
                record.add(sums)
            else:
                record.other_count += sums.count
        return [offence for key in self._trees if (offence := self._offence(key))]

    def _offence(self, key: Key) -> Offence | None:
        tree, record = self._trees[key], self.records[key]
        cause = cause_of_error(tree, record, SETTLED if record.cause else TOLERANCE)
        was_off, record.cause = record.cause, cause
        if not cause or was_off:
            return None
        return Offence(tree, cause, record.tokens_per_step, record.seconds_per_token)


def cause_of_error(tree: PlannedTree, record: Record, tolerance: float) -> str:
    """What is wrong with a tree's prediction, by more than the tolerance and chance; empty: nothing.

    The time per token is the time of a step over the tokens that it yields, so that an error of the one
    is made of errors of the other two.
    """
    recent = record.recent
    if recent.count < LEAST_STEPS or recent.seconds <= 0 or recent.tokens <= 0:
        return ""
    tokens = record.tokens_per_step
    variance = max(recent.tokens_squared / recent.count - tokens**2, 0.0)
    doubt = CERTAINTY * math.sqrt(variance / recent.count) / tokens
    predicted_step = tree.predicted_seconds_per_token * tree.expected_tokens_per_step
    of_tokens = math.log(tokens / tree.expected_tokens_per_step)
    of_time = math.log(recent.seconds / recent.count / predicted_step)
    is_off = max(abs(of_tokens) - doubt, abs(of_time), abs(of_time - of_tokens) - doubt) > tolerance
    if not is_off:
        return ""
    return "acceptance" if abs(of_tokens) > abs(of_time) else "latency"
