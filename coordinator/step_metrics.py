"""What a coordinator counts of steps; runs once a step, so every label is looked up beforehand."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram

from coordinator.acceptance import Acceptance, Trial
from coordinator.step import Step
from sequoia.metrics.instruments import POWERS_OF_TWO, SECONDS, places
from sequoia.observations import StepKind

DEPTH_LIMIT = 16
RANK_LIMIT = 8
DEPTHS = places(DEPTH_LIMIT)
RANKS = places(RANK_LIMIT)
TOKENS_PER_STEP = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32)
UNPLANNED = "unplanned"  # the plan has no tree for the class
KINDS = (*(kind.value for kind in StepKind), UNPLANNED)


class StepMetrics:
    """Instruments of steps, by request class."""

    def __init__(self, registry: CollectorRegistry) -> None:
        of_class = ("request_class",)
        self.count = Counter(
            "sequoia_steps",
            "Steps by how their tree relates to the plan's: planned, cut, alone, opening, probe; "
            "unplanned where it has none.",
            ("request_class", "kind"),
            registry=registry,
        )
        self.seconds = Histogram(
            "sequoia_step_seconds",
            "Time of a step, from the call to the draft to the target's verdict.",
            of_class,
            buckets=SECONDS,
            registry=registry,
        )
        self.part_seconds = Counter(
            "sequoia_step_part_seconds",
            "Time of steps by part: draft and target on their devices, beside what is neither.",
            ("part",),
            registry=registry,
        )
        self.tokens = Histogram(
            "sequoia_step_tokens",
            "Tokens that a step yielded, the bonus token included.",
            of_class,
            buckets=TOKENS_PER_STEP,
            registry=registry,
        )
        self.tree_nodes = Histogram(
            "sequoia_tree_nodes",
            "Nodes of a step's tree, the root included.",
            of_class,
            buckets=POWERS_OF_TWO,
            registry=registry,
        )
        self.depth_trials = Counter(
            "sequoia_acceptance_depth_trials",
            "Steps that came to try children at a depth of the tree; 1 is below the root.",
            ("request_class", "depth"),
            registry=registry,
        )
        self.depth_accepts = Counter(
            "sequoia_acceptance_depth_accepts",
            "Steps that accepted a child at a depth of the tree.",
            ("request_class", "depth"),
            registry=registry,
        )
        self.rank_trials = Counter(
            "sequoia_acceptance_rank_trials",
            "Children tried, by the rank in which they were drawn.",
            ("request_class", "rank"),
            registry=registry,
        )
        self.rank_accepts = Counter(
            "sequoia_acceptance_rank_accepts",
            "Children accepted, by the rank in which they were drawn.",
            ("request_class", "rank"),
            registry=registry,
        )
        self.parts = {
            part: self.part_seconds.labels(part) for part in ("draft", "target", "beside")
        }
        self._of_class: dict[str, _OfClass] = {}

    def record(self, request_class: str, step: Step, acceptance: Acceptance) -> None:
        """A step of a request of the class is over."""
        one = self._of_class.get(request_class)
        if one is None:
            one = self._of_class[request_class] = _OfClass(self, request_class)
        times = step.times
        one.kinds[step.circumstance.kind.value if step.circumstance else UNPLANNED].inc()
        one.seconds.observe(times.seconds)
        one.tokens.observe(len(acceptance.tokens))
        one.tree_nodes.observe(step.grown.tree.topology.node_count)
        self.parts["draft"].inc(times.draft_seconds)
        self.parts["target"].inc(times.target_seconds)
        beside = times.seconds - times.draft_seconds - times.target_seconds
        self.parts["beside"].inc(max(beside, 0.0))
        one.count_trials(acceptance.trials)


class _OfClass:
    """The instruments of one request class."""

    def __init__(self, metrics: StepMetrics, name: str) -> None:
        self.kinds = {kind: metrics.count.labels(name, kind) for kind in KINDS}
        self.seconds = metrics.seconds.labels(name)
        self.tokens = metrics.tokens.labels(name)
        self.tree_nodes = metrics.tree_nodes.labels(name)
        self.depth_trials = [metrics.depth_trials.labels(name, depth) for depth in DEPTHS]
        self.depth_accepts = [metrics.depth_accepts.labels(name, depth) for depth in DEPTHS]
        self.rank_trials = [metrics.rank_trials.labels(name, rank) for rank in RANKS]
        self.rank_accepts = [metrics.rank_accepts.labels(name, rank) for rank in RANKS]

    def count_trials(self, trials: Sequence[Trial]) -> None:
        """Count the visited nodes of one step, the root first."""
        for depth, trial in enumerate(trials):
            place = min(depth, DEPTH_LIMIT)
            self.depth_trials[place].inc()
            accepted = trial.accepted_rank
            tried = trial.child_count if accepted is None else accepted + 1
            for rank in range(min(tried, RANK_LIMIT)):
                self.rank_trials[rank].inc()
            if tried > RANK_LIMIT:
                self.rank_trials[RANK_LIMIT].inc(tried - RANK_LIMIT)
            if accepted is not None:
                self.depth_accepts[place].inc()
                self.rank_accepts[min(accepted, RANK_LIMIT)].inc()
