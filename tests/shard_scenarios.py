"""What two ranks do in a test; `tests.sharding` runs these functions on both."""

from __future__ import annotations

import json
import os
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.tensor
from torch import Tensor
from transformers.distributed import sharding_utils
from transformers.models.llama import modeling_llama

from sequoia.runtime import pairing, service
from sequoia.runtime.cache import KVCache
from sequoia.runtime.footprint import kv_bytes_per_token
from sequoia.runtime.forward import PassOutput, TreeModel
from sequoia.runtime.loading import load_model
from sequoia.runtime.segment import Segment
from sequoia.runtime.selfcheck import check_tree_attention
from sequoia.runtime.sharding.following import Follower
from sequoia.runtime.sharding.group import Group
from sequoia.runtime.sharding.leading import Lead, LeadingModel
from sequoia.runtime.sharding.loading import load_shards
from sequoia.runtime.sharding.ranks import Ranks
from sequoia.tree import Topology
from target_service import __main__ as target_service
from target_service import verifier

# What ranks would import one by one after they are forked.
PRELOADED = (pairing, service, verifier, torch.distributed.tensor, modeling_llama, sharding_utils)

CPU = torch.device("cpu")
TREE = Topology((-1, 0, 0, 1, 2, 2))
PASS_TIMEOUT = timedelta(seconds=3)


def serve(*arguments: str) -> None:
    """Be a rank of a target worker, as `python -m target_service` is."""
    target_service.app(arguments)


def compare(folder: str) -> None:
    """Rank 0 writes how far its sharded model is from the whole one, the other how many caches it had."""
    rank, group = _joined()
    if rank:
        follower = Follower(TreeModel(load_shards(Path(folder), torch.float32, 2)), group)
        counts = _counted(follower)
        _meet()
        follower.follow()
        print(json.dumps({"cache_counts": [*counts, len(follower.caches)]}))  # noqa: T201 the test reads it
        return
    sharded = LeadingModel(load_shards(Path(folder), torch.float32, 2), Lead(group), 2)
    whole = load_model(Path(folder), torch.float32, CPU)
    _meet()
    found = {
        "ends": _distance(*(model.plain_ends([[1, 2, 3], [4, 5]]) for model in (sharded, whole))),
        "passes": _compared_passes(sharded, whole),
        "pass_seconds": check_tree_attention(sharded),
        "kv_bytes_per_token": [kv_bytes_per_token(model) for model in (sharded, whole)],
    }
    print(json.dumps(found))  # noqa: T201 the test reads it
    sharded.end()


def fail(folder: str) -> None:
    """Both serve, until a pass of rank 1 fails."""
    rank, group = _joined()
    model = load_shards(Path(folder), torch.float32, 2)
    _meet()
    if rank:
        follower = Follower(TreeModel(model), group)
        follower.model.model.forward = _out_of_memory
        follower.follow()
    lead = Lead(group)
    lead.is_serving = True
    LeadingModel(model, lead, 2).prefill(KVCache(), [1, 2, 3])


def _joined() -> tuple[int, Group]:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    return rank, Group(Ranks(rank, 2, rank, 2), CPU, PASS_TIMEOUT)


def _meet() -> None:
    """Wait for the other, who may take longer to load than a pass may last."""
    dist.barrier(dist.new_group(backend="gloo", timeout=timedelta(minutes=1)))


def _counted(follower: Follower) -> list[int]:
    """How many caches there are at each pass to come."""
    counts: list[int] = []
    follower.model.model.register_forward_pre_hook(lambda *_: counts.append(len(follower.caches)))
    return counts


def _out_of_memory(**_: object) -> None:
    raise RuntimeError("out of memory")


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _compared_passes(sharded: LeadingModel, whole: TreeModel) -> list[float]:
    """Distances of logits and features over the lives of some sessions, on either model."""
    said, expected = (_lives(model) for model in (sharded, whole))
    return [
        distance
        for one, other in zip(said, expected, strict=True)
        for distance in (
            _distance(one.logits, other.logits),
            _distance(one.features, other.features),
        )
    ]


@torch.inference_mode()
def _lives(model: TreeModel) -> list[PassOutput]:
    """Two sessions together, of which one outlives the other, copies, and a time with nothing to do."""
    first, second = KVCache(), KVCache()
    model.prefill(first, [3, 1, 4, 1, 5])
    model.prefill(second, [2, 7, 1])
    outputs = []
    for path in ((0, 2, 5), (0, 1)):
        starts = first.length, second.length
        trees = [Segment.tree(cache, TREE, (2, 7, 1, 8, 2, 8)) for cache in (first, second)]
        outputs += model.forward(trees)
        for cache, start in zip((first, second), starts, strict=True):
            cache.keep(start, [start + node for node in path])
    copy = first.repeated(40)
    outputs += model.forward([Segment.chain(copy, [9, 8])])
    beginning = first.copied(4)
    assert beginning
    outputs += model.forward([Segment.chain(cache, [9, 8, 7]) for cache in (beginning, first)])
    del first, copy, beginning, trees
    if model.shard_count > 1:
        time.sleep(1.2 * PASS_TIMEOUT.total_seconds())  # longer than ranks wait for each other
    outputs += model.forward([Segment.chain(second, [9, 8, 7])])
    return outputs
