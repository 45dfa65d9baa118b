"""The loop's mind: what is believed of acceptance and times, and which plan follows; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from planner.calibration import Calibration, Part, Place
from planner.estimator import PRIOR, Estimate, distance, estimate
from planner.measurements import Measurements
from planner.memory import Memory
from planner.revision import Beliefs, is_clearly_slower, is_mispredicted
from sequoia.observations import StepKind, StepsByCircumstance
from sequoia.plans import REQUEST_CLASSES, AcceptanceCounts, PlannedTree

PRIOR_WEIGHT = 20.0  # nodes that the prior stands for at each rank
LEAST_NODES = 300.0  # of a class before its trees are judged; of a plan taken over, seen since then
LEAST_NODES_TO_END = 100.0  # of a class before it is planned without trees
LEAST_NODES_TO_RENEW = 1000.0  # of a class before its predictions are renewed
MOVED = 0.01  # change of a probability that may make another tree the best
SLOWED = 0.1  # change of a time that may do so, as a share of it and relative to the target's

Key = tuple[str, int]  # request class and load


@dataclass(frozen=True, slots=True)
class Revision:
    """The trees of a new plan, and why it is due."""

    trees: tuple[PlannedTree, ...]
    cause: str


class Deliberation:
    """Beliefs on one pair of models, on one pair of workers.

    A tree is judged where there is traffic, and solving takes longer than everything else here, so it
    is done anew only when what may make another tree the best has come in.
    """

    def __init__(
        self,
        measurements: Measurements,
        max_levels: int,
        memories: Mapping[str, Memory] | None = None,
    ) -> None:
        self.calibration = Calibration(measurements)
        self.memories = dict(memories or {name: Memory() for name in REQUEST_CLASSES})
        self._max_levels = max_levels
        self._has_inherited = False
        self._used: set[Key] = set()  # since the last time that trees were judged
        self._solved: dict[Key, PlannedTree] = {}
        self._solved_for: dict[Key, tuple[Estimate, dict[tuple[Part, Place], float]]] = {}

    def inherit(self) -> None:
        """The plan in force is that of a planner before this one, which knew what came last.

        All counts of earlier times together say less than it knew: they are of other traffic too. So a
        class's trees are judged only when enough has been seen to tell whether traffic is like that.
        """
        self._has_inherited = True

    def observe_counts(self, request_class: str, counts: AcceptanceCounts) -> bool:
        """Take in what was accepted since the last look; says whether traffic has shifted."""
        return self.memories[request_class].observe(counts)

    def observe_steps(self, trees: Sequence[PlannedTree], steps: StepsByCircumstance) -> None:
        """Take in the steps since the last look, under the plan of these trees."""
        planned = {_key(tree): tree for tree in trees}
        for circumstance, sums in steps.items():
            key = circumstance.request_class, circumstance.batch_size
            if key in planned:
                self._used.add(key)
                if circumstance.kind is StepKind.PLANNED:
                    self.calibration.observe(planned[key], sums)

    def estimate(self, request_class: str) -> Estimate:
        """What is believed of a class's acceptance."""
        memory = self.memories[request_class]
        return estimate(memory, PRIOR, PRIOR_WEIGHT, memory.nodes_per_independent)

    def beliefs(self) -> Beliefs:
        """All that a plan rests on now."""
        return Beliefs(
            {name: self.estimate(name) for name in REQUEST_CLASSES},
            self.calibration.calibrated(),
            self.calibration,
            self._max_levels,
        )

    def plan(self) -> tuple[PlannedTree, ...]:
        """The best tree for every class and load, whatever is in force."""
        beliefs = self.beliefs()
        return tuple(
            beliefs.best_tree(name, batch_size)
            for name in REQUEST_CLASSES
            for batch_size in beliefs.measurements.batch_sizes
        )

    def revision(self, in_force: Sequence[PlannedTree]) -> Revision | None:
        """The trees of a new plan if one is due.

        It is due when a tree that is used is clearly slower than another would be. The class's trees
        for loads that are not used follow on this occasion; by themselves they are none. It is due
        as well when such a tree stays, and yields far more or fewer tokens than the plan says.
        """
        beliefs = self.beliefs()
        used, self._used = self._used, set()
        judged = [tree for tree in in_force if _key(tree) in used and self._may_judge(tree)]
        rivals = [(tree, self._rival(_key(tree), beliefs)) for tree in judged]
        slow = {
            _key(tree)
            for tree, rival in rivals
            if self._may_follow(rival) and is_clearly_slower(tree, rival, beliefs)
        }
        if not slow and not any(self._is_known_wrong(tree, beliefs) for tree in judged):
            return None
        classes = {name for name, _ in slow}
        trees: list[PlannedTree] = []
        for tree in in_force:
            successor = tree
            if _key(tree) in slow or (tree.request_class in classes and _key(tree) not in used):
                rival = self._rival(_key(tree), beliefs)
                successor = rival if self._may_follow(rival) else tree
            trees.append(beliefs.renewed(successor))
        return Revision(tuple(trees), "faster trees" if slow else "predictions renewed")

    def _may_judge(self, tree: PlannedTree) -> bool:
        """A first plan stands until there is some evidence on its class, rather than follow it down."""
        memory = self.memories[tree.request_class]
        if memory.shift_count > 0:
            return True
        if self._has_inherited and (memory.nodes_seen < LEAST_NODES or memory.has_suspicion):
            return False
        return memory.nodes >= LEAST_NODES

    def _is_known_wrong(self, tree: PlannedTree, beliefs: Beliefs) -> bool:
        """Whether the plan is wrong about what a tree yields, as far as many nodes say."""
        nodes = self.memories[tree.request_class].nodes
        return nodes >= LEAST_NODES_TO_RENEW and is_mispredicted(tree, beliefs)

    def _may_follow(self, rival: PlannedTree) -> bool:
        """Without trees little can be learned, so the last one does not go on the newest nodes alone."""
        return (
            len(rival.parents) > 1 or self.memories[rival.request_class].nodes >= LEAST_NODES_TO_END
        )

    def _rival(self, key: Key, beliefs: Beliefs) -> PlannedTree:
        """The best tree, as of the last time that this may have changed."""
        if key not in self._solved or self._has_moved(key, beliefs):
            self._solved[key] = beliefs.best_tree(*key)
            self._solved_for[key] = beliefs.estimates[key[0]], self._relative()
        return self._solved[key]

    def _has_moved(self, key: Key, beliefs: Beliefs) -> bool:
        estimated, ratios = self._solved_for[key]
        if distance(estimated.vector, beliefs.estimates[key[0]].vector) > MOVED:
            return True
        return any(
            abs(ratio / ratios[part, place] - 1.0) > SLOWED
            for (part, place), ratio in self._relative().items()
            if place.batch_size == key[1]
        )

    def _relative(self) -> dict[tuple[Part, Place], float]:
        """All ratios over that of the target: a factor in all of them moves no plan."""
        means = self.calibration.means()
        return {
            (part, place): ratio / means[Part.TARGET, place]
            for (part, place), ratio in means.items()
        }


def _key(tree: PlannedTree) -> Key:
    return tree.request_class, tree.batch_size
