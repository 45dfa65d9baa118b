"""One run of `sequoia acceptance`: load, let the target write, compare, walk, time.

Imported only once the options are known to be right: torch and transformers take seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from coordinator.prompt import PromptReader, RequestLimits
from draft_service.grower import Grower
from planner.solver import solve
from sequoia.acceptance.continuations import Continuation, Prompt, write
from sequoia.acceptance.measure import Agreement, Measuring, measure
from sequoia.acceptance.pair import Pair, load_pair
from sequoia.acceptance.rules import RuleName
from sequoia.acceptance.timing import time_passes
from sequoia.acceptance.walk import Walker
from sequoia.cli.acceptance_report import Report
from sequoia.cli.session import say
from sequoia.errors import PromptTooLongError
from sequoia.generation import ChatMessage, GenerationRequest
from sequoia.messages import Features
from sequoia.prompts import PromptsError
from sequoia.runtime.features import pack_features
from sequoia.runtime.worker import WorkerLimits
from sequoia.settings import SamplingSettings
from sequoia.tree import Topology

TREE_SIZES = (16, 64)
TREE_LEVELS = 32
NO_LIMIT = 2**62


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run of the command, as its options say."""

    temperature: float
    rule: RuleName
    max_new_tokens: int
    batch_size: int
    seed: int

    def run(
        self, prompts: Sequence[str], target: str, draft: str | None, dtype: str, device: str
    ) -> Report:
        """Load the models, let the target write, compare, and report."""
        say("loading the models")
        models = load_pair(target, draft, dtype, device)
        rendered = self._rendered(models, prompts)
        texts = write(
            models.target,
            rendered,
            SamplingSettings(temperature=self.temperature),
            models.stop_token_ids,
            seed=self.seed,
            batch_size=self.batch_size,
            report=_counter("the target writes: text", len(rendered)),
        )
        levels = measure(
            models.target,
            models.draft,
            texts,
            Measuring(self.temperature, self.rule, self.seed),
            _counter("comparing draft and target: text", len(texts)),
        )
        return self._report(models, texts, levels, skipped_count=len(prompts) - len(texts))

    def _report(
        self,
        models: Pair,
        texts: Sequence[Continuation],
        levels: tuple[Agreement, ...],
        skipped_count: int,
    ) -> Report:
        """What follows from the vector, and the times of the models it belongs to."""
        # Below its first level a draft that reads features agrees less, so the best tree is looked
        # for among those that are best for the levels' vectors.
        trees = {
            size: [solve(level.vector[1:-1], size, TREE_LEVELS) for level in levels]
            for size in TREE_SIZES
        }
        shapes = {
            size: [Topology(tree.parents) for tree in candidates]
            for size, candidates in trees.items()
        }
        say("timing both models")
        times = time_passes(models.target, models.draft)
        walked = None if self.temperature else self._walked(models, texts, shapes)
        return Report(
            models.target_worker.name,
            models.draft_worker.name,
            self.temperature,
            self.rule,
            str(models.target.dtype).removeprefix("torch."),
            str(models.target.device),
            len(texts),
            skipped_count,
            levels,
            times,
            {size: candidates[0].expected_tokens for size, candidates in trees.items()},
            walked,
        )

    def _rendered(self, models: Pair, prompts: Sequence[str]) -> list[Prompt]:
        """The prompts as the coordinator would send them to the models, too long ones left out."""
        limits = RequestLimits(
            models.context_length,
            models.target.vocabulary_size,
            default_new_tokens=self.max_new_tokens,
        )
        reader = PromptReader(models.tokenizer, models.stop_token_ids, limits, lambda: self.seed)
        found = []
        for prompt in prompts:
            if models.tokenizer.chat_template:
                request = GenerationRequest(chat=(ChatMessage("user", prompt),))
            else:
                request = GenerationRequest(text=prompt)
            try:
                prepared = reader.read(request)
            except PromptTooLongError:
                continue
            found.append(Prompt(prepared.prompt_token_ids, prepared.max_new_tokens))
        if not found:
            raise PromptsError(
                f"none of {len(prompts)} prompts fits the context of {limits.context_length} tokens"
            )
        if left_out := len(prompts) - len(found):
            say(
                f"warning: {left_out} of {len(prompts)} prompts left out, longer than the context "
                f"of {limits.context_length} tokens"
            )
        return found

    def _walked(
        self,
        models: Pair,
        texts: Sequence[Continuation],
        shapes: Mapping[int, Sequence[Topology]],
    ) -> dict[int, float]:
        """Tokens per step of the best tree of each size, grown by the draft worker itself."""
        limits = WorkerLimits(
            self.batch_size, NO_LIMIT, max(TREE_SIZES), self.batch_size, prefix_cache=False
        )
        worker = models.draft_worker
        grower = Grower(worker.name, worker.model, worker.tokenizer_sha256, limits)

        @cache  # every candidate tree is walked over the same texts
        def features_of(text: Continuation) -> Features:
            return pack_features(models.target.plain(text.token_ids).features)

        walker = Walker(
            grower,
            models.target.vocabulary_size,
            models.draft.context_length,
            self.batch_size,
            features_of if models.draft.reads_features else None,
        )
        walked = {}
        try:
            for size, candidates in shapes.items():
                say(f"the draft grows trees of {size} nodes")
                walked[size] = max(
                    asyncio.run(walker.tokens_per_step(texts, shape)) for shape in candidates
                )
        finally:
            grower.device.stop()
        return walked


def _counter(what: str, total: int) -> Callable[[int], None]:
    """Tells on stderr how far a stage is, at each further quarter of it."""

    def report(done: int) -> None:
        if done * 4 // total > (done - 1) * 4 // total:
            say(f"{what} {done} of {total}")

    return report
