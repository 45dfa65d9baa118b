"""One generation by one system, as every system reports it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens to continue, by up to `max_new_tokens`; a token that ends a text ends it sooner."""

    token_ids: tuple[int, ...]
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Run:
    """A continuation of a prompt.

    Attributes:
        token_ids: the new tokens, the one that ends the text included.
        seconds: from the prompt's tokens to the last new one, reading the prompt included.
        step_count: passes of the target that gave new tokens.
    """

    token_ids: tuple[int, ...]
    seconds: float
    step_count: int

    @property
    def seconds_per_token(self) -> float:
        """Of the whole run, over the new tokens."""
        return self.seconds / max(len(self.token_ids), 1)

    @property
    def seconds_per_step(self) -> float:
        """Of the whole run, over the target's passes."""
        return self.seconds / max(self.step_count, 1)

    @property
    def tokens_per_step(self) -> float:
        """New tokens over the target's passes."""
        return len(self.token_ids) / max(self.step_count, 1)


@dataclass(frozen=True, slots=True)
class Decode(Run):
    """A continuation of which it is known when it began: reading the prompt is told apart.

    Attributes:
        first_seconds: from the prompt's tokens to the first new ones.
        first_count: how many came first, all from one pass.
        pass_seconds: of the target's passes, the mean; without reading the prompt.
    """

    first_seconds: float
    first_count: int
    pass_seconds: float

    @property
    def seconds_per_later_token(self) -> float | None:
        """Of all tokens but the first ones; None where there are no others."""
        count = len(self.token_ids) - self.first_count
        return (self.seconds - self.first_seconds) / count if count else None


System = Callable[[Prompt], Run]
