"""What counting and timing say, with how far that may be off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from sequoia.acceptance.simulation import Text

SMALLEST_RATE = 1e-9  # below, a rate is a rounding of 0


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens per step over several texts.

    Attributes:
        per_step: all tokens over all steps.
        error: standard error of that, from how much the texts differ; 0 for a single text.
    """

    per_step: float
    error: float

    @classmethod
    def of(cls, texts: Sequence[Text]) -> Self:
        """Of at least one text that took a step: the ratio estimator of survey sampling."""
        tokens = np.array([len(text.token_ids) for text in texts], dtype=np.float64)
        steps = np.array([text.step_count for text in texts], dtype=np.float64)
        ratio = float(tokens.sum() / steps.sum())
        if len(texts) == 1:
            return cls(ratio, 0.0)
        residuals = tokens - ratio * steps
        variance = float((residuals**2).sum()) * len(texts) / (len(texts) - 1)
        return cls(ratio, math.sqrt(variance) / float(steps.sum()))

    def as_json(self) -> dict[str, float]:
        """For reports."""
        return {"tokens_per_step": self.per_step, "standard_error": self.error}


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """rate = first k^-exponent, the straight line through the logarithms; r2 is what it explains."""

    first: float
    exponent: float
    r2: float

    @classmethod
    def fitted(cls, rates: Sequence[float]) -> Self:
        """To the rates at k = 1, 2, ... by least squares; rates of 0 are left out.

        A constant where fewer than two are left.
        """
        found = np.asarray(rates, dtype=np.float64)
        k = np.flatnonzero(found > SMALLEST_RATE)
        if len(k) < 2:
            return cls(float(found[0]), 0.0, 1.0)
        x, y = np.log(k + 1), np.log(found[k])
        slope, intercept = np.polyfit(x, y, 1)
        spread = float(((y - y.mean()) ** 2).sum())
        unexplained = float(((y - slope * x - intercept) ** 2).sum())
        r2 = 1 - unexplained / spread if spread else 1.0
        return cls(float(np.exp(intercept)), float(-slope), r2)

    def at(self, k: int) -> float:
        """The rate at k."""
        return self.first * float(k**-self.exponent)
