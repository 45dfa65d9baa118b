"""How a rank begins: it looks for reasons not to, joins the others, and loads its shards."""

from __future__ import annotations

from pathlib import Path

import structlog
import torch

from sequoia.runtime.catalogue import resolve
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.loading import choose_device, choose_dtype
from sequoia.runtime.sharding.following import Follower
from sequoia.runtime.sharding.group import Group
from sequoia.runtime.sharding.leading import Lead, LeadingModel
from sequoia.runtime.sharding.loading import check_shardable, device_of, load_shards
from sequoia.runtime.sharding.ranks import Ranks

log = structlog.get_logger(__name__)


def lead_shards(
    folder: Path, dtype: torch.dtype, device: torch.device, ranks: Ranks
) -> LeadingModel:
    """Rank 0's model; called on the thread that will run it.

    Raises:
        ModelError: it cannot be shared, or not be loaded.
    """
    group = _joined(folder, device, ranks)
    return LeadingModel(load_shards(folder, dtype, ranks.size), Lead(group), ranks.size)


def follow_shards(target: str, dtype: str, device: str, threads: int, ranks: Ranks) -> None:
    """Be one of the other ranks, to the end; options as rank 0 has them.

    Raises:
        ModelError: the model cannot be found, shared or loaded.
        LostLeadError: rank 0 is gone.
    """
    if threads:
        torch.set_num_threads(threads)
    folder, place = resolve(target), choose_device(device)
    group = _joined(folder, place, ranks)
    model = TreeModel(load_shards(folder, choose_dtype(dtype, place), ranks.size))
    log.info("following", rank=ranks.rank, device=str(model.device))
    Follower(model, group).follow()


def _joined(folder: Path, device: torch.device, ranks: Ranks) -> Group:
    check_shardable(folder, ranks.size)
    own = device_of(device, ranks)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    return Group(ranks, own)
