"""The figures that are timed on the running system, every role a process of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from sequoia.bench.errors import BenchmarkError
from sequoia.bench.figures.estimates import Tokens
from sequoia.bench.figures.held import HeldTrees, Stretch
from sequoia.bench.figures.on_chip import GRID, Row
from sequoia.bench.figures.regret import WORTH_REPEATING, Candidate, find_best
from sequoia.bench.interleave import Spread, take_turns
from sequoia.bench.peers.runs import Prompt
from sequoia.bench.peers.served import ServedSystem
from sequoia.cli.bench_common import say_progress
from sequoia.cli.bench_planning import planned_after
from sequoia.cli.bench_prompts import PromptTokens
from sequoia.cli.session import quiet_system, say
from sequoia.launcher import LaunchOptions
from sequoia.plans import Plan, request_class
from sequoia.settings import DrawRule
from sequoia.tree import Topology

OTHER_DATABASE = 1  # in the same Valkey, for the coordinator whose trees are ours to choose
SCREENING_PROMPTS = 2
OURS, THEIRS, PLAIN = "sequoia", "specinfer", "plain"


@dataclass(frozen=True, slots=True)
class RunningSystem:
    """The planner's plan, and a coordinator that follows ours."""

    plan: Plan
    held: HeldTrees


@contextmanager
def running(
    options: LaunchOptions,
    texts: PromptTokens,
    max_new_tokens: int,
    temperatures: Sequence[float],
) -> Iterator[RunningSystem]:
    """Start everything; the planner plans from what is accepted while all prompts are continued.

    Raises:
        BenchmarkError: the planner is not running.
        SequoiaError: it could not plan, or a request failed.
    """
    with quiet_system(options) as system:

        def warm_up() -> None:
            for temperature in temperatures:
                with ServedSystem(system.address, temperature) as served:
                    for token_ids in texts.prompts:
                        served.generate(True, Prompt(token_ids, max_new_tokens))

        plan = planned_after(system, warm_up)
        say("starting another coordinator, for the trees that are compared")
        url = f"{system.redis_url.rpartition('/')[0]}/{OTHER_DATABASE}"
        coordinator = system.add_coordinator(url)
        with HeldTrees(coordinator.address, url) as held:
            yield RunningSystem(plan, held)


@dataclass(frozen=True, slots=True)
class SystemFigures:
    """What is timed, and how often."""

    held: HeldTrees
    plan: Plan
    prompts: Sequence[tuple[int, ...]]
    max_new_tokens: int
    repetitions: int

    def on_chip(
        self, counts: Mapping[float, Sequence[Tokens]]
    ) -> tuple[list[Row], dict[float, Spread]]:
        """Figure 5: rows, and seconds per token without speculation, by temperature.

        Args:
            counts: tokens per step of every tree of the grid under SpecInfer's rule, by temperature.
        """
        rows: list[Row] = []
        plain: dict[float, Spread] = {}
        for temperature, tokens in counts.items():
            say(f"SpecInfer's trees at temperature {temperature:g}")
            best, its_tokens = self._best_of_grid(temperature, tokens)
            chosen = self._chosen(temperature)
            trees = {OURS: chosen.parents, THEIRS: best.parents, PLAIN: None}
            say(f"the planner's choice, SpecInfer's best, and none at temperature {temperature:g}")
            turns = self._turns(trees, temperature, self.repetitions)
            totals = {name: [Stretch.total(t) for t in mine] for name, mine in turns.items()}
            rows += [
                Row.of(OURS, temperature, chosen, totals[OURS], totals[PLAIN]),
                Row.of(THEIRS, temperature, best, totals[THEIRS], totals[PLAIN], its_tokens),
            ]
            plain[temperature] = Spread.of([t.seconds_per_token for t in totals[PLAIN]])
        return rows, plain

    def regret(self, sweep: Sequence[Topology]) -> tuple[Candidate, list[Candidate]]:
        """Figure 6 at temperature 0: the planner's choice, and every tree with what it took."""
        choice = self._chosen(0.0)
        trees = list(dict.fromkeys([choice, *sweep]))
        say(f"every one of {len(trees)} trees")
        once = self._candidates(trees, 1)
        limit = WORTH_REPEATING * find_best(once).seconds_per_token
        good = [one for one in once if one.seconds_per_token <= limit or one.topology == choice]
        found = {one.topology: one for one in once}
        if self.repetitions > 1:
            say(f"the {len(good)} best again")
            for one in self._candidates([one.topology for one in good], self.repetitions - 1):
                turns = [*found[one.topology].turns, *one.turns]
                found[one.topology] = Candidate(one.topology, turns)
        return found[choice], list(found.values())

    def _candidates(self, trees: Sequence[Topology], repetitions: int) -> list[Candidate]:
        turns = self._turns(
            {str(index): tree.parents for index, tree in enumerate(trees)}, 0.0, repetitions
        )
        return [Candidate(tree, turns[str(index)]) for index, tree in enumerate(trees)]

    def _best_of_grid(self, temperature: float, tokens: Sequence[Tokens]) -> tuple[Topology, float]:
        """SpecInfer's tree of least time per token, by a short turn each; and its tokens per step."""
        trees = {str(index): tree.parents for index, tree in enumerate(GRID)}
        turns = self._turns(trees, temperature, 1, self.prompts[:SCREENING_PROMPTS])
        per_token = [
            Stretch.total(turns[str(index)][0]).seconds_per_step / tokens[index].per_step
            for index in range(len(GRID))
        ]
        best = per_token.index(min(per_token))
        return GRID[best], tokens[best].per_step

    def _turns(
        self,
        trees: Mapping[str, tuple[int, ...] | None],
        temperature: float,
        repetitions: int,
        prompts: Sequence[tuple[int, ...]] | None = None,
    ) -> dict[str, list[list[Stretch]]]:
        """Every tree on every prompt, in turns: by name, then repetition, then prompt."""
        wanted = self.prompts if prompts is None else prompts
        systems = {
            name: partial(self.held.generate, parents, temperature, self.max_new_tokens)
            for name, parents in trees.items()
        }
        found = take_turns(systems, wanted, repetitions, say_progress)
        size = len(wanted)
        return {
            name: [stretches[at : at + size] for at in range(0, len(stretches), size)]
            for name, stretches in found.items()
        }

    def _chosen(self, temperature: float) -> Topology:
        rule = DrawRule.WITHOUT_REPLACEMENT if temperature else DrawRule.GREEDY
        planned = self.plan.tree_for(request_class(temperature, rule), 1)
        if planned is None:
            raise BenchmarkError(f"the plan has no tree for temperature {temperature:g}")
        return planned.topology
