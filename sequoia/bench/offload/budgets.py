"""Whether a target can run in the budgets at all, told before anything is started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from sequoia.bench.errors import OptionError
from sequoia.runtime.offload.budget import BudgetError, divide
from sequoia.runtime.offload.checkpoint import Checkpoint
from sequoia.runtime.offload.loading import GROWTH_BYTES, sizes_of
from sequoia.runtime.offload.placement import PlacementOptions
from sequoia.runtime.offload.skeleton import Skeleton


def require_budgets(
    target: Path, dtype: torch.dtype, device_memory: int, budgets: Sequence[int]
) -> None:
    """Refuse budgets in which a target cannot run on a CPU.

    What the target's process holds before the weights nobody knows yet, so a budget that passes may
    still turn out to be too small; the target says so at its start.

    Raises:
        OptionError: naming the option, the budget and what is more than it.
        ModelError: the target's files are broken.
    """
    skeleton = Skeleton.of(target, Checkpoint(target), dtype)
    node_limit = PlacementOptions().node_limit
    sizes = sizes_of(skeleton, dtype, torch.device("cpu"), None, node_limit)
    least = replace(sizes, process_bytes=GROWTH_BYTES)
    named = [("--device-memory", device_memory), *(("--budgets", budget) for budget in budgets)]
    for option, budget in named:
        try:
            divide(least, budget)
        except BudgetError as error:
            raise OptionError(
                f"{option}: {budget} bytes are too few for {target}, which takes more than "
                f"{error.smallest} ({error.smallest // 2**20}MiB) even when all its layers are streamed"
            ) from error
