"""One run of `sequoia bench serve`; imported only once the options are known to be right."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from sequoia.bench.environment import Environment
from sequoia.bench.interleave import take_turns
from sequoia.bench.report import Result
from sequoia.bench.serve.figures import ALWAYS, MODES, NONE, PLANNED, Cell, Load
from sequoia.bench.serve.load import Recording, closed_loop, open_loop
from sequoia.bench.serve.report import make_result
from sequoia.cli.bench_common import chosen_place, say_progress
from sequoia.cli.bench_planning import HELD_SECONDS, planned_after
from sequoia.cli.bench_prompts import PromptTokens, read_prompt_tokens
from sequoia.cli.session import quiet_system, say
from sequoia.generation import GenerationRequest
from sequoia.launcher import LaunchOptions, LocalSystem
from sequoia.plan_store import PlanStore
from sequoia.plans import Plan, PlannedTree, request_class
from sequoia.runtime.catalogue import default_draft
from sequoia.settings import DrawRule, SamplingSettings

WARM_UP_CLIENTS = 2
ARRIVAL_SEED = 1
OTHER_DATABASE = 1  # in the same Valkey, for the coordinator with the plan of its own


@dataclass(frozen=True, slots=True)
class ServeBenchmark:
    """One run of the command, as its options say."""

    target: str
    draft: str | None
    prompts: Path
    prompt_count: int
    temperature: float
    max_new_tokens: int
    dtype: str
    device: str
    concurrency: Sequence[int]
    capacity_shares: Sequence[float]
    seconds: float
    repetitions: int
    threads: int

    def run(self) -> Result:
        """Measure and report.

        Raises:
            BenchmarkError: the planner is not running.
            PromptsError, ModelError, SequoiaError: as their makers say.
        """
        device, dtype = chosen_place(self.device, self.dtype)
        texts = read_prompt_tokens(
            self.target, self.prompts, self.prompt_count, self.max_new_tokens
        )
        environment = Environment.gather(device)
        options = LaunchOptions(
            self.target,
            self.draft,
            dtype=dtype,
            device=device,
            threads=self.threads or torch.get_num_threads(),
            replan_seconds=HELD_SECONDS,
            prefix_cache=False,
        )
        with quiet_system(options) as system:
            plan = planned_after(system, partial(self._warm_up, system.address, texts))
            addresses = self._addresses(system, plan)
            say("streams of one request after another")
            cells = self._closed(addresses, texts)
            if self.capacity_shares:
                say("requests that arrive at random")
                cells += self._open(addresses, texts, cells)
        return make_result(cells, self._trees(plan), self._settings(options, texts), environment)

    def _addresses(self, system: LocalSystem, plan: Plan) -> dict[str, str]:
        """Where each mode is served; for one of them another coordinator is started."""
        url = f"{system.redis_url.rpartition('/')[0]}/{OTHER_DATABASE}"
        asyncio.run(_publish(url, single_stream_trees(plan)))
        say("starting another coordinator, with the tree for one stream under every load")
        always = system.add_coordinator(url)
        return {PLANNED: system.address, NONE: system.address, ALWAYS: always.address}

    def _requests(self, texts: PromptTokens, mode: str) -> list[GenerationRequest]:
        return [
            GenerationRequest(
                token_ids=token_ids,
                sampling=SamplingSettings(temperature=self.temperature),
                max_new_tokens=self.max_new_tokens,
                disable_speculation=mode == NONE,
            )
            for token_ids in texts.prompts
        ]

    def _warm_up(self, address: str, texts: PromptTokens) -> None:
        requests = self._requests(texts, PLANNED)
        asyncio.run(closed_loop(address, requests, WARM_UP_CLIENTS, self.seconds))

    def _closed(self, addresses: dict[str, str], texts: PromptTokens) -> list[Cell]:
        def record(mode: str) -> Callable[[Load], Recording]:
            requests = self._requests(texts, mode)
            return lambda load: asyncio.run(
                closed_loop(addresses[mode], requests, load.clients, self.seconds)
            )

        loads = [Load(clients=clients) for clients in self.concurrency]
        return self._cells(record, loads)

    def _open(
        self, addresses: dict[str, str], texts: PromptTokens, closed: Sequence[Cell]
    ) -> list[Cell]:
        """Shares of what the planned mode can do at most, in requests a second, for every mode."""
        capacity = max(cell.tokens_per_second.median for cell in closed if cell.mode == PLANNED)
        per_second = capacity / self.max_new_tokens

        def record(mode: str) -> Callable[[Load], Recording]:
            requests = self._requests(texts, mode)
            return lambda load: asyncio.run(
                open_loop(addresses[mode], requests, load.rate, self.seconds, ARRIVAL_SEED)
            )

        loads = [
            Load(capacity_share=share, rate=share * per_second) for share in self.capacity_shares
        ]
        return self._cells(record, loads)

    def _cells(
        self, record: Callable[[str], Callable[[Load], Recording]], loads: Sequence[Load]
    ) -> list[Cell]:
        """Every mode under every load, in turns."""
        systems = {mode: record(mode) for mode in MODES}
        say("warming up: every mode under every load")
        take_turns(systems, loads, 1)
        recordings = take_turns(systems, loads, self.repetitions, say_progress)
        return [
            Cell.of(mode, load, recordings[mode][index :: len(loads)])
            for index, load in enumerate(loads)
            for mode in MODES
        ]

    def _trees(self, plan: Plan) -> dict[str, object]:
        """The trees of the requests' class by load, as far as this run asks for them."""
        rule = DrawRule.WITHOUT_REPLACEMENT if self.temperature else DrawRule.GREEDY
        name = request_class(self.temperature, rule)
        planned = {clients: plan.tree_for(name, clients) for clients in self.concurrency}
        by_load = {str(clients): _parents(tree) for clients, tree in planned.items()}
        return {"request_class": name, PLANNED: by_load, ALWAYS: _parents(plan.tree_for(name, 1))}

    def _settings(self, options: LaunchOptions, texts: PromptTokens) -> dict[str, object]:
        return {
            "target": self.target,
            "draft": self.draft or default_draft(self.target),
            "dtype": options.dtype,
            "device": options.device,
            "threads": options.threads,
            "temperature": self.temperature,
            "max_new_tokens": self.max_new_tokens,
            "prompts": self.prompts.name,
            "prompt_count": len(texts.prompts),
            "concurrency": list(self.concurrency),
            "capacity_shares": list(self.capacity_shares),
            "seconds_per_turn": self.seconds,
            "repetitions": self.repetitions,
        }


def single_stream_trees(plan: Plan) -> tuple[PlannedTree, ...]:
    """Of every class only the tree for the least load, which then holds for every load."""
    names = {tree.request_class for tree in plan.trees}
    least = (plan.tree_for(name, 1) for name in sorted(names))
    return tuple(tree for tree in least if tree is not None)


async def _publish(url: str, trees: tuple[PlannedTree, ...]) -> None:
    store = PlanStore(url)
    try:
        await store.publish(trees)
    finally:
        await store.close()


def _parents(tree: PlannedTree | None) -> list[int] | None:
    return None if tree is None else list(tree.parents)
