"""Instruments of one part of a role, together; whoever serves the role registers them as one collector.

Every role object has instruments of its own, so that several roles can share a process.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

SECONDS = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0),
)
"""Bounds for steps and passes: half a millisecond to half a minute, which a streamed target takes."""

POWERS_OF_TWO = tuple(2**power for power in range(11))


class Instruments(Collector):
    """Instruments that belong together; subclasses make them with `registry=self.registry`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def collect(self) -> Iterable[Metric]:
        """All of them, as they stand now; called on the endpoint's thread."""
        return self.registry.collect()


def places(limit: int) -> Sequence[str]:
    """Label values for 1, 2, ... `limit`, and one for all beyond, so that their number is bounded."""
    return [*(str(place) for place in range(1, limit + 1)), f"{limit + 1}+"]
