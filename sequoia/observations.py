"""What coordinators saw of their steps, as sums that add up over steps, coordinators and time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum

from sequoia.plans import REQUEST_CLASSES

BATCH_SIZE_LIMIT = 4096


class StepKind(StrEnum):
    """How a step's tree relates to the one that the plan has for its class and load.

    Only the times of steps as planned say what the plan costs.
    """

    PLANNED = "planned"
    CUT = "cut"  # fewer nodes: the text's end is near, or the draft had no more tokens
    ALONE = "alone"  # the root alone in spite of a planned tree: no draft, or none wanted
    OPENING = "opening"  # in it a session was opened, or a call repeated
    PROBE = "probe"  # a tree in spite of a planned root alone


@dataclass(frozen=True, slots=True)
class Circumstance:
    """What a step's tree was planned for, and what became of it.

    Raises:
        ValueError: naming the field that is out of range.
    """

    request_class: str
    batch_size: int
    kind: StepKind

    def __post_init__(self) -> None:
        if self.request_class not in REQUEST_CLASSES:
            raise ValueError(f"request_class: unknown class {self.request_class!r:.64}")
        if not 1 <= self.batch_size <= BATCH_SIZE_LIMIT:
            raise ValueError(f"batch_size: {self.batch_size} is outside [1, {BATCH_SIZE_LIMIT}]")


@dataclass(frozen=True, slots=True)
class StepTimes:
    """The seconds of one step, and what its passes were over.

    Attributes:
        seconds: of the whole step, from the call to the draft to the target's verdict.
        draft_seconds: on the draft's device, of all levels.
        target_seconds: on the target's device.
        session_count: sessions that shared the target's pass.
        prefix_length: tokens before the tree.
    """

    seconds: float
    draft_seconds: float
    target_seconds: float
    session_count: int
    prefix_length: int


SUM_LIMIT = 1e18
ROUNDING = 1e-6  # of sums that were added up elsewhere


@dataclass(slots=True)
class StepSums:
    """Sums over steps; `beside` is what a step took beside its passes, transport above all.

    The sums of squares say how far the means can be trusted.
    """

    count: float = 0.0
    tokens: float = 0.0
    tokens_squared: float = 0.0
    draft_seconds: float = 0.0
    draft_squared: float = 0.0
    target_seconds: float = 0.0
    target_squared: float = 0.0
    beside_seconds: float = 0.0
    beside_squared: float = 0.0
    sessions: float = 0.0
    prefix_tokens: float = 0.0

    @property
    def seconds(self) -> float:
        """Of the whole steps."""
        return self.draft_seconds + self.target_seconds + self.beside_seconds

    @property
    def is_plausible(self) -> bool:
        """Whether steps can have had these sums: each yields a token at least."""
        return self.tokens >= self.count * (1.0 - ROUNDING)

    def record(self, tokens: int, times: StepTimes) -> None:
        """Add one step that yielded so many tokens."""
        beside = max(times.seconds - times.draft_seconds - times.target_seconds, 0.0)
        self.count += 1
        self.tokens += tokens
        self.tokens_squared += tokens * tokens
        self.draft_seconds += times.draft_seconds
        self.draft_squared += times.draft_seconds * times.draft_seconds
        self.target_seconds += times.target_seconds
        self.target_squared += times.target_seconds * times.target_seconds
        self.beside_seconds += beside
        self.beside_squared += beside * beside
        self.sessions += times.session_count
        self.prefix_tokens += times.prefix_length

    def add(self, other: StepSums, factor: float = 1.0) -> None:
        """Add other sums, `factor` times."""
        for name in SUM_NAMES:
            setattr(self, name, getattr(self, name) + factor * getattr(other, name))

    def scaled(self, factor: float) -> StepSums:
        """The sums of as many steps times `factor`."""
        return StepSums(*(factor * getattr(self, name) for name in SUM_NAMES))

    def since(self, before: StepSums) -> StepSums:
        """What was added to `before`; all of it where the sums began anew meanwhile."""
        if self.count < before.count:
            return self.scaled(1.0)
        return StepSums(
            *(max(getattr(self, name) - getattr(before, name), 0.0) for name in SUM_NAMES)
        )


SUM_NAMES = tuple(field.name for field in fields(StepSums))

StepsByCircumstance = Mapping[Circumstance, StepSums]


def circumstance_of(text: str) -> Circumstance | None:
    """Read `CLASS:BATCH:KIND`, None where it is none."""
    name, _, rest = text.partition(":")
    batch, _, kind = rest.partition(":")
    if not (batch.isascii() and batch.isdecimal() and len(batch) <= len(str(BATCH_SIZE_LIMIT))):
        return None
    try:
        return Circumstance(name, int(batch), StepKind(kind))
    except ValueError:
        return None


def sum_of(text: str) -> float:
    """A sum as it was stored; 0 for what cannot be one."""
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) and 0.0 <= value <= SUM_LIMIT else 0.0
