"""What an operator sets for a planner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc


@dataclass(frozen=True, slots=True)
class PlannerSettings:
    """Whom a planner plans for, and within which limits."""

    target_addresses: Sequence[str]  # HOST:PORT of each; one of them is measured
    draft_addresses: Sequence[str]
    redis_url: str = field(repr=False)  # may hold a password
    max_nodes: int | None = None  # None: by the target's placement
    max_levels: int | None = None
    max_batch_size: int | None = None
    replan_seconds: float = 1.0
    credentials: grpc.ChannelCredentials | None = None  # to show to the workers
