"""From recordings to figures: throughput with its spread, latency percentiles, ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from sequoia.bench.interleave import Spread
from sequoia.bench.serve.load import Recording

PLANNED, NONE, ALWAYS = "planned", "none", "always"
MODES = (PLANNED, NONE, ALWAYS)


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of pooled samples, in seconds."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Self | None:
        """None where there are no samples."""
        return cls(*np.percentile(samples, (50, 95, 99)).tolist()) if samples else None

    def as_json(self) -> dict[str, float]:
        """For reports."""
        return {"p50": self.p50, "p95": self.p95, "p99": self.p99}


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the service.

    Attributes:
        clients: that each send one request after another; 0 for arrivals at random.
        capacity_share: of the arrivals at random, of the greatest closed-loop throughput.
        rate: the same as requests a second.
    """

    clients: int = 0
    capacity_share: float = 0.0
    rate: float = 0.0

    @property
    def label(self) -> str:
        """For tables."""
        if self.clients:
            return f"{self.clients} stream{'s' if self.clients > 1 else ''}"
        return f"open, {self.capacity_share:.0%} of capacity"


@dataclass(frozen=True, slots=True)
class Cell:
    """One mode under one load, over all repetitions."""

    mode: str
    load: Load
    tokens_per_second: Spread
    first_token: Percentiles | None
    between_tokens: Percentiles | None
    tokens_per_step: float
    sessions_in_target: float | None
    finished_count: int
    refused_count: int

    @classmethod
    def of(cls, mode: str, load: Load, recordings: Sequence[Recording]) -> Self:
        """Throughput by repetition; samples of latency pooled."""
        in_target = [it for r in recordings if (it := r.sessions_in_target) is not None]
        steps = sum(r.step_count for r in recordings)
        return cls(
            mode,
            load,
            Spread.of([r.tokens_per_second for r in recordings]),
            Percentiles.of([it for r in recordings for it in r.first_token]),
            Percentiles.of([it for r in recordings for it in r.between_tokens]),
            sum(r.token_count for r in recordings) / max(steps, 1),
            Spread.of(in_target).median if in_target else None,
            sum(len(r.usages) for r in recordings),
            sum(r.refused_count for r in recordings),
        )

    def as_json(self) -> dict[str, object]:
        """For reports."""
        return {
            "mode": self.mode,
            "concurrency": self.load.clients or None,
            "capacity_share": self.load.capacity_share or None,
            "requests_per_second": self.load.rate or None,
            "tokens_per_second": self.tokens_per_second.median,
            "spread": self.tokens_per_second.interquartile,
            "seconds_to_first_token": self.first_token and self.first_token.as_json(),
            "seconds_between_tokens": self.between_tokens and self.between_tokens.as_json(),
            "tokens_per_step": self.tokens_per_step,
            "sessions_in_target_pass": self.sessions_in_target,
            "requests_finished": self.finished_count,
            "requests_refused": self.refused_count,
        }


def make_ratios(cells: Sequence[Cell]) -> dict[str, float]:
    """Throughput over throughput, above 1 where the first is faster.

    Each other mode over `none` under every load, and in every mode each number of streams over one.
    """
    rates: Mapping[tuple[str, str], float] = {
        (cell.mode, cell.load.label): cell.tokens_per_second.median for cell in cells
    }
    one = Load(clients=1).label
    by_mode, by_load = {}, {}
    for cell in cells:
        label, rate = cell.load.label, cell.tokens_per_second.median
        if cell.mode != NONE and rates[NONE, label]:
            by_mode[f"{cell.mode} / {NONE}, {label}"] = rate / rates[NONE, label]
        if cell.load.clients > 1 and rates.get((cell.mode, one)):
            by_load[f"{label} / {one}, {cell.mode}"] = rate / rates[cell.mode, one]
    return by_mode | by_load
