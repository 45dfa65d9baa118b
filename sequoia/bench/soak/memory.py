"""What processes hold, sampled over time, and whether it grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from sequoia.proc import read_field


@dataclass(frozen=True, slots=True)
class Sample:
    """One process at one moment.

    Attributes:
        seconds: since the beginning.
        pid: the process, which changes when a role is started again.
        rss_bytes: resident memory.
        pss_bytes: the same with shared pages divided by their users; 0 where the kernel does not tell.
    """

    seconds: float
    pid: int
    rss_bytes: int
    pss_bytes: int


@dataclass(frozen=True, slots=True)
class Drift:
    """How the resident memory of a role moved once it had settled.

    Attributes:
        first_bytes: median of the first third of the settled samples.
        last_bytes: of the last third.
        change: the last over the first, less 1.
        fitted_change: of a straight line through all settled samples, from its start to its end.
    """

    first_bytes: float
    last_bytes: float
    change: float
    fitted_change: float


def read_sample(pid: int, seconds: float) -> Sample | None:
    """What the kernel says of a process; None when it is gone."""
    folder = Path(f"/proc/{pid}")
    rss = read_field(folder / "status", "VmRSS")
    if rss is None:
        return None
    return Sample(seconds, pid, rss, read_field(folder / "smaps_rollup", "Pss") or 0)


def measure_drift(samples: Sequence[Sample], settled_after: float) -> Drift | None:
    """How memory moved from `settled_after` seconds on; None where there are fewer than 3 samples."""
    settled = [sample for sample in samples if sample.seconds >= settled_after]
    third = len(settled) // 3
    if not third:
        return None
    first = median(sample.rss_bytes for sample in settled[:third])
    last = median(sample.rss_bytes for sample in settled[-third:])
    times = np.array([sample.seconds for sample in settled])
    sizes = np.array([sample.rss_bytes for sample in settled], dtype=np.float64)
    slope, start = np.polyfit(times - times[0], sizes, 1).tolist()
    fitted = slope * float(times[-1] - times[0]) / start
    return Drift(first, last, last / first - 1.0, fitted)
