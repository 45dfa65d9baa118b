"""The loop of the paper: grow, verify, accept, emit."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator

import structlog

from coordinator.acceptance import Acceptance, accept, check_grown
from coordinator.admission import Admission
from coordinator.metrics import CoordinatorMetrics
from coordinator.participants import Participants
from coordinator.pool import WorkerPool
from coordinator.prompt import PreparedRequest
from coordinator.reception import Reception
from coordinator.statistics import Statistics
from coordinator.step import Step, circumstance
from coordinator.step_ahead import StepAhead
from coordinator.text import Decode
from coordinator.tracing import note_completion, traced
from coordinator.worker_session import SESSION_LOST, TRANSIENT
from sequoia.errors import SequoiaError
from sequoia.generation import GenerationChunk
from sequoia.messages import GrownTree, GrowTree, StepHeader, Verdict, VerifyTree
from sequoia.observations import StepTimes
from sequoia.plan_store import PlanStore
from sequoia.plans import BUILT_IN_PLAN, Plan, pair_name
from sequoia.settings import DrawRule
from sequoia.tree import Topology, Tree

log = structlog.get_logger(__name__)

# Of a prompt, in what trees save of a step: a pass reads many at once, and a tree saves part of a pass.
TOKENS_READ_PER_STEP = 4
LAST_STEP_SECONDS = 6.0  # for requests that are told to end: after that the server cuts them off


class Engine:
    """Runs requests, each against one draft worker and one target worker.

    Args:
        draft: the draft workers; None goes without.
        target: the target workers.
        decode: turns tokens into text.
        admission: the line of requests.
        target_patience_seconds: how long a request goes on without any target.
        metrics: where to count.
        drain_seconds: how long requests may go on once the engine is to end.
    """

    def __init__(
        self,
        draft: WorkerPool | None,
        target: WorkerPool,
        decode: Decode,
        admission: Admission,
        target_patience_seconds: float,
        metrics: CoordinatorMetrics,
        drain_seconds: float = 0.0,
    ) -> None:
        self.draft = draft
        self.target = target
        self.plan: Plan = BUILT_IN_PLAN
        self.statistics = Statistics()
        self.admission = admission
        self._reception = Reception(draft, target, decode, admission, metrics, lambda: self.plan)
        self._patience_seconds = target_patience_seconds
        self._drain_seconds = drain_seconds
        self._stopping = False
        self._metrics = metrics

    async def generate(self, request: PreparedRequest) -> AsyncGenerator[GenerationChunk, None]:
        """Stream the continuation of a prompt; the last chunk carries the completion.

        Raises:
            CapacityError: no room for the request, and none to wait in or no more time for that.
            InvalidArgumentError: the target could never hold the request.
            NotReadyError: the coordinator was stopped before the request's turn.
            SequoiaError: the target failed for longer than the engine's patience.
        """
        async with self._reception.admitted(request) as one:
            if request.echo_prompt_token_ids:
                yield GenerationChunk(prompt_token_ids=request.prompt_token_ids)
            if one.has_features:
                await one.target.open_patiently(one.sequence.state, self._patience)
            async with StepAhead(lambda: traced(one.sequence.step, self._step(one))) as ahead:
                while one.sequence.finish_reason is None:
                    if self._stopping:
                        yield one.sequence.cancel()
                        break
                    step = await ahead.take()
                    acceptance = accept(
                        step.grown, step.verdict, request.settings, one.sequence.root_position
                    )
                    self._count(one.request_class, step, acceptance)
                    one.sequence.commit(step.grown, step.verdict, acceptance)
                    if one.sequence.finish_reason is None:
                        await ahead.begin()  # the workers go on while the text is written
                    yield one.sequence.show()
            yield self._completed(one)

    @property
    def _patience(self) -> float:
        """Seconds to go on without the target; a streamed one has not even begun again in a few."""
        return self.target.with_passes(self._patience_seconds)

    @property
    def active_count(self) -> int:
        """Requests in flight."""
        return self.admission.active_count

    async def drain(self) -> None:
        """Let running requests end; those that take too long end as cancelled after their step.

        Those that wait are refused: they have got nothing yet, and may try elsewhere.
        """
        self.admission.close()
        if await self.admission.wait_until_idle(self._drain_seconds):
            return
        self._stopping = True
        if not await self.admission.wait_until_idle(LAST_STEP_SECONDS):
            # A client that does not read can hold a request up for ever.
            log.warning("requests left running", request_count=self.active_count)

    async def follow_plans(self, store: PlanStore) -> None:
        """Put every announced plan in force; never ends."""
        async for plan in store.plans():
            self.plan = plan
            log.info("plan in force", version=plan.version, trees=len(plan.trees))

    async def deliver_statistics(self, store: PlanStore) -> None:
        """Hand what was counted to the planner; never ends."""
        await self.statistics.deliver(store)

    def _count(self, request_class: str, step: Step, acceptance: Acceptance) -> None:
        pair = pair_name(self.draft.info if self.draft else None, self.target.info)
        tokens = len(acceptance.tokens)
        self.statistics.record(pair, request_class, acceptance.trials, step, tokens)
        self._metrics.steps.record(request_class, step, acceptance)

    async def _step(self, one: Participants) -> Step:
        """A tree, and the target's word on it."""
        plan = self.plan
        planned = plan.tree_for(one.request_class, one.load)
        disturbances, prefix_length = one.disturbance_count, one.sequence.root_position
        started = time.perf_counter()
        grown = await self._grow(one, one.topology(planned))
        verdict = await self._verify(one, grown)
        times = StepTimes(
            time.perf_counter() - started,
            grown.device_seconds,
            verdict.device_seconds,
            verdict.batch_size,
            prefix_length,
        )
        node_count = grown.tree.topology.node_count
        was_disturbed = one.disturbance_count > disturbances
        happened = circumstance(planned, one.request_class, node_count, was_disturbed)
        return Step(grown, verdict, plan.version, happened, times)

    async def _grow(self, one: Participants, topology: Topology) -> GrownTree:
        """A tree from the draft; the root alone when that was asked for or the draft is not there."""
        sequence = one.sequence
        alone = GrownTree(Tree.root_only(sequence.root_token_id))
        if topology.node_count == 1 or not one.draft or not one.draft.is_worth_trying:
            return alone
        with_features = one.draft.seat.pool.feature_size > 0
        if with_features and not one.has_features and not await self._gain_features(one):
            return alone

        def make(header: StepHeader) -> GrowTree:
            latest = sequence.features.last(len(header.accepted_nodes) + 1)
            return GrowTree(
                header, sequence.root_token_id, topology, latest if with_features else None
            )

        state = sequence.draft_state if with_features else sequence.state
        try:
            # Others' trees, which share the passes, may be deeper.
            levels = max(self.plan.level_count, topology.level_count)
            grown = await one.draft.step_patiently(state, make, patience=0.0, passes=levels)
            check_grown(
                grown, sequence.root_token_id, topology.node_count, sequence.request.settings
            )
            return grown
        except SequoiaError as error:
            if error.reason not in TRANSIENT | SESSION_LOST:
                log.warning("request goes on without a draft", error=error.message)
                one.may_speculate = False
            return alone

    async def _gain_features(self, one: Participants) -> bool:
        """Let the target read all tokens again for their features, if trees can make up for that.

        They were not asked for because no trees were grown when the request began: the load was
        higher, or the draft away.
        """
        sequence = one.sequence
        pays = sequence.remaining_count * TOKENS_READ_PER_STEP > len(sequence.token_ids)
        if not (one.may_have_features and pays):
            return False
        one.has_features = True
        one.target.ask_for_features()
        await one.target.open_patiently(sequence.state, self._patience)
        return True

    async def _verify(self, one: Participants, grown: GrownTree) -> Verdict:
        """The target's word on the tree, however often the target is lost and found meanwhile."""
        sparse = one.sequence.request.settings.draw_rule is DrawRule.WITHOUT_REPLACEMENT
        supports = tuple(q.token_ids for q in grown.distributions) if sparse else ()

        def make(header: StepHeader) -> VerifyTree:
            return VerifyTree(header, grown.tree, supports)

        return await one.target.step_patiently(one.sequence.state, make, self._patience)

    def _completed(self, one: Participants) -> GenerationChunk:
        waited = sum(session.waited_seconds for session in one.sessions)
        completion = one.sequence.completion(waited, self.plan.version)
        usage = completion.usage
        note_completion(completion, one.request_class)
        log.info(
            "generation finished",
            session_id=one.sequence.session_id,
            finish_reason=completion.finish_reason.value,
            prompt_token_count=usage.prompt_token_count,
            completion_token_count=usage.completion_token_count,
            tokens_per_step=round(usage.tokens_per_step, 3),
            seconds=round(usage.total_seconds, 3),
        )
        return GenerationChunk(completion=completion)
