"""What a given tree would yield and cost; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.latency import Latency
from sequoia.tree import Topology


@dataclass(frozen=True, slots=True)
class Prediction:
    """A tree's expected tokens per step, and milliseconds of a step."""

    tokens: float
    step_ms: float

    @property
    def ms_per_token(self) -> float:
        """Milliseconds per token."""
        return self.step_ms / self.tokens


def expected_tokens(topology: Topology, vector: Sequence[float]) -> float:
    """Sum over the nodes of the product of the vector over their ranks; a rank it lacks counts as 0.

    Source: Sequoia, arXiv 2402.12374, section 3.1.
    """
    worths = [1.0] * topology.node_count
    for node, children in enumerate(topology.children):
        for rank, child in enumerate(children):
            worths[child] = worths[node] * vector[rank] if rank < len(vector) else 0.0
    return sum(worths)


def predict(topology: Topology, vector: Sequence[float], latency: Latency) -> Prediction:
    """What a tree yields and costs under a vector and the times of a load."""
    widths = [len(level) for level in topology.levels]
    return Prediction(expected_tokens(topology, vector), latency.step_ms(widths))
