"""One run of `sequoia bench peers`: start everybody, warm up, take turns, compare.

Imported only once the options are known to be right: torch and transformers take seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from sequoia.bench.environment import Environment
from sequoia.bench.errors import BenchmarkError
from sequoia.bench.interleave import take_turns
from sequoia.bench.peers.comparison import (
    OURS,
    OURS_ALONE,
    OURS_IN_PROCESS,
    find_differences,
    make_ratios,
    make_rows,
    overhead_per_step,
)
from sequoia.bench.peers.entrants import (
    ASSISTED,
    Conditions,
    Entrants,
    add_llama_cpp,
    add_transformers,
    pairs_to_compare,
)
from sequoia.bench.peers.report import Comparison, make_result
from sequoia.bench.peers.runs import Prompt
from sequoia.bench.peers.served import ServedSystem
from sequoia.bench.report import Result
from sequoia.cli.bench_common import chosen_place, say_progress
from sequoia.cli.bench_in_process import MakeInProcessPeer
from sequoia.cli.bench_planning import HELD_SECONDS, planned_after
from sequoia.cli.bench_prompts import PromptTokens, read_prompt_tokens
from sequoia.cli.session import quiet_system, say
from sequoia.launcher import LaunchOptions, LocalSystem
from sequoia.plans import request_class
from sequoia.runtime.catalogue import default_draft
from sequoia.runtime.progress import stderr_progress
from sequoia.settings import DrawRule

WARM_UP_PROMPTS = 2
SHORT_WARM_UP = 8  # new tokens


@dataclass(frozen=True, slots=True)
class PeersBenchmark:
    """One run of the command, as its options say."""

    target: str
    draft: str | None
    assistant: str | None
    prompts: Path
    prompt_count: int
    temperature: float
    max_new_tokens: int
    dtype: str
    device: str
    repetitions: int
    threads: int

    def run(self) -> Result:
        """Measure and report.

        Raises:
            BenchmarkError: ours or `transformers` failed.
            PromptsError, ModelError, SequoiaError: as their makers say.
        """
        device, dtype = chosen_place(self.device, self.dtype)
        texts = read_prompt_tokens(
            self.target, self.prompts, self.prompt_count, self.max_new_tokens
        )
        environment = Environment.gather(device)
        conditions = Conditions(
            self.target,
            dtype,
            device,
            self.threads or torch.get_num_threads(),
            self.temperature,
            texts.stop_token_ids,
            max(len(prompt) for prompt in texts.prompts) + self.max_new_tokens,
        )
        options = LaunchOptions(
            self.target,
            self.draft,
            dtype=dtype,
            device=device,
            threads=conditions.threads,
            max_batch_size=1,  # texts are written one at a time
            replan_seconds=HELD_SECONDS,
            prefix_cache=False,
        )
        with quiet_system(options) as system:
            comparison = self._compare(system, texts, conditions)
        return make_result(comparison, self._settings(conditions, texts), environment)

    def _compare(
        self, system: LocalSystem, texts: PromptTokens, conditions: Conditions
    ) -> Comparison:
        prompts = [Prompt(ids, self.max_new_tokens) for ids in texts.prompts]
        with (
            ExitStack() as hosts,
            ServedSystem(system.address, self.temperature) as served,
        ):
            entrants = Entrants(_warm_up_prompts(prompts), hosts)
            plan = planned_after(system, partial(_speculate, served, entrants.warm_up_prompts))
            say("warming up: ours")
            entrants.admit(OURS, partial(served.generate, True))
            entrants.admit(OURS_ALONE, partial(served.generate, False))
            in_process = entrants.host(OURS_IN_PROCESS, self._in_process(conditions))
            entrants.admit(OURS_IN_PROCESS, partial(in_process.call, "generate", plan.to_json()))
            say("warming up: transformers")
            reference = add_transformers(entrants, conditions, self._assistants())
            say("warming up: llama.cpp")
            with stderr_progress() as progress:
                add_llama_cpp(entrants, conditions, progress)
            if OURS in entrants.skipped:
                raise BenchmarkError(entrants.skipped[OURS])
            served.plan_versions.clear()
            runs = take_turns(entrants.systems, prompts, self.repetitions, say_progress)
            rows = make_rows(runs, len(prompts), greedy=not self.temperature)
            differences = (
                []
                if self.temperature
                else find_differences(runs, texts.prompts, partial(reference.call, "leads"))
            )
        rule = DrawRule.WITHOUT_REPLACEMENT if self.temperature else DrawRule.GREEDY
        return Comparison(
            rows,
            make_ratios(runs, rows, pairs_to_compare(conditions.dtype, list(runs))),
            entrants.skipped,
            overhead_per_step(runs[OURS], runs[OURS_IN_PROCESS])
            if OURS_IN_PROCESS in runs
            else None,
            plan.tree_for(request_class(self.temperature, rule), 1),
            sorted(served.plan_versions),
            differences,
            entrants.notes,
        )

    def _in_process(self, conditions: Conditions) -> MakeInProcessPeer:
        return MakeInProcessPeer(
            self.target,
            self.draft,
            conditions.dtype,
            conditions.device,
            conditions.threads,
            self.temperature,
        )

    def _assistants(self) -> dict[str, str]:
        """Drafts for assisted generation by the name of their row; ours first."""
        assistants = {ASSISTED: self._draft_name}
        if self.assistant is not None:
            assistants[f"{ASSISTED} ({Path(self.assistant).name})"] = self.assistant
        return assistants

    @property
    def _draft_name(self) -> str:
        return self.draft or default_draft(self.target) or ""

    def _settings(self, conditions: Conditions, texts: PromptTokens) -> dict[str, object]:
        return {
            "target": self.target,
            "draft": self._draft_name,
            "assistant": self.assistant,
            "dtype": conditions.dtype,
            "device": conditions.device,
            "threads": conditions.threads,
            "temperature": self.temperature,
            "max_new_tokens": self.max_new_tokens,
            "prompts": self.prompts.name,
            "prompt_count": len(texts.prompts),
            "prompt_token_counts": [len(prompt) for prompt in texts.prompts],
            "repetitions": self.repetitions,
            "stop_token_ids": list(conditions.stop_token_ids),
        }


def _warm_up_prompts(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Every prompt, for the first pass over so many tokens may be slow; the first ones to the end."""
    return [
        prompt
        if index < WARM_UP_PROMPTS
        else replace(prompt, max_new_tokens=min(prompt.max_new_tokens, SHORT_WARM_UP))
        for index, prompt in enumerate(prompts)
    ]


def _speculate(served: ServedSystem, prompts: Sequence[Prompt]) -> None:
    for prompt in prompts:
        served.generate(True, prompt)
