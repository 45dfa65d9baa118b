"""Recorded traffic, put before the planner's mind as a planner would look at it.

At temperature 0 the trace knows what any tree would have met: for every place of a text and every
level of a tree, the rank of the target's own token among the draft's. Times are those of a profile, times
the noise of recorded steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.deliberation import PRIOR_WEIGHT, Deliberation
from planner.estimator import PRIOR, estimate
from planner.measurements import Measurements, Overhead
from planner.planning import plan_tree
from planner.prediction import predict
from sequoia.observations import Circumstance, StepKind, StepSums, StepTimes
from sequoia.plans import GREEDY, RANK_LIMIT, AcceptanceCounts, PlannedTree
from sequoia.tree import Topology

TRACE = Path(__file__).parent / "data" / "planner_trace.npz"
LOOK_SECONDS = 1.0
MAX_LEVELS = 8  # of the trace
MISSED = 255


@dataclass(frozen=True)
class Trace:
    """What was recorded; see `tests/data/README.md`."""

    texts: tuple[NDArray[np.uint8], ...]  # [places, levels] each
    noise: NDArray[np.float32]  # [steps, (draft, target, beside)], of which the means are 1
    measurements: Measurements

    @classmethod
    def load(cls) -> Trace:
        """Read it from the data of the tests."""
        with np.load(TRACE) as file:
            ends = np.cumsum(file["lengths"].astype(int))[:-1]
            measurements = Measurements(
                {(int(b), int(n)): float(ms) for b, n, ms in file["target_ms"]},
                {(int(b), int(n)): float(ms) for b, n, ms in file["draft_ms"]},
                {
                    (int(b), bool(samples)): Overhead(float(plain), float(tree))
                    for b, samples, plain, tree in file["overheads"]
                },
                max_nodes=64,
            )
            return cls(tuple(np.split(file["ranks"], ends)), file["noise"], measurements)


@dataclass(frozen=True)
class World:
    """What traffic is like for a while.

    Attributes:
        texts: those that requests get.
        measurements: the true times, which noise surrounds.
        hit_share: of the draft's hits, how many stay; the others are missed.
        load: requests in flight.
    """

    texts: tuple[NDArray[np.uint8], ...]
    measurements: Measurements
    hit_share: float = 1.0
    load: int = 1

    def slower(self, target: float = 1.0, draft: float = 1.0) -> World:
        """The same with passes that take so many times as long."""
        times = self.measurements
        slowed = replace(
            times,
            target_ms={key: target * ms for key, ms in times.target_ms.items()},
            draft_ms={key: draft * ms for key, ms in times.draft_ms.items()},
        )
        return replace(self, measurements=slowed)

    def thinned(self, text: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
        """A text on which the draft misses more."""
        if self.hit_share == 1.0:
            return text
        stays = random.random(len(text)) < self.hit_share
        return np.where(stays[:, None], text, MISSED).astype(np.uint8)

    def walks(
        self, topology: Topology, text: NDArray[np.uint8]
    ) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """Steps over a text: tokens, and per visited node its children and the rank of the token."""
        place = 0
        while place < len(text):
            tokens, trials = walk(topology, text[place:])
            yield tokens, trials
            place += tokens

    def best_tree(self, start: PlannedTree) -> PlannedTree:
        """What a planner would choose that knows the times, and the acceptance to the last text."""
        tree, shape = start, start.topology
        for _ in range(4):
            vector = estimate(self._counts(shape), PRIOR, PRIOR_WEIGHT).vector
            tree = plan_tree(self.measurements, GREEDY, vector, self.load, MAX_LEVELS)
            if tree.topology == shape or tree.topology.node_count == 1:
                break
            shape = tree.topology
        return tree

    def _counts(self, shape: Topology) -> AcceptanceCounts:
        """Trials and accepts over every text of this world."""
        random = np.random.default_rng(1)
        counts = Counting()
        for text in self.texts * 2:
            for _, visited in self.walks(shape, self.thinned(text, random)):
                counts.add(visited)
        return counts.take()

    def true_cost(self, tree: PlannedTree) -> float:
        """Milliseconds per token, were every text of this world generated with the tree."""
        random = np.random.default_rng(0)
        steps = tokens = 0
        for text in self.texts * 3:
            for yielded, _ in self.walks(tree.topology, self.thinned(text, random)):
                steps, tokens = steps + 1, tokens + yielded
        latency = self.measurements.latency(self.load, samples=False)
        return predict(tree.topology, (), latency).step_ms * steps / tokens


class Counting:
    """Trials and accepts by rank, as a coordinator counts them."""

    def __init__(self) -> None:
        self._trials = np.zeros(RANK_LIMIT, int)
        self._accepts = np.zeros(RANK_LIMIT, int)

    def add(self, visited: list[tuple[int, int]]) -> None:
        """Count the visited nodes of one step."""
        for children, rank in visited:
            self._trials[: min(rank + 1, children)] += 1
            self._accepts[rank : rank + 1] += rank < children

    def take(self) -> AcceptanceCounts:
        """All of it."""
        return AcceptanceCounts(tuple(self._trials.tolist()), tuple(self._accepts.tolist()))


def walk(topology: Topology, text: NDArray[np.uint8]) -> tuple[int, list[tuple[int, int]]]:
    """One step: how many tokens it yields, and at every visited node (children, rank of the token)."""
    node = 0
    trials: list[tuple[int, int]] = []
    for depth in range(len(text)):
        children = topology.children[node]
        if not children:
            return depth + 1, trials
        rank = int(text[depth, depth])
        trials.append((len(children), rank))
        if rank >= len(children):
            return depth + 1, trials
        node = children[rank]
    return len(text), trials


@dataclass
class Replay:
    """A planner's mind, the trees in force, and traffic at one load that it looks at."""

    trace: Trace
    seed: int
    load: int = 1
    mind: Deliberation = field(init=False)
    in_force: tuple[PlannedTree, ...] = field(init=False)
    changes: list[float] = field(default_factory=list)  # when, in seconds
    step_count: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.mind = Deliberation(self.trace.measurements, MAX_LEVELS)
        self.in_force = self.mind.plan()

    @property
    def tree(self) -> PlannedTree:
        """What is grown now."""
        return self.tree_of(self.in_force)

    def tree_of(self, trees: tuple[PlannedTree, ...]) -> PlannedTree:
        """The tree of the replayed class and load."""
        return next(
            tree for tree in trees if (tree.request_class, tree.batch_size) == (GREEDY, self.load)
        )

    def run(self, world: World, seconds: float = np.inf, steps: float = np.inf) -> None:
        """Traffic for a while, or for so many steps, with looks as the planner takes them."""
        until, last = self.seconds + seconds, self.step_count + steps
        texts = [self._text(world) for _ in range(self.load)]
        places = [0] * self.load
        while self.seconds < until and self.step_count < last:
            counts, sums, started = Counting(), StepSums(), self.seconds
            topology, parts = self.tree.topology, self._parts(world)
            while self.seconds < started + LOOK_SECONDS:
                for stream in range(self.load):
                    tokens, visited = walk(topology, texts[stream][places[stream] :])
                    counts.add(visited)
                    times = self._times(parts)
                    sums.record(tokens, times)
                    self.step_count += 1
                    places[stream] += tokens
                    if places[stream] >= len(texts[stream]):
                        texts[stream], places[stream] = self._text(world), 0
                self.seconds += times.seconds  # of one step of every stream
            self._look(counts.take(), sums)

    def _look(self, counts: AcceptanceCounts, sums: StepSums) -> None:
        circumstance = Circumstance(GREEDY, self.load, StepKind.PLANNED)
        self.mind.calibration.fade(LOOK_SECONDS)
        self.mind.observe_counts(GREEDY, counts)
        self.mind.observe_steps(self.in_force, {circumstance: sums})
        if revision := self.mind.revision(self.in_force):
            self.in_force = revision.trees
            self.changes.append(self.seconds)

    def _text(self, world: World) -> NDArray[np.uint8]:
        return world.thinned(world.texts[self.random.integers(len(world.texts))], self.random)

    def _parts(self, world: World) -> tuple[float, float, float]:
        """Seconds of the draft's passes, the target's, and what is beside them, without noise."""
        latency = world.measurements.latency(self.load, samples=False)
        widths = [len(level) for level in self.tree.topology.levels]
        has_tree = len(widths) > 1
        draft = float(latency.draft_ms.at(widths[:-1]).sum()) / 1000 if has_tree else 0.0
        target = float(latency.target_ms.at([sum(widths)])[0]) / 1000
        hop = latency.target_hop_ms + (latency.draft_hop_ms if has_tree else 0.0)
        return draft, target, hop / 1000

    def _times(self, parts: tuple[float, float, float]) -> StepTimes:
        draft, target, beside = (
            part * noise for part, noise in zip(parts, self._noise(), strict=True)
        )
        return StepTimes(draft + target + beside, draft, target, self.load, 100)

    def _noise(self) -> tuple[float, float, float]:
        """The noise of the next recorded step, from blocks of a hundred that begin anywhere."""
        if not self._block:
            first = int(self.random.integers(len(self.trace.noise) - 100))
            self._block.extend(self.trace.noise[first : first + 100].tolist())
        draft, target, beside = self._block.pop()
        return draft, target, beside

    @cached_property
    def _block(self) -> list[list[float]]:
        return []
