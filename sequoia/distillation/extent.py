"""How far a corpus or a training is, and how far it is to go."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Extent:
    """How far a corpus is, over all runs.

    Attributes:
        tokens: tokens in it, but for the openings that conversations share.
        conversations: conversations that were begun.
        pieces: pieces of foreign text that were read.
        seconds: spent on it.
    """

    tokens: int = 0
    conversations: int = 0
    pieces: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Limit:
    """Where a corpus ends: at the first of both."""

    tokens: float = float("inf")
    seconds: float = float("inf")

    def reached(self, extent: Extent) -> bool:
        """Whether a corpus is that far."""
        return extent.tokens >= self.tokens or extent.seconds >= self.seconds

    def part(self, extent: Extent) -> float:
        """The part of the way, 0 to 1."""
        return min(1.0, max(extent.tokens / self.tokens, extent.seconds / self.seconds))
