"""What runs of the fault tests have found, on its way to the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sequoia.bench.environment import Environment
from sequoia.config import DEFAULT_TARGET
from tests.chaos.faults import FAULTS
from tests.chaos.observation import Figures
from tests.chaos.page import page
from tests.chaos.system import DTYPE

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
RESULTS = ROOT / "benchmarks" / "results" / "reliability.json"


@dataclass(slots=True)
class Journal:
    """The figures of one run: of the test that runs now, of those that passed, and of those that failed."""

    environment: Environment = field(default_factory=lambda: Environment.gather("cpu"))
    passed: list[Figures] = field(default_factory=list)
    failed: list[Figures] = field(default_factory=list)
    _open: list[Figures] = field(default_factory=list)

    def add(self, figures: Figures) -> Figures:
        """What the test that runs now has found."""
        self._open.append(figures)
        return figures

    def close_test(self, *, has_passed: bool) -> None:
        """That test is over."""
        (self.passed if has_passed else self.failed).extend(self._open)
        self._open.clear()

    def write(self) -> None:
        """The figures file and the page; faults that did not run, or failed, keep their earlier figures."""
        earlier = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        body = merged(earlier, self.environment, self.passed)
        RESULTS.write_text(f"{json.dumps(body, indent=1)}\n", encoding="utf-8")
        PAGE.write_text(page(self.environment, body["faults"]), encoding="utf-8")


def merged(
    earlier: Mapping[str, Any], environment: Environment, passed: Sequence[Figures]
) -> dict[str, Any]:
    """The figures file after a run: each fault's last figures, with the run that they are from."""
    faults = {entry["fault"]: entry for entry in earlier.get("faults", ())}
    run = {"started_at": environment.started_at, "commit": environment.commit}
    faults |= {figures.fault: {**asdict(figures), **run} for figures in passed}
    return {
        "benchmark": "reliability",
        "environment": environment.as_json(),
        "settings": {"target": DEFAULT_TARGET, "dtype": DTYPE},
        "faults": [faults[name] for name in FAULTS if name in faults],
    }
