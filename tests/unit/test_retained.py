from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from sequoia.messages import Features
from sequoia.runtime.cache import GROWTH_ROWS, KVCache
from sequoia.runtime.layer_rows import LayerRows
from sequoia.runtime.retained import LEAST_SHARED_TOKENS, RetainedSession, RetainedSessions

CACHE_BYTES = 2 * GROWTH_ROWS * 4  # keys and values of one block, one head, one number each
LONG = list(range(100, 160))


def features(first: int, count: int) -> Features:
    """Rows that carry their number."""
    return np.arange(first, first + count, dtype=np.uint16)[:, None]


def retained(
    token_ids: Sequence[int], given: Sequence[Features] | None = None, spare_tokens: int = 0
) -> RetainedSession:
    """A closed session whose rows carry their number; some tokens at its end may have none."""
    cache, count = KVCache(), len(token_ids) - spare_tokens
    rows = torch.arange(count).float()[None, :, None]
    LayerRows.of(cache).write(0, 0, rows, rows)
    cache.length = count
    return RetainedSession.of(token_ids, cache, given)


def keeping(*sessions: RetainedSession, limit: int = 8) -> RetainedSessions:
    """So many of them, the first of which is the least recently used."""
    kept = RetainedSessions(limit)
    for session in sessions:
        kept.add(session)
    return kept


def taken(
    kept: RetainedSessions, token_ids: Sequence[int], with_features: bool = False
) -> tuple[RetainedSession, int]:
    """What shares most with a prompt; it is taken out."""
    found = kept.find(token_ids, with_features)
    assert found is not None
    kept.remove(found[0])
    return found


def row_numbers(cache: KVCache) -> list[int]:
    """The numbers of the valid rows."""
    numbers: list[int] = LayerRows.of(cache).keys[0][0, : cache.length, 0].int().tolist()
    return numbers


def test_the_longest_common_beginning_wins() -> None:
    """However much of the session lies behind it."""
    short, long = retained(LONG[:30]), retained([*LONG[:40], *[7] * 50])
    assert taken(keeping(short, long), LONG) == (long, 40)


def test_of_equal_beginnings_the_one_that_wastes_least_wins() -> None:
    """The rows behind the common ones are lost, or copied around."""
    long, short = retained([*LONG[:30], *[7] * 30]), retained([*LONG[:30], *[8] * 9])
    kept = keeping(short, long)
    assert taken(kept, LONG) == (short, 30)
    assert taken(kept, LONG) == (long, 30)
    assert kept.find(LONG, False) is None


def test_only_tokens_with_rows_are_shared() -> None:
    """A draft may not have read the last ones."""
    assert taken(keeping(retained(LONG, spare_tokens=5)), LONG)[1] == len(LONG) - 5


def test_a_beginning_that_is_too_short_is_not_shared() -> None:
    """Nor is anything retained that could not share more."""
    assert keeping(retained(LONG)).find([*LONG[: LEAST_SHARED_TOKENS - 1], 7, 7, 7], False) is None
    assert keeping(retained(LONG)).find(LONG[: LEAST_SHARED_TOKENS - 1], False) is None
    assert len(keeping(retained(LONG[: LEAST_SHARED_TOKENS - 1]))) == 0
    assert (
        taken(keeping(retained(LONG)), [*LONG[:LEAST_SHARED_TOKENS], 7])[1] == LEAST_SHARED_TOKENS
    )


def test_features_are_shared_as_far_as_they_were_given() -> None:
    """Who wants none can have more; where there are none, who wants them gets nothing."""
    given = [features(0, 20), features(20, 10)]
    one, count = taken(keeping(retained(LONG, given)), LONG, with_features=True)
    assert count == 30
    assert one.features_of(25)[:, 0].tolist() == list(range(25))
    assert taken(keeping(one), LONG, with_features=False)[1] == len(LONG)
    assert keeping(retained(LONG)).find(LONG, True) is None


def test_rows_are_handed_over_in_their_memory() -> None:
    """It is the same, cut to what is common."""
    one = retained(LONG)
    rows = one.cache.rows
    cache = one.handed_over(50)
    assert cache.rows is rows
    assert row_numbers(cache) == list(range(50))


def test_copied_rows_are_the_copys_own() -> None:
    """The session that they came from is as it was, whatever happens to the copy."""
    one = retained(LONG)
    cache = one.copied(20)
    assert cache is not None
    LayerRows.of(cache).write(0, 20, torch.full((1, 3, 1), -1.0), torch.full((1, 3, 1), -1.0))
    assert row_numbers(cache) == list(range(20))
    assert row_numbers(one.cache) == list(range(len(LONG)))


def test_a_copy_without_room_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt is then read anew, and nothing is lost."""
    one = retained(LONG)

    def full(_: LayerRows, __: int) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(LayerRows, "copied", full)
    assert one.copied(20) is None
    assert one.cache.length == len(LONG)


def test_the_least_recently_used_goes_first() -> None:
    """Unless it was used since; the bytes are those of what is there."""
    texts = [[number] * 20 for number in range(3)]
    kept = keeping(*(retained(text) for text in texts), limit=3)
    first = kept.find(texts[0], False)
    assert first
    kept.use(first[0])
    kept.use(retained(LONG))
    assert kept.memory_bytes == 3 * CACHE_BYTES
    kept.add(retained(LONG))
    assert len(kept) == 3
    assert kept.find(texts[1], False) is None
    assert kept.evict()
    assert kept.find(texts[2], False) is None
    assert kept.memory_bytes == 2 * CACHE_BYTES
    assert kept.clear()
    assert not kept.clear()
    assert not kept.evict()
    assert kept.memory_bytes == len(kept) == 0


def test_one_can_be_kept_from_making_room() -> None:
    """Such as that which is about to be copied from."""
    one, other = retained([1] * 20), retained([2] * 20)
    kept = keeping(one, other)
    assert kept.evict(one)
    assert not kept.evict(one)
    assert taken(kept, [1] * 20)[0] is one


def test_features_take_memory_too() -> None:
    """Those of all parts, and as long as they are kept."""
    kept = keeping(one := retained(LONG, [features(0, 20), features(20, 10)]))
    assert kept.memory_bytes == one.memory_bytes == CACHE_BYTES + 30 * 2
    assert kept.evict()
    assert kept.memory_bytes == 0


def test_a_limit_of_none_keeps_none() -> None:
    """The prefix cache is turned off by that."""
    assert len(keeping(retained(LONG), limit=0)) == 0
