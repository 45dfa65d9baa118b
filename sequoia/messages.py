"""What the roles say to each other, as domain values; `sequoia.rpc.codec` puts them on the wire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sequoia.settings import DrawRule, SamplingSettings
from sequoia.tree import Topology, Tree

Features = NDArray[np.uint16]
"""Hidden states that the target's output layer read, `[positions, hidden]`: the bits of bfloat16
numbers, which numpy has no type for."""


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Fixed for the life of a session; see `SessionSettings` in worker.proto."""

    sampling: SamplingSettings
    draw_rule: DrawRule
    seed: int
    prompt_token_count: int
    vocabulary_size: int
    logprob_count: int | None = None
    with_features: bool = False


@dataclass(frozen=True, slots=True)
class Prefill:
    """Open a session, or rebuild it from its tokens; the last one is the root of the next tree."""

    session_id: str
    token_ids: tuple[int, ...]
    next_step: int
    settings: SessionSettings
    features: Features | None = None  # of all tokens but the last, for a draft that reads them


@dataclass(frozen=True, slots=True)
class Prefilled:
    """The session is open."""

    device_seconds: float
    features: Features | None = None  # of all tokens but the last, where asked for
    model_sha256: str = ""  # of the model that has read the tokens
    dtype: str = ""


@dataclass(frozen=True, slots=True)
class StepHeader:
    """Which step a call is and what the step before it accepted."""

    session_id: str
    step: int
    base_length: int
    accepted_nodes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class GrowTree:
    """Grow a tree of the given shape on the root token."""

    header: StepHeader
    root_token_id: int
    topology: Topology
    # Of the positions before the accepted nodes and before the root, for a draft that reads them.
    features: Features | None = None


@dataclass(frozen=True, slots=True)
class DraftDistribution:
    """The draft's sparse distribution at a node with children: it is q, exactly."""

    token_ids: NDArray[np.uint32]  # [support], most likely first
    weights: NDArray[np.float16]  # [support], not normalised


@dataclass(frozen=True, slots=True)
class GrownTree:
    """The tree that the draft grew, with q at every inner node for draws without replacement."""

    tree: Tree
    distributions: tuple[DraftDistribution, ...] = ()
    device_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class VerifyTree:
    """Check a tree; supports are given per inner node for draws without replacement."""

    header: StepHeader
    tree: Tree
    supports: tuple[NDArray[np.uint32], ...] = ()

    @property
    def root_token_id(self) -> int:
        """The last committed token."""
        return self.tree.token_ids[0]

    @property
    def topology(self) -> Topology:
        """Of the tree."""
        return self.tree.topology


@dataclass(frozen=True, slots=True)
class TargetDistribution:
    """p on the support that was sent, and its mass outside."""

    probs: NDArray[np.float32]  # [support]
    tail_mass: float


@dataclass(frozen=True, slots=True)
class NodeLogprobs:
    """The target's unmodified log probabilities at one node."""

    token_logprob: float
    support_logprobs: NDArray[np.float32]  # [support], empty where none was sent
    top_token_ids: NDArray[np.uint32]  # [logprob_count]
    top_logprobs: NDArray[np.float32]  # [logprob_count]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The target's word on every node of a tree."""

    token_ids: tuple[int, ...]
    distributions: tuple[TargetDistribution, ...] = ()
    logprobs: tuple[NodeLogprobs, ...] = ()
    features: Features | None = None  # of every node, where asked for
    device_seconds: float = 0.0
    batch_size: int = 1


# Calls that one may wait for, itself among them; the time of their passes counts where that is long.
PASSES_PER_CALL = 8
PREFILL_CHUNK = 512  # tokens of a prompt that a pass reads; bounds the memory of a pass


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """Who a worker is and what it can hold."""

    model: str
    tokenizer_sha256: str
    vocabulary_size: int
    context_length: int
    dtype: str
    device: str
    session_limit: int
    kv_cache_limit_bytes: int
    session_count: int
    kv_cache_bytes: int
    node_limit: int
    instance_id: str
    feature_size: int = 0
    kv_bytes_per_token: int = 0  # of all layers; 0: not known
    placement: str = "on-chip"  # or offload
    pass_seconds: float = 0.0  # of a pass over a few tokens
    model_sha256: str = ""
    active_session_count: int = 0  # in use, or used a moment ago

    def call_seconds(self, least: float, passes: int = 1) -> float:
        """The time to give to a call that takes so many passes: `least` seconds, and those of passes."""
        return least + PASSES_PER_CALL * passes * self.pass_seconds

    def prefill_passes(self, token_count: int) -> int:
        """Passes in which a prompt is read, at most: one that is bounded holds no larger tree either."""
        return max(-(-token_count // min(PREFILL_CHUNK, self.node_limit)), 1)


@dataclass(frozen=True, slots=True)
class ProfileSpec:
    """Which passes a worker shall measure: every combination of the three lists."""

    node_counts: Sequence[int]
    batch_sizes: Sequence[int] = (1,)
    prefix_lengths: Sequence[int] = (128,)
    repetition_count: int = 3


@dataclass(frozen=True, slots=True)
class ForwardTime:
    """Median time of one kind of pass."""

    node_count: int
    batch_size: int
    prefix_length: int
    seconds: float
