"""What was accepted lately, and for long: two memories of one class of requests, and which one speaks.

Both hold counts that decay with every node that is added, so that a memory of w nodes is an average
over about the last w. The long one is precise and slow, the short one quick and noisy. As long as the
short one could be a sample of the long one, the long one speaks; when they part, traffic has
shifted, and the long one begins anew with the newest nodes.

Texts differ, and the nodes of one text are alike, so that a sample varies more than independent
nodes would. How much more is measured, on blocks as large as the short memory, and every test and
every error bar is wider by that factor (the dispersion of a quasi-binomial model).
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sequoia.plans import RANK_LIMIT

SHORT_NODES = 150.0
LONG_NODES = 4000.0
LEAST_DIFFERENCE = 12.0  # of the memories, in variances; noise is beyond it once in 2,000 looks
LEAST_SUSPICIONS = 2  # looks in a row: all texts in flight may be easy for a moment
LEAST_VARIANCE = 2.0  # of the accepts in a sample before it is compared
NEWEST_NODES = 40.0  # that a shifted class is judged by at first; the short memory holds older ones
FIRST_DISPERSION = 4.0
FIRST_BLOCKS = 10.0  # that the first guess stands for
BLOCKS_REMEMBERED = 100.0
LARGEST_BLOCK = 10.0  # a single block says no more, or a shift would teach us to overlook it

Floats = NDArray[np.float64]


class Counts(Protocol):
    """Trials and accepts by child rank, as `sequoia.plans.AcceptanceCounts` has them."""

    @property
    def trials(self) -> tuple[float, ...]:
        """Nodes that came to a trial at each rank, rank 1 first."""

    @property
    def accepts(self) -> tuple[float, ...]:
        """Those of them that accepted the child of that rank."""


class Tally:
    """Counts that decay: `trials` and `accepts` by rank, `[RANK_LIMIT]`, each node with its weight."""

    def __init__(self) -> None:
        self.trials: Floats = np.zeros(RANK_LIMIT)
        self.accepts: Floats = np.zeros(RANK_LIMIT)
        self._squares = 0.0  # sum of the squared weights of the nodes

    @property
    def nodes(self) -> float:
        """Nodes that came to a trial at rank 1."""
        return float(self.trials[0])

    @property
    def spread(self) -> float:
        """Nodes of equal weight that say as much as one counted here: 1 where all weigh the same.

        A share's variance is that of `nodes * spread` equal nodes (Kish's effective sample size).
        """
        return self.nodes / self._squares if self._squares else 1.0

    def add(self, trials: Floats, accepts: Floats, memory: float = math.inf) -> None:
        """Add counts, and forget what more than `memory` nodes have followed."""
        kept = math.exp(-float(trials[0]) / memory)
        self.trials = self.trials * kept + trials
        self.accepts = self.accepts * kept + accepts
        self._squares = self._squares * kept**2 + float(trials[0])
        self.limit(memory)

    def limit(self, nodes: float) -> None:
        """Stand for at most so many nodes, without a change of any share."""
        if self.nodes > nodes:
            share = nodes / self.nodes
            self.trials, self.accepts = self.trials * share, self.accepts * share
            self._squares *= share**2

    def copy(self) -> Tally:
        """Counts that go their own way."""
        twin = Tally()
        twin.trials, twin.accepts = self.trials.copy(), self.accepts.copy()
        twin._squares = self._squares
        return twin


class Memory:
    """Two memories, and the dispersion of the traffic."""

    def __init__(self) -> None:
        self.shift_count = 0
        self.nodes_seen = 0.0  # since the beginning, without those that were recalled
        self._newest, self._short, self._long, self._block = (Tally() for _ in range(4))
        self._suspicions = 0  # looks in a row at which the memories were apart
        self._surprise = FIRST_DISPERSION * FIRST_BLOCKS
        self._blocks = FIRST_BLOCKS

    @property
    def nodes(self) -> float:
        """Nodes that the counts which speak stand for."""
        return self._long.nodes

    @property
    def has_suspicion(self) -> bool:
        """Whether the memories were apart at the last look, which once may be chance."""
        return self._suspicions > 0

    @property
    def nodes_per_independent(self) -> float:
        """How many of the counted nodes say as much as one independent node."""
        return self.dispersion / self._long.spread

    @property
    def trials(self) -> tuple[float, ...]:
        """Of the counts that speak, nodes that came to a trial at each rank."""
        return tuple(self._long.trials.tolist())

    @property
    def accepts(self) -> tuple[float, ...]:
        """Those of them that accepted the child of that rank."""
        return tuple(self._long.accepts.tolist())

    @property
    def dispersion(self) -> float:
        """Variance of a short memory over that of as many independent nodes, at least 1."""
        return max(self._surprise / self._blocks, 1.0)

    def recall(self, counts: Counts) -> None:
        """Begin with what was counted in earlier times."""
        trials, accepts = _arrays(counts)
        self._long.add(trials, accepts, LONG_NODES)

    def observe(self, counts: Counts) -> bool:
        """Take in what was counted since the last look; says whether traffic has shifted."""
        trials, accepts = _arrays(counts)
        if not trials.any():
            return False
        before = self._long.copy()
        self.nodes_seen += float(trials[0])
        # A look that saw more nodes than a memory holds is taken whole.
        self._newest.add(trials, accepts, max(NEWEST_NODES, float(trials[0])))
        self._short.add(trials, accepts, max(SHORT_NODES, float(trials[0])))
        self._long.add(trials, accepts, LONG_NODES)
        if before.nodes < SHORT_NODES or self._short.nodes < SHORT_NODES / 2:
            return False
        if _difference(self._short, before) > self.dispersion * LEAST_DIFFERENCE:
            self._suspicions += 1
            if self._suspicions < LEAST_SUSPICIONS:
                return False
            self._long, self._block, self._suspicions = self._newest.copy(), Tally(), 0
            self.shift_count += 1
            return True
        self._suspicions = 0
        self._learn_dispersion(trials, accepts, before)
        return False

    def _learn_dispersion(self, trials: Floats, accepts: Floats, before: Tally) -> None:
        self._block.add(trials, accepts)
        if self._block.nodes < SHORT_NODES:
            return
        difference = _difference(self._block, before)
        self._block = Tally()
        kept = 1.0 - 1.0 / BLOCKS_REMEMBERED
        self._surprise = self._surprise * kept + min(difference, LARGEST_BLOCK)
        self._blocks = self._blocks * kept + 1.0


def _difference(sample: Tally, whole: Tally) -> float:
    """How far the shares accepted are apart, as a squared deviation in variances.

    Over all ranks together this is the log-rank test of survival analysis: excess accepts at all ranks
    are summed up, as a better or worse draft moves them the same way. Rank 1 is tested by itself too,
    because it weighs most in any tree; the larger of both counts.
    """
    shares = (whole.accepts + 0.5) / (whole.trials + 1.0)
    excess = sample.accepts - sample.trials * shares
    other = sample.trials / np.maximum(whole.trials, 1.0)
    doubts = 1.0 / sample.spread + other / whole.spread
    variances = sample.trials * shares * (1.0 - shares) * doubts
    tests = ((excess[0], variances[0]), (excess.sum(), variances.sum()))
    return max(
        (float(total**2 / variance) for total, variance in tests if variance >= LEAST_VARIANCE),
        default=0.0,
    )


def _arrays(counts: Counts) -> tuple[Floats, Floats]:
    """Trials and accepts `[RANK_LIMIT]` of counts that may be shorter."""
    trials, accepts = np.zeros(RANK_LIMIT), np.zeros(RANK_LIMIT)
    trials[: len(counts.trials)] = counts.trials
    accepts[: len(counts.accepts)] = counts.accepts
    return trials, accepts
