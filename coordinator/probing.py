"""Now and then a tree where the plan has none, so that the planner hears of better times.

A class of requests that is planned without speculation yields no acceptance counts, and without counts
the estimate that led to this plan would stand for ever. So one request in many grows small trees all
the same. Requests rather than steps are probed because a session on the draft is opened by reading
the whole text, which a single step cannot make up for.
"""

from __future__ import annotations

from collections import Counter

from sequoia.plans import BUILT_IN_PLAN, Plan
from sequoia.tree import Topology, level_order

# A probe takes the time of the draft's passes longer at every step: over all requests, about a percent.
REQUESTS_PER_PROBE = 32
PROBE_TREE = Topology(level_order((-1, 0, 0, 1, 1, 3)))


class Probing:
    """Says which requests are probes, by counting them per class."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def begins(self, plan: Plan, request_class: str, batch_size: int) -> bool:
        """Whether the request that begins now is a probe, as the last of `REQUESTS_PER_PROBE`."""
        planned = plan.tree_for(request_class, batch_size)
        if plan.version == BUILT_IN_PLAN.version or planned is None or len(planned.parents) > 1:
            return False
        self._seen[request_class] += 1
        return self._seen[request_class] % REQUESTS_PER_PROBE == 0
