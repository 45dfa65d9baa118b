from __future__ import annotations

import pytest

from coordinator.placement import (
    AFFINITY_SLACK,
    PREFIX_BLOCK_TOKENS,
    Candidate,
    PrefixMemory,
    choose,
    prefix_keys,
)

TEXT = tuple(range(5 * PREFIX_BLOCK_TOKENS))


def candidate(
    session_count: int = 0, shared: int = 0, has_room: bool = True, placed: int = 0
) -> Candidate:
    """A worker, idle unless it is said otherwise."""
    return Candidate(session_count, shared, has_room, placed)


def test_the_least_busy_worker_is_chosen() -> None:
    """Nobody has read the text, so the load decides."""
    assert choose([candidate(3), candidate(1), candidate(2)]) == 1


def test_among_equals_it_is_their_turn() -> None:
    """Who was chosen less often comes first, so that idle workers share what comes one by one."""
    assert choose([candidate(placed=3), candidate(placed=2), candidate(placed=2)]) == 1


def test_a_worker_that_has_read_the_prefix_is_preferred() -> None:
    """Even when it is a little busier, since it need not read that part again."""
    assert choose([candidate(0), candidate(AFFINITY_SLACK, shared=64)]) == 1
    assert choose([candidate(0, shared=64), candidate(0, shared=128)]) == 1


def test_a_busy_worker_is_spared_whatever_it_has_read() -> None:
    """What a prefix saves is part of one prefill; a full batch slows every step."""
    assert choose([candidate(0), candidate(AFFINITY_SLACK + 1, shared=4096)]) == 0


def test_room_comes_before_everything_else() -> None:
    """A worker that cannot hold the session is taken only if none can."""
    assert choose([candidate(0, shared=64, has_room=False), candidate(9)]) == 1
    assert choose([candidate(5, has_room=False), candidate(4, has_room=False)]) == 1


def test_no_workers_are_no_choice() -> None:
    """The caller has to have one."""
    with pytest.raises(ValueError, match="no workers"):
        choose([])


def test_texts_that_begin_alike_share_their_first_keys() -> None:
    """A key stands for everything up to its block's end, so a difference changes all that follow."""
    other = (*TEXT[: 2 * PREFIX_BLOCK_TOKENS], -1, *TEXT[2 * PREFIX_BLOCK_TOKENS + 1 :])
    assert len(prefix_keys(TEXT)) == 5
    assert prefix_keys(TEXT)[:2] == prefix_keys(other)[:2]
    assert not set(prefix_keys(TEXT)[2:]) & set(prefix_keys(other)[2:])


def test_parts_of_blocks_do_not_count() -> None:
    """A text shorter than a block has no prefix to share."""
    assert prefix_keys(TEXT[: PREFIX_BLOCK_TOKENS - 1]) == ()
    assert prefix_keys(TEXT[: 2 * PREFIX_BLOCK_TOKENS - 1]) == prefix_keys(
        TEXT[:PREFIX_BLOCK_TOKENS]
    )


def test_a_memory_tells_how_much_of_a_text_was_read() -> None:
    """In tokens, from the beginning."""
    memory = PrefixMemory()
    memory.add(prefix_keys(TEXT[: 3 * PREFIX_BLOCK_TOKENS]))
    assert memory.shared_tokens(prefix_keys(TEXT)) == 3 * PREFIX_BLOCK_TOKENS
    assert memory.shared_tokens(prefix_keys(TEXT[1:])) == 0
    memory.clear()
    assert memory.shared_tokens(prefix_keys(TEXT)) == 0


def test_a_memory_is_bounded_and_forgets_ends_before_beginnings() -> None:
    """What many texts share is worth more than how one of them went on."""
    memory = PrefixMemory(block_limit=4)
    memory.add(prefix_keys(TEXT))
    assert memory.shared_tokens(prefix_keys(TEXT)) == 4 * PREFIX_BLOCK_TOKENS
    memory.add(prefix_keys([-1] * 2 * PREFIX_BLOCK_TOKENS))
    assert memory.shared_tokens(prefix_keys(TEXT)) == 2 * PREFIX_BLOCK_TOKENS
