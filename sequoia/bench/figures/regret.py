"""Figure 6: the planner's regret, its tree against the best of all that were tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sequoia.bench.environment import Environment
from sequoia.bench.figures.drawing import caption, doubling_axis, subplots
from sequoia.bench.figures.held import Stretch
from sequoia.bench.report import Result, Table
from sequoia.tree import Topology

STEM = "figure-6-regret"
SIZES = (2, 4, 6, 8, 12, 16, 24, 32, 64)
LEVELS = (2, 3, 4, 5, 6, 8)
WORTH_REPEATING = 1.15  # slower than the best by more than this, a tree is timed once only
RESAMPLES = 2000
RESAMPLING_SEED = 1


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A tree, and what its texts took.

    Attributes:
        topology: the tree.
        turns: by repetition, then prompt.
    """

    topology: Topology
    turns: Sequence[Sequence[Stretch]]

    @property
    def seconds(self) -> NDArray[np.float64]:
        """`[repetitions, prompts]`."""
        return np.array([[one.seconds for one in turn] for turn in self.turns])

    @property
    def tokens(self) -> NDArray[np.float64]:
        """Of each prompt, the mean over repetitions: `[prompts]`."""
        counts = np.array([[one.token_count for one in turn] for turn in self.turns])
        means: NDArray[np.float64] = counts.mean(axis=0)
        return means

    @property
    def seconds_per_token(self) -> float:
        """Median over repetitions of every prompt, all prompts over all tokens."""
        return _pace(self.seconds, self.tokens)

    @property
    def tokens_per_step(self) -> float:
        """Of all turns."""
        return Stretch.total([one for turn in self.turns for one in turn]).tokens_per_step


@dataclass(frozen=True, slots=True)
class Regret:
    """How much longer a token takes with one tree than with another, as a share; 0.03 is 3 %.

    Attributes:
        share: with the best of all trees, as measured.
        low: of 95 % of resamplings of prompts and repetitions, for these two trees.
        high: likewise.
        held_out: with the tree that is best in the other repetitions, the mean over repetitions, so that
            luck does not pick the best; None where there was one repetition.
    """

    share: float
    low: float
    high: float
    held_out: float | None


def find_best(candidates: Sequence[Candidate]) -> Candidate:
    """The one of least time per token among those that were timed most often."""
    most = max(len(candidate.turns) for candidate in candidates)
    often = [candidate for candidate in candidates if len(candidate.turns) == most]
    return min(often, key=lambda candidate: candidate.seconds_per_token)


def measure_regret(choice: Candidate, candidates: Sequence[Candidate]) -> Regret:
    """The regret of a choice among candidates, itself one of them."""
    best = find_best(candidates)
    share = choice.seconds_per_token / best.seconds_per_token - 1
    generator = np.random.default_rng(RESAMPLING_SEED)
    shares = []
    for _ in range(RESAMPLES):
        prompts = generator.integers(choice.seconds.shape[1], size=choice.seconds.shape[1])
        paces = [
            _pace(
                one.seconds[_resampled(generator, len(one.turns))][:, prompts], one.tokens[prompts]
            )
            for one in (choice, best)
        ]
        shares.append(paces[0] / paces[1] - 1)
    low, high = np.percentile(shares, (2.5, 97.5)).tolist() if choice is not best else (0.0, 0.0)
    return Regret(share, low, high, _held_out(choice, candidates))


def _held_out(choice: Candidate, candidates: Sequence[Candidate]) -> float | None:
    repetitions = len(choice.turns)
    rivals = [one for one in candidates if len(one.turns) == repetitions]
    if repetitions < 2:
        return None
    shares = []
    for number in range(repetitions):
        others = [index for index in range(repetitions) if index != number]
        best = min(rivals, key=lambda one: _pace(one.seconds[others], one.tokens))
        paces = [_pace(one.seconds[[number]], one.tokens) for one in (choice, best)]
        shares.append(paces[0] / paces[1] - 1)
    return float(np.mean(shares))


def _pace(seconds: NDArray[np.float64], tokens: NDArray[np.float64]) -> float:
    """Seconds per token from seconds `[repetitions, prompts]` and tokens `[prompts]`."""
    return float(np.median(seconds, axis=0).sum() / tokens.sum())


def _resampled(generator: np.random.Generator, count: int) -> NDArray[np.int64]:
    return generator.integers(count, size=count)


def make_result(
    choice: Candidate,
    candidates: Sequence[Candidate],
    settings: Mapping[str, object],
    environment: Environment,
) -> Result:
    """The report; `choice` is one of `candidates`."""
    regret, best = measure_regret(choice, candidates), find_best(candidates)

    def draw(figure: Figure) -> None:
        (axes,) = subplots(figure, 1)
        for depth in sorted({one.topology.level_count for one in candidates}):
            line = sorted(
                (one.topology.node_count, one.seconds_per_token * 1000)
                for one in candidates
                if one.topology.level_count == depth
            )
            axes.plot(*zip(*line, strict=True), marker=".", label=f"levels: {depth}")
        for one, mark, name in ((choice, "o", "the planner's"), (best, "*", "the best")):
            place = one.topology.node_count, one.seconds_per_token * 1000
            axes.plot(*place, mark, color="black", fillstyle="none", ms=14, label=name)
        doubling_axis(axes, SIZES, "nodes of the tree, root included")
        caption(
            axes,
            "ms per token on the running system",
            f"regret {regret.share:.1%} ({regret.low:.1%} to {regret.high:.1%})",
            columns=2,
        )

    return Result(
        "figures",
        STEM,
        environment,
        settings,
        {
            "regret": regret.share,
            "interval": [regret.low, regret.high],
            "regret_held_out": regret.held_out,
            "choice": _described(choice),
            "best": _described(best),
            "candidates": [_described(one) for one in candidates],
        },
        [_table(choice, best, candidates)],
        draw,
        [_sentence(regret, len(candidates))],
    )


def _described(candidate: Candidate) -> dict[str, object]:
    return {
        "nodes": candidate.topology.node_count,
        "levels": candidate.topology.level_count,
        "parents": list(candidate.topology.parents),
        "seconds_per_token": candidate.seconds_per_token,
        "tokens_per_step": candidate.tokens_per_step,
        "repetitions": len(candidate.turns),
    }


def _sentence(regret: Regret, count: int) -> str:
    said = (
        f"Regret {regret.share:.1%}, 95 % of resamplings {regret.low:.1%} to {regret.high:.1%}, over "
        f"{count} trees. All were timed once, those within {WORTH_REPEATING - 1:.0%} of the best again."
    )
    if regret.held_out is None:
        return said
    return f"{said} Against the tree that is best in the other repetitions: {regret.held_out:.1%}."


def _table(choice: Candidate, best: Candidate, candidates: Sequence[Candidate]) -> Table:
    rows = []
    for one in sorted(candidates, key=lambda candidate: candidate.seconds_per_token):
        marks = [name for name, it in (("planner", choice), ("best", best)) if it is one]
        rows.append(
            (
                f"{one.topology.node_count}, {one.topology.level_count}",
                f"{one.seconds_per_token * 1000:.2f}",
                f"{one.tokens_per_step:.2f}",
                str(len(one.turns)),
                ", ".join(marks),
            )
        )
    header = ("tree (nodes, levels)", "ms per token", "tokens per step", "times", "")
    return Table("Every tree on this machine", header, rows)
