"""What fits a device: which layers stay, which are streamed, and what is left for sessions; pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

RING_SIZE = 2  # buffers; a third would save less reading than a resident layer of its size
LEAST_PASS_TOKENS = 64
# By default the KV cache gets an eighth of a budget; if that is less than so many tokens take, what they
# take, up to a quarter; and never more than this. A layer that stays saves its bytes at every pass, a
# session's rows save theirs only on a GPU and at the session's own passes.
KV_CACHE_BYTES = 4 * 2**30
KV_CACHE_SHARE = 8
KV_CACHE_TOKENS = 1024
KV_CACHE_MOST_SHARE = 4
ACTIVATION_SHARE = 8  # at most
# Copies of a layer's keys and values that stand on the device, where the host has them: those that are
# computed with, those that come, and those of several sessions side by side.
KV_COPIES = 3
GRAIN_BYTES = 2**20  # to which the smallest budget is told


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a model takes, in bytes.

    Attributes:
        process_bytes: what the process takes beside the model.
        rest_bytes: embedding, norms, output layer and whatever else is no layer.
        layer_bytes: every layer while it stays on the device.
        slot_bytes: a buffer of the ring.
        scratch_bytes: what a streamed layer is converted into; 0 where it need not be.
        token_bytes: activations and logits of a token of a pass.
        kv_token_bytes: KV cache of a token, all layers together; 0 where that is not known.
        kv_cache_limit_bytes: as the operator wants it; None leaves it to the budget.
        has_host: whether the device has a host whose memory can hold what it cannot.
        node_limit: most tokens of a tree.
    """

    process_bytes: int
    rest_bytes: int
    layer_bytes: tuple[int, ...]
    slot_bytes: int
    scratch_bytes: int
    token_bytes: int
    kv_token_bytes: int
    kv_cache_limit_bytes: int | None
    has_host: bool
    node_limit: int

    def on_chip_bytes(self, budget: int) -> int:
        """What the model takes when all of it stays."""
        return self._fixed_bytes(budget) + sum(self.layer_bytes)

    def least_bytes(self, budget: int) -> int:
        """What it takes when all layers are streamed."""
        streaming = RING_SIZE * self.slot_bytes + self.scratch_bytes
        return self._fixed_bytes(budget) + min(streaming, sum(self.layer_bytes))

    def kv_cache_bytes(self, budget: int) -> int:
        """Most KV cache over all sessions, wherever it is."""
        return self.kv_cache_limit_bytes or self._kv_cache_share(budget)

    def device_kv_bytes(self, budget: int) -> int:
        """Set aside for it on the device: all of it, or by default's measure where the host has the rest."""
        wanted = self.kv_cache_bytes(budget)
        return min(wanted, self._kv_cache_share(budget)) if self.has_host else wanted

    def _kv_cache_share(self, budget: int) -> int:
        least = min(KV_CACHE_TOKENS * self.kv_token_bytes, budget // KV_CACHE_MOST_SHARE)
        return min(KV_CACHE_BYTES, max(budget // KV_CACHE_SHARE, least))

    def _kv_copies_bytes(self, budget: int) -> int:
        """Set aside for rows that are in the host's memory, while their layer is computed."""
        limit = self.kv_cache_bytes(budget)
        if limit <= self.device_kv_bytes(budget):
            return 0
        return KV_COPIES * -(-limit // len(self.layer_bytes))

    def pass_tokens(self, budget: int) -> int:
        """Tokens for which activations are set aside: a pass has no more."""
        affordable = max(budget // ACTIVATION_SHARE // self.token_bytes, LEAST_PASS_TOKENS)
        return min(affordable, self.node_limit)

    def _fixed_bytes(self, budget: int) -> int:
        activations = self.pass_tokens(budget) * self.token_bytes
        rows = self.device_kv_bytes(budget) + self._kv_copies_bytes(budget)
        return self.process_bytes + self.rest_bytes + rows + activations


@dataclass(frozen=True, slots=True)
class Division:
    """A budget divided.

    Attributes:
        resident: layers that stay on the device.
        streamed: the others, in the order of a pass.
        kv_cache_limit_bytes: most bytes of KV cache.
        device_kv_bytes: most of them on the device; where these are fewer, the host has room for all.
        pass_tokens: most tokens of a pass.
    """

    resident: tuple[int, ...]
    streamed: tuple[int, ...]
    kv_cache_limit_bytes: int
    device_kv_bytes: int
    pass_tokens: int

    @property
    def host_kv_bytes(self) -> int:
        """KV cache that the host's memory has room for."""
        fits = self.device_kv_bytes >= self.kv_cache_limit_bytes
        return 0 if fits else self.kv_cache_limit_bytes


class BudgetError(ValueError):
    """A budget in which the model cannot run.

    Attributes:
        smallest: bytes that would do.
    """

    def __init__(self, budget: int, smallest: int) -> None:
        super().__init__(f"{budget} bytes are too few; {smallest} would do")
        self.smallest = smallest


def divide(sizes: Sizes, budget: int) -> Division:
    """Keep as many layers as fit, evenly among those that are streamed past them.

    So reads and computation overlap all through a pass, and not in one half of it.

    Raises:
        BudgetError: not even the ring fits.
    """
    count = len(sizes.layer_bytes)
    if sizes.least_bytes(budget) > budget:
        raise BudgetError(budget, smallest(lambda size: sizes.least_bytes(size) <= size))
    resident = tuple(range(count))
    if sizes.on_chip_bytes(budget) > budget:
        left = budget - sizes.least_bytes(budget)
        choices = (spread(kept, count) for kept in range(count - 1, -1, -1))
        resident = next(some for some in choices if sum(sizes.layer_bytes[i] for i in some) <= left)
    streamed = tuple(i for i in range(count) if i not in set(resident))
    return Division(
        resident,
        streamed,
        sizes.kv_cache_bytes(budget),
        sizes.device_kv_bytes(budget),
        sizes.pass_tokens(budget),
    )


def spread(kept: int, count: int) -> tuple[int, ...]:
    """`kept` of `count` layers, evenly, the streamed ones first: these are there when a pass begins."""
    return tuple(i for i in range(count) if (i + 1) * kept // count > i * kept // count)


def smallest(suffices: Callable[[int], bool]) -> int:
    """The least budget that does, to a whole MiB; a larger one always does as well."""
    low, high = 0, 1
    while not suffices(high * GRAIN_BYTES):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle * GRAIN_BYTES) else (middle, high)
    return high * GRAIN_BYTES


def tiers(sizes: Mapping[int, int], budget: int) -> tuple[int, ...]:
    """The layers of these sizes that a budget of host memory holds, the first ones that fit."""
    kept, left = [], budget
    for layer, byte_count in sizes.items():
        if byte_count <= left:
            kept.append(layer)
            left -= byte_count
    return tuple(kept)
