"""How much a run may spend, and how it is divided between writing and learning."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sequoia.distillation.extent import Limit
from sequoia.distillation.failures import DistillError

WRITING_PART = 0.6
"""Distinct text is worth more than passes over it."""
EPOCHS = 4
"""How often every token of a corpus is learned from where tokens are the budget."""
DEFAULT_MINUTES = 60.0


@dataclass(frozen=True, slots=True)
class Budget:
    """Tokens of the corpus, or minutes of both stages together; one of them."""

    tokens: int | None = None
    minutes: float | None = None

    @classmethod
    def read(cls, tokens: int | None, minutes: float | None) -> Budget | None:
        """What was asked for; None where nothing was.

        Raises:
            DistillError: it is both, or nothing that can be spent.
        """
        if tokens is not None and minutes is not None:
            raise DistillError("cannot go with --minutes: one of them ends the run", "--tokens")
        if tokens is not None and tokens <= 0:
            raise DistillError(f"{tokens} is not above 0", "--tokens")
        if minutes is not None and not (math.isfinite(minutes) and minutes > 0):
            raise DistillError(f"{minutes:g} is not a number above 0", "--minutes")
        return None if tokens is minutes is None else cls(tokens, minutes)

    @property
    def writing(self) -> Limit:
        """How far the corpus goes."""
        if self.tokens is not None:
            return Limit(tokens=self.tokens)
        return Limit(seconds=WRITING_PART * self._seconds)

    @property
    def reading(self) -> Limit:
        """How far foreign text may bring the corpus before the target writes."""
        whole = self.writing
        return Limit(whole.tokens / 2, whole.seconds / 2)

    def learning(self, corpus_seconds: float, example_tokens: int) -> Limit:
        """How far learning goes.

        Args:
            corpus_seconds: spent on the corpus.
            example_tokens: of the texts that are learned from.
        """
        if self.tokens is not None:
            return Limit(tokens=EPOCHS * example_tokens)
        rest = self._seconds - corpus_seconds
        return Limit(seconds=max(rest, 1.0))

    def following(self, earlier: Budget) -> Budget:
        """This one, checked to go on from an earlier one.

        Raises:
            DistillError: it counts something else, or is smaller.
        """
        if (self.tokens is None) != (earlier.tokens is None):
            counted = "--minutes" if earlier.tokens is None else "--tokens"
            raise DistillError(f"the run that is resumed counts {counted}", counted)
        for option, now, before in (
            ("--tokens", self.tokens, earlier.tokens),
            ("--minutes", self.minutes, earlier.minutes),
        ):
            if now is not None and before is not None and now < before:
                raise DistillError(f"{now:g} is less than the {before:g} of before", option)
        return self

    @property
    def _seconds(self) -> float:
        return 60 * (self.minutes if self.minutes is not None else DEFAULT_MINUTES)
