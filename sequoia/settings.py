"""How tokens are drawn: the settings of a request, and the rule that follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from sequoia.errors import InvalidArgumentError


class DrawRule(Enum):
    """How tokens are drawn, and so how a tree is checked (ADR 0001)."""

    GREEDY = "greedy"
    WITHOUT_REPLACEMENT = "without-replacement"
    COUPLED = "coupled"


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """What turns logits into the distribution that tokens are drawn from.

    Raises:
        InvalidArgumentError: a value is not a number or outside its limits.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def __post_init__(self) -> None:
        _require("temperature", self.temperature, 0.0, 100.0)
        _require("top_k", self.top_k, 0, 2**31 - 1)
        _require("top_p", self.top_p, 0.0, 1.0, above_low=True)
        _require("min_p", self.min_p, 0.0, 1.0)
        _require("repetition_penalty", self.repetition_penalty, 0.0, 10.0, above_low=True)
        _require("presence_penalty", self.presence_penalty, -10.0, 10.0)
        _require("frequency_penalty", self.frequency_penalty, -10.0, 10.0)

    @property
    def is_greedy(self) -> bool:
        """Whether the distribution is a single token."""
        return self.temperature == 0.0

    @property
    def cuts_off(self) -> bool:
        """Whether unlikely tokens are left out."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0

    @property
    def has_penalties(self) -> bool:
        """Whether the distribution depends on which tokens came before."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)


def _require(field: str, value: float, low: float, high: float, above_low: bool = False) -> None:
    if math.isnan(value) or not low <= value <= high or (above_low and value == low):
        limit = f"{'(' if above_low else '['}{low:.10g}, {high:.10g}]"
        raise InvalidArgumentError(
            f"sampling.{field}", f"{value:.10g} is outside {limit}", limit, value
        )
