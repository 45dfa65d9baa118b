"""The figures that need both models in one process: what they say, and no times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product

from planner.solver import solve
from sequoia.acceptance.continuations import Continuation, Prompt, write
from sequoia.acceptance.measure import Agreement, Measuring, measure
from sequoia.acceptance.pair import Pair, load_pair
from sequoia.acceptance.rules import RuleName
from sequoia.acceptance.simulation import Simulator, Speculation
from sequoia.bench.figures import on_chip, regret
from sequoia.bench.figures.estimates import Tokens
from sequoia.bench.figures.rejection import Curve
from sequoia.bench.figures.robustness import Cell
from sequoia.bench.figures.shapes import (
    Vectors,
    best_branches,
    best_tree,
    binary,
    chain,
    expected_tokens,
)
from sequoia.bench.figures.tree_sizes import Point
from sequoia.cli.session import say
from sequoia.settings import SamplingSettings
from sequoia.tree import Topology

SIZES = (1, 4, 16, 64, 256, 1024)
MOST_LEVELS = 32
MOST_CHILDREN = 64
REJECTION_TEMPERATURES = (0.2, 0.6, 1.0)
FIXED_SIZE = 64
TEMPERATURES = (0.3, 0.6, 0.9, 1.2)
NUCLEI = (0.8, 0.9, 1.0)
RULES = (RuleName.SEQUOIA, RuleName.SPECINFER, RuleName.TOPK)


@dataclass(frozen=True)
class PairFigures:
    """A loaded pair and its prompts; texts and vectors are made once per temperature."""

    models: Pair
    prompts: Sequence[Prompt]
    _texts: dict[float, list[Continuation]] = field(default_factory=dict)
    _vectors: dict[float, list[tuple[float, ...]]] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        target: str,
        draft: str | None,
        dtype: str,
        device: str,
        prompts: Sequence[tuple[int, ...]],
        max_new_tokens: int,
    ) -> PairFigures:
        """Load both models; errors as `load_pair`'s."""
        pair = load_pair(target, draft, dtype, device)
        return cls(pair, [Prompt(token_ids, max_new_tokens) for token_ids in prompts])

    def vectors(self, temperature: float) -> list[tuple[float, ...]]:
        """Acceptance vectors a_1, a_2, ... by level, on texts of the target at this temperature."""
        if temperature not in self._vectors:
            levels = self._agreement(temperature, RuleName.SEQUOIA)
            self._vectors[temperature] = [level.vector[1:-1] for level in levels]
        return self._vectors[temperature]

    def tree_sizes(self, temperatures: Sequence[float]) -> list[Point]:
        """Figure 1."""
        points = []
        for temperature in temperatures:
            vectors = self.vectors(temperature)
            kinds: dict[str, Callable[[int], Topology]] = {
                "Sequoia's best tree": partial(_best, vectors, MOST_LEVELS),
                "independent chains": partial(best_branches, vectors),
                "binary tree": binary,
                "single chain": chain,
            }
            trees = {(kind, size): make(size) for kind, make in kinds.items() for size in SIZES}
            distinct = list(dict.fromkeys(trees.values()))
            say(f"counting steps of {len(distinct)} trees at temperature {temperature:g}")
            counted = self._count([Speculation(tree) for tree in distinct], temperature)
            measured = dict(zip(distinct, counted, strict=True))
            points += [
                Point(
                    temperature,
                    kind,
                    size,
                    tree.node_count,
                    tree.level_count,
                    expected_tokens(tree, vectors),
                    measured[tree],
                )
                for (kind, size), tree in trees.items()
            ]
        return points

    def rejection(self) -> list[Curve]:
        """Figure 2, at the first level of a tree."""
        curves = []
        for temperature, rule in product(REJECTION_TEMPERATURES, RuleName):
            say(f"rejection rates of {rule} at temperature {temperature:g}")
            first = self._agreement(temperature, rule)[0]
            curves.append(Curve(temperature, rule, first.rejection, first.positions))
        return curves

    def fixed_tree(self, temperature: float) -> Topology:
        """The tree of figure 3: the best one of its size at a temperature."""
        return _best(self.vectors(temperature), MOST_LEVELS, FIXED_SIZE)

    def robustness(self, topology: Topology) -> list[Cell]:
        """Figure 3."""
        (greedy,) = self._count([Speculation(topology)], 0.0)
        cells = [Cell(rule, 0.0, top_p, greedy) for rule, top_p in product(RULES, NUCLEI)]
        speculations = [Speculation(topology, rule) for rule in RULES]
        for temperature, top_p in product(TEMPERATURES, NUCLEI):
            say(f"counting steps at temperature {temperature:g}, top-p {top_p:g}")
            found = self._count(speculations, temperature, top_p)
            cells += [
                Cell(rule, temperature, top_p, tokens)
                for rule, tokens in zip(RULES, found, strict=True)
            ]
        return cells

    def grid(self, temperature: float) -> list[Tokens]:
        """Tokens per step of SpecInfer's trees under its rule, for figure 5."""
        speculations = [Speculation(tree, RuleName.SPECINFER) for tree in on_chip.GRID]
        return self._count(speculations, temperature)

    def sweep(self) -> list[Topology]:
        """The trees of figure 6: at temperature 0 the best of every size and number of levels."""
        vectors = self.vectors(0.0)
        limits = product(regret.LEVELS, regret.SIZES)
        found = (_best(vectors, levels, size) for levels, size in limits)
        return list(dict.fromkeys(found))

    def _count(
        self, speculations: Sequence[Speculation], temperature: float, top_p: float = 1.0
    ) -> list[Tokens]:
        models = self.models
        simulator = Simulator(models.target, models.draft, models.stop_token_ids)
        sampling = SamplingSettings(temperature=temperature, top_p=top_p)
        return [Tokens.of(texts) for texts in simulator.run(self.prompts, speculations, sampling)]

    def _agreement(self, temperature: float, rule: RuleName) -> tuple[Agreement, ...]:
        measuring = Measuring(temperature, rule, ranks=MOST_CHILDREN)
        texts = self._written(temperature)
        return measure(self.models.target, self.models.draft, texts, measuring)

    def _written(self, temperature: float) -> list[Continuation]:
        if temperature not in self._texts:
            say(f"the target writes at temperature {temperature:g}")
            self._texts[temperature] = write(
                self.models.target,
                self.prompts,
                SamplingSettings(temperature=temperature),
                self.models.stop_token_ids,
            )
        return self._texts[temperature]


def _best(vectors: Vectors, levels: int, size: int) -> Topology:
    """The best tree of at most so many levels and nodes."""

    def solved(vector: Sequence[float], nodes: int) -> Topology:
        return Topology(solve(vector, nodes, levels).parents)

    return best_tree(vectors, size, solved)
