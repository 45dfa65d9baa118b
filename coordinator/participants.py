"""One request and its sessions on both workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from coordinator.placement import prefix_keys
from coordinator.probing import PROBE_TREE
from coordinator.sequence import Sequence
from coordinator.worker_session import WorkerSession
from sequoia.messages import GrownTree, GrowTree, Verdict, VerifyTree
from sequoia.plans import PlannedTree
from sequoia.tree import ROOT_ONLY, Topology


@dataclass(slots=True)
class Participants:
    """A request, its sessions, and what it may do with them."""

    sequence: Sequence
    draft: WorkerSession[GrowTree, GrownTree] | None
    target: WorkerSession[VerifyTree, Verdict]
    request_class: str
    may_speculate: bool
    is_probe: bool  # grows trees where the plan has none
    may_have_features: bool  # the draft reads them, and one message can carry those of all tokens
    has_features: bool  # the target has been asked for them

    @property
    def disturbance_count(self) -> int:
        """How often a session was opened, or a call repeated."""
        return sum(session.disturbance_count for session in self.sessions)

    @property
    def sessions(self) -> list[WorkerSession[Any, Any]]:
        """Those that there are."""
        return [session for session in (self.target, self.draft) if session]

    @property
    def load(self) -> int:
        """Sessions that share the target's passes, this one among them."""
        return self.target.worker.session_count

    def topology(self, planned: PlannedTree | None) -> Topology:
        """The planned tree, or a probe's where none is planned, no deeper than tokens are wanted."""
        if not self.may_speculate:
            return ROOT_ONLY
        shape = planned.topology if planned else ROOT_ONLY
        if self.is_probe and shape.node_count == 1:
            shape = PROBE_TREE
        return shape.truncated(self.sequence.remaining_count)

    def close_sessions(self) -> None:
        """Free them on the workers, without waiting for it."""
        keys = prefix_keys(self.sequence.token_ids)
        for session in self.sessions:
            session.finish(keys)
