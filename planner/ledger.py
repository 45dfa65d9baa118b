"""What is new in Redis since the last look: coordinators only ever add to their sums."""

from __future__ import annotations

from sequoia.observations import Circumstance, StepsByCircumstance, StepSums
from sequoia.plans import AcceptanceCounts


class Ledger:
    """Remembers what was read last. Sums that fell were lost with Redis, and count from zero again."""

    def __init__(self) -> None:
        self._counts: dict[str, AcceptanceCounts] = {}
        self._version: int | None = None
        self._steps: dict[Circumstance, StepSums] = {}

    def knows(self, request_class: str) -> bool:
        """Whether counts of the class have been read before."""
        return request_class in self._counts

    def new_counts(self, request_class: str, read: AcceptanceCounts) -> AcceptanceCounts:
        """What was added to the counts of a class; all of them at the first look."""
        before = self._counts.get(request_class, AcceptanceCounts())
        self._counts[request_class] = read
        if any(now < then for now, then in zip(read.trials, before.trials, strict=True)):
            return read
        trials = tuple(now - then for now, then in zip(read.trials, before.trials, strict=True))
        accepts = (
            min(max(now - then, 0), tried)
            for now, then, tried in zip(read.accepts, before.accepts, trials, strict=True)
        )
        return AcceptanceCounts(trials, tuple(accepts))

    def new_steps(self, version: int, read: StepsByCircumstance) -> dict[Circumstance, StepSums]:
        """What was added to the sums of a plan's version; all of them at the first look."""
        if version != self._version:
            self._version, self._steps = version, {}
        new = {
            circumstance: sums.since(self._steps.get(circumstance, StepSums()))
            for circumstance, sums in read.items()
        }
        self._steps = dict(read)
        return {circumstance: sums for circumstance, sums in new.items() if sums.count > 0}
