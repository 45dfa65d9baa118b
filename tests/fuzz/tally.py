"""What came of many inputs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sequoia.proc import read_field

SHOWN_FAILURES = 20
MIB = 2**20


@dataclass
class Tally:
    """Counts of one campaign.

    Attributes:
        outcomes: how inputs ended, by a word each.
        failures: inputs that ended as none may.
        slowest_seconds: of one input, on the processor where nothing else is waited for.
    """

    name: str
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest_seconds: float = 0.0
    slowest_input: str = ""

    @property
    def count(self) -> int:
        """Inputs so far."""
        return self.outcomes.total()

    def fail(self, label: str, data: bytes, problem: str) -> None:
        """Note an input that broke something, in full enough to repeat it."""
        self.failures.append(f"{self.name} {label}: {problem}: {data[:2000]!r}")

    def took(self, seconds: float, label: str, data: bytes) -> None:
        """Note how long an input took."""
        if seconds > self.slowest_seconds:
            self.slowest_seconds = seconds
            self.slowest_input = f"{label}, {len(data)} bytes"

    @contextmanager
    def on_processor(self, label: str, data: bytes) -> Iterator[None]:
        """Time what happens inside, on this thread's processor alone."""
        started = time.thread_time()
        yield
        self.took(time.thread_time() - started, label, data)

    def line(self) -> str:
        """One line of a report."""
        outcomes = ", ".join(f"{word} {count}" for word, count in self.outcomes.most_common(9))
        slowest = f"{self.slowest_seconds * 1000:.1f} ms ({self.slowest_input})"
        return f"{self.name:8} {self.count:7} inputs, slowest {slowest}: {outcomes}"


def resident_mib() -> float:
    """Memory of this process that is in use now."""
    return (read_field(Path("/proc/self/status"), "VmRSS") or 0) / MIB


def open_file_count() -> int:
    """Files and sockets that this process holds."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
