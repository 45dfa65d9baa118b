"""What a run of the fault tests has found, on its way to the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

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
    """Figures by fault, and where they were measured."""

    environment: Environment = field(default_factory=lambda: Environment.gather("cpu"))
    figures: list[Figures] = field(default_factory=list)

    def add(self, figures: Figures) -> Figures:
        """One more fault."""
        self.figures.append(figures)
        return figures

    @property
    def missing(self) -> list[str]:
        """Faults that were not run."""
        found = {figures.fault for figures in self.figures}
        return [name for name in FAULTS if name not in found]

    def in_order(self) -> Sequence[Figures]:
        """As the list of faults has them."""
        return sorted(self.figures, key=lambda figures: list(FAULTS).index(figures.fault))

    def write(self) -> None:
        """The page and the figures behind it."""
        body = {
            "benchmark": "reliability",
            "environment": self.environment.as_json(),
            "settings": {"target": DEFAULT_TARGET, "dtype": DTYPE},
            "faults": [asdict(figures) for figures in self.in_order()],
        }
        RESULTS.write_text(f"{json.dumps(body, indent=1)}\n", encoding="utf-8")
        PAGE.write_text(page(self.environment, self.in_order()), encoding="utf-8")
