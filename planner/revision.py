"""Whether a tree in force is to be replaced: not for a gain that may be noise.

The tree and the best one are predicted under the same beliefs. The best one takes over only where it
is faster by a margin and by more than the beliefs are certain of. Compared are predicted times per
token and not estimates, because only a change that costs time is worth a new plan: near the optimum
trees differ a lot and cost the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from planner.calibration import UNSEEN, Calibration, Part, Place
from planner.estimator import Estimate, vector_of
from planner.latency import Latency
from planner.measurements import Measurements
from planner.planning import plan_tree
from planner.prediction import Prediction, expected_tokens, predict
from sequoia.plans import GREEDY, PlannedTree
from sequoia.tree import Topology

LEAST_GAIN = 0.03  # of the time per token
WRONG = math.log(1.2)  # of the tokens per step, more than estimates of few nodes err
LEAST_CERTAINTY = 2.0  # standard deviations that the gain must be above 0
BORROWED_DEVIATION = 0.02  # of a ratio from that of the place it was borrowed from
HAZARD_STEP = 1e-4  # of the derivatives


@dataclass(frozen=True, slots=True)
class Beliefs:
    """What planning rests on at a look.

    Attributes:
        estimates: of acceptance, by request class.
        measurements: the times as they are now.
        calibration: how sure these are.
        max_levels: most levels of a tree.
    """

    estimates: Mapping[str, Estimate]
    measurements: Measurements
    calibration: Calibration
    max_levels: int

    def latency(self, tree: PlannedTree) -> Latency:
        """The times of a step where the tree is planned."""
        return self.measurements.latency(tree.batch_size, tree.request_class != GREEDY)

    def predict(self, tree: PlannedTree) -> Prediction:
        """What the tree yields and costs now."""
        return predict(tree.topology, self.estimates[tree.request_class].vector, self.latency(tree))

    def best_tree(self, request_class: str, batch_size: int) -> PlannedTree:
        """The best tree for a class and a load."""
        vector = self.estimates[request_class].vector
        return plan_tree(self.measurements, request_class, vector, batch_size, self.max_levels)

    def renewed(self, tree: PlannedTree) -> PlannedTree:
        """The same tree with what is predicted now."""
        prediction = self.predict(tree)
        return replace(
            tree,
            expected_tokens_per_step=prediction.tokens,
            predicted_seconds_per_token=prediction.ms_per_token / 1000,
            predicted_seconds_per_token_without_speculation=self.latency(tree).plain_ms() / 1000,
        )


def is_clearly_slower(tree: PlannedTree, rival: PlannedTree, beliefs: Beliefs) -> bool:
    """Whether a tree costs so much more time per token than its rival that a new plan is due."""
    now, then = beliefs.predict(tree), beliefs.predict(rival)
    gain = math.log(now.ms_per_token / then.ms_per_token)
    if gain < math.log1p(LEAST_GAIN):
        return False
    doubt = math.hypot(_acceptance_doubt(tree, rival, beliefs), _time_doubt(tree, rival, beliefs))
    return gain > LEAST_CERTAINTY * doubt


def is_mispredicted(tree: PlannedTree, beliefs: Beliefs) -> bool:
    """Whether a tree is now believed to yield so many more or fewer tokens than the plan says.

    Times are left out: they rise and fall with whatever else the machine does.
    """
    return abs(math.log(beliefs.predict(tree).tokens / tree.expected_tokens_per_step)) > WRONG


def _acceptance_doubt(tree: PlannedTree, rival: PlannedTree, beliefs: Beliefs) -> float:
    """Standard deviation of the gain's logarithm that comes from the hazards, to first order."""
    estimate = beliefs.estimates[tree.request_class]
    shapes = tree.topology, rival.topology
    ranks = max(len(children) for shape in shapes for children in shape.children)
    variance = 0.0
    for rank in range(min(ranks, len(estimate.hazards))):
        step = HAZARD_STEP if estimate.hazards[rank] < 0.5 else -HAZARD_STEP  # stay within [0, 1]
        hazards = list(estimate.hazards)
        hazards[rank] += step
        slope = (_advantage(shapes, hazards) - _advantage(shapes, estimate.hazards)) / step
        variance += (slope * estimate.hazard_deviations[rank]) ** 2
    return math.sqrt(variance)


def _advantage(shapes: tuple[Topology, Topology], hazards: Sequence[float]) -> float:
    """Logarithm of how many times the first shape's tokens the second one yields."""
    first, second = (expected_tokens(shape, vector_of(hazards)) for shape in shapes)
    return math.log(second / first)


def _time_doubt(tree: PlannedTree, rival: PlannedTree, beliefs: Beliefs) -> float:
    """The same from the ratios of live to profiled times; what moves both trees alike is no doubt."""
    calibration = beliefs.calibration
    pulls: dict[tuple[Part, Place | None], float] = {}
    variance = 0.0
    for one, sign in ((tree, 1.0), (rival, -1.0)):
        place = Place(one.batch_size, len(one.parents) > 1)
        for part, share in _shares(one, beliefs).items():
            source = calibration.source(part, place)
            key = part, source
            pulls[key] = pulls.get(key, 0.0) + sign * share
            if source not in (None, place):
                variance += (share * BORROWED_DEVIATION) ** 2
    for (part, source), pull in pulls.items():
        ratio = calibration.ratio(part, source) if source else UNSEEN
        variance += (pull * ratio.deviation / ratio.mean) ** 2
    return math.sqrt(variance)


def _shares(tree: PlannedTree, beliefs: Beliefs) -> dict[Part, float]:
    """What every part contributes to the time of a step with the tree."""
    latency, widths = beliefs.latency(tree), [len(level) for level in tree.topology.levels]
    has_tree = len(widths) > 1
    milliseconds = {
        Part.TARGET: float(latency.target_ms.at([sum(widths)])[0]),
        Part.DRAFT: float(latency.draft_ms.at(widths[:-1]).sum()) if has_tree else 0.0,
        Part.BESIDE: latency.target_hop_ms + (latency.draft_hop_ms if has_tree else 0.0),
    }
    total = latency.step_ms(widths)
    return {part: ms / total for part, ms in milliseconds.items()}
