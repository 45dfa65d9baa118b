"""Letting a request in: room on the workers, and what it may do there."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import structlog

from coordinator.admission import Admission
from coordinator.metrics import CoordinatorMetrics
from coordinator.participants import Participants
from coordinator.placement import prefix_keys
from coordinator.pool import WorkerPool
from coordinator.probing import PROBE_TREE, Probing
from coordinator.prompt import PreparedRequest
from coordinator.room import Demand
from coordinator.seat import Seat
from coordinator.sequence import Sequence
from coordinator.text import Decode
from coordinator.worker_session import WorkerSession
from sequoia.plans import Plan, request_class
from sequoia.rpc.codec import GROW_TREE, VERIFY_TREE
from sequoia.rpc.method import MESSAGE_LIMIT_BYTES
from sequoia.tracing import spans

log = structlog.get_logger(__name__)

FEATURES_LIMIT_BYTES = MESSAGE_LIMIT_BYTES - 2**20  # the rest is for the tokens


class Reception:
    """Lets requests in as the line moves.

    Args:
        draft: the draft workers; None goes without.
        target: the target workers.
        decode: turns tokens into text.
        admission: the line of requests.
        metrics: where to count.
        plan: the plan in force.
    """

    def __init__(
        self,
        draft: WorkerPool | None,
        target: WorkerPool,
        decode: Decode,
        admission: Admission,
        metrics: CoordinatorMetrics,
        plan: Callable[[], Plan],
    ) -> None:
        self._draft = draft
        self._target = target
        self._decode = decode
        self._admission = admission
        self._metrics = metrics
        self._plan = plan
        self._probing = Probing()

    @asynccontextmanager
    async def admitted(self, request: PreparedRequest) -> AsyncGenerator[Participants, None]:
        """Wait for room on the workers; what the request held is freed in the end.

        A request that the draft could never hold goes without it.

        Raises:
            CapacityError: too many wait already, or the time is over.
            InvalidArgumentError: the target could never hold it.
            NotReadyError: the coordinator is stopping.
        """
        sequence = Sequence(request, self._decode)
        alone = Demand(len(request.prompt_token_ids), request.max_new_tokens, 1)
        self._target.check(alone)
        largest = max(PROBE_TREE.node_count, *(len(tree.parents) for tree in self._plan().trees))
        with_trees = replace(alone, tree_tokens=largest)
        may_speculate = (
            self._draft is not None
            and not request.disable_speculation
            and self._draft.could_hold(with_trees)
            and self._target.could_hold(with_trees)
        )
        demand = with_trees if may_speculate else alone
        pools = [self._target, *([self._draft] if self._draft and may_speculate else [])]
        keys = prefix_keys(request.prompt_token_ids)
        seats = [Seat(pool, demand, keys) for pool in pools]
        async with self._admission.admitted(seats):
            sequence.begin()
            self._metrics.queue_seconds.observe(sequence.queued_seconds)
            spans.past("queue", sequence.queued_seconds)
            one = self._participants(sequence, *seats)
            try:
                yield one
            finally:
                one.close_sessions()
                self._metrics.had_sessions(one.sessions)

    def _participants(
        self, sequence: Sequence, target: Seat, draft: Seat | None = None
    ) -> Participants:
        request = sequence.request
        name = request_class(request.settings.sampling.temperature, request.settings.draw_rule)
        may_speculate = draft is not None
        may_have = may_speculate and self._features_fit(request)
        plan, load = self._plan(), target.worker.session_count
        is_probe = may_speculate and self._probing.begins(plan, name, load)
        # Where no tree is grown they would only cost time; a request can still ask for them later.
        planned = plan.tree_for(name, load)
        grows_trees = is_probe or (planned is not None and len(planned.parents) > 1)
        has_features = (
            may_have and grows_trees and draft is not None and draft.pool.feature_size > 0
        )
        settings = replace(request.settings, with_features=has_features)
        session_id = sequence.session_id
        return Participants(
            sequence,
            WorkerSession(draft, GROW_TREE, session_id, settings) if draft else None,
            WorkerSession(target, VERIFY_TREE, session_id, settings, sequence.prefilled),
            name,
            may_speculate,
            is_probe,
            may_have,
            has_features,
        )

    def _features_fit(self, request: PreparedRequest) -> bool:
        """Whether one message can open a draft's session even at the end of the request."""
        size = self._target.feature_size
        tokens = len(request.prompt_token_ids) + request.max_new_tokens
        if 2 * size * tokens <= FEATURES_LIMIT_BYTES:
            return True
        log.info("request too long for its features", tokens=tokens, feature_size=size)
        return False
