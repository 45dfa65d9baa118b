"""Which of several workers a session goes to: by how busy they are, and by what they have read already."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

PREFIX_BLOCK_TOKENS = 64  # prefixes are compared by so many tokens
BLOCK_LIMIT = 4096  # remembered per worker: a quarter of a million tokens
# A worker that has read the prefix may have so many sessions more than the least busy one: what it saves is
# a part of one prefill, what it costs is a little time at every step.
AFFINITY_SLACK = 2


@dataclass(frozen=True, slots=True)
class Candidate:
    """One worker, as far as placing a session is concerned.

    Attributes:
        session_count: sessions that it has, those of other coordinators included.
        shared_tokens: tokens at the beginning of the text that it has read lately.
        has_room: whether the session fits beside the others.
        placed_count: sessions that were ever placed there.
    """

    session_count: int
    shared_tokens: int
    has_room: bool
    placed_count: int = 0


def choose(candidates: Sequence[Candidate]) -> int:
    """The index of the worker to take.

    Of those that have room, or of all if none has: the one that has read most of the text, unless it is
    clearly busier than another; among equals the least busy, then the one that was chosen least often.

    Raises:
        ValueError: there are no candidates.
    """
    if not candidates:
        raise ValueError("no workers to choose from")
    roomy = [one for one in candidates if one.has_room] or list(candidates)
    least = min(one.session_count for one in roomy)
    fit = [one for one in roomy if one.session_count <= least + AFFINITY_SLACK]
    best = min(fit, key=lambda one: (-one.shared_tokens, one.session_count, one.placed_count))
    return candidates.index(best)


def prefix_keys(token_ids: Sequence[int]) -> tuple[int, ...]:
    """A key for every whole block of a text, which stands for all tokens up to the block's end.

    Texts that begin alike have their first keys in common. Two different texts may share a key by
    accident, which makes a placement worse and nothing wrong.
    """
    keys: list[int] = []
    key = 0
    for end in range(PREFIX_BLOCK_TOKENS, len(token_ids) + 1, PREFIX_BLOCK_TOKENS):
        key = hash((key, *token_ids[end - PREFIX_BLOCK_TOKENS : end]))
        keys.append(key)
    return tuple(keys)


class PrefixMemory:
    """The prefixes that one worker has read lately; the longest unused are forgotten first."""

    def __init__(self, block_limit: int = BLOCK_LIMIT) -> None:
        self._blocks: OrderedDict[int, None] = OrderedDict()
        self._block_limit = block_limit

    def add(self, keys: Sequence[int]) -> None:
        """Remember a text by its `prefix_keys`."""
        for key in reversed(keys):  # what many texts share is forgotten last
            self._blocks[key] = None
            self._blocks.move_to_end(key)
        while len(self._blocks) > self._block_limit:
            self._blocks.popitem(last=False)

    def shared_tokens(self, keys: Sequence[int]) -> int:
        """Tokens at the beginning of a text that were read before, in whole blocks."""
        return PREFIX_BLOCK_TOKENS * sum(1 for _ in takewhile(self._blocks.__contains__, keys))

    def clear(self) -> None:
        """The worker has started anew, and has read nothing."""
        self._blocks.clear()
