from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import pytest
import torch

from sequoia.errors import CapacityError, MalformedTreeError, StaleStepError, UnknownSessionError
from sequoia.messages import Prefill, SessionSettings, StepHeader
from sequoia.runtime.cache import KVCache
from sequoia.runtime.layer_rows import LayerRows
from sequoia.runtime.session import Session
from sequoia.runtime.sessions import SessionTable
from sequoia.settings import DrawRule, SamplingSettings
from sequoia.tree import Topology, Tree

SETTINGS = SessionSettings(SamplingSettings(temperature=0), DrawRule.GREEDY, 0, 2, 100)
PROMPT = (7, 8, 9)
#    0
#  1   2
#  3   4
TREE = Tree(Topology((-1, 0, 0, 1, 2)), (9, 11, 12, 13, 14))
CACHE_BYTES = 2 * 256 * 4  # keys and values of one block of rows, one head, one number each


def prefill(name: str, next_step: int = 0) -> Prefill:
    """What opens a session."""
    return Prefill(name, PROMPT, next_step, SETTINGS)


def session() -> Session[str]:
    """A session as a prefill leaves it: every token but the root is cached."""
    opened: Session[str] = Session("s", SETTINGS, list(PROMPT), 0)
    fill(opened, 2)
    return opened


def fill(session: Session[str], count: int) -> None:
    """Rows that carry their number, as a pass writes them."""
    start = session.cache.length
    rows = torch.arange(start, start + count).float()[None, :, None]
    LayerRows.of(session.cache).write(0, start, rows, rows)
    session.cache.length += count


def verified() -> Session[str]:
    """A session after its first step: the rows of a whole tree are cached."""
    one = session()
    one.advance(StepHeader("s", 0, 3), 9)
    fill(one, TREE.topology.node_count)
    one.node_rows = {node: 2 + node for node in range(TREE.topology.node_count)}
    one.finish_step(StepHeader("s", 0, 3), TREE, "reply 0", 1)
    return one


def cached_rows(session: Session[str]) -> list[int]:
    """The numbers of the valid rows."""
    rows: list[int] = (
        LayerRows.of(session.cache).keys[0][0, : session.cache.length, 0].int().tolist()
    )
    return rows


def table(
    *names: str, session_limit: int = 3, memory_limit: int = 2**20, retained_limit: int = 0
) -> SessionTable[str]:
    """A table with some open sessions."""
    sessions: SessionTable[str] = SessionTable(
        session_limit, memory_limit, retained_limit=retained_limit, token_bytes=CACHE_BYTES // 256
    )
    for name in names:
        sessions.open(prefill(name))
    return sessions


def names_in(sessions: SessionTable[str]) -> set[str]:
    """Which sessions can still be used; looking does not count as using."""
    return set(sessions._sessions)


def test_the_first_step_follows_the_prefill() -> None:
    """Nothing was accepted before it, and its root is the last token of the prefill."""
    one = session()
    assert one.repeated(StepHeader("s", 0, 3)) is None
    one.advance(StepHeader("s", 0, 3), 9)
    assert one.token_ids == [7, 8, 9]
    assert one.cache.length == 2


def test_a_step_commits_what_the_last_one_accepted() -> None:
    """The accepted path and the new root become tokens; their rows stay, the others go."""
    one = verified()
    one.advance(StepHeader("s", 1, 6, (2, 4)), 21)
    assert one.token_ids == [7, 8, 9, 12, 14, 21]
    assert cached_rows(one) == [0, 1, 2, 4, 6]
    assert one.tree is None


def test_a_step_after_a_rejected_tree_commits_the_bonus_token_alone() -> None:
    """The row of the old root stays."""
    one = verified()
    one.advance(StepHeader("s", 1, 4), 21)
    assert one.token_ids == [7, 8, 9, 21]
    assert cached_rows(one) == [0, 1, 2]


def test_accepted_nodes_that_were_never_forwarded_have_no_rows() -> None:
    """A draft does not forward its leaves; their tokens are committed, and forwarded later."""
    one = verified()
    one.node_rows = {0: 2, 2: 3}
    one.advance(StepHeader("s", 1, 6, (2, 4)), 21)
    assert one.token_ids == [7, 8, 9, 12, 14, 21]
    assert cached_rows(one) == [0, 1, 2, 3]


def test_a_repeated_step_is_answered_from_the_last_reply() -> None:
    """Nothing is computed or committed twice."""
    assert verified().repeated(StepHeader("s", 0, 3)) == "reply 0"


@pytest.mark.parametrize("step", [0, 2, 3])
def test_a_step_out_of_turn_is_stale(step: int) -> None:
    """The message and its facts say which step is next."""
    one = session()
    one.next_step = 1
    with pytest.raises(StaleStepError) as caught:
        one.repeated(StepHeader("s", step, 3))
    assert caught.value.metadata == {"field": "header.step", "limit": "1", "value": str(step)}


def test_a_rebuilt_session_goes_on_with_the_step_of_its_prefill() -> None:
    """A prefill says which step follows; there is no last reply to repeat yet."""
    sessions = table()
    one = sessions.open(prefill("s", next_step=5))
    assert one.repeated(StepHeader("s", 5, 3)) is None
    with pytest.raises(StaleStepError):
        one.repeated(StepHeader("s", 4, 3))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (StepHeader("s", 1, 3), 4),
        (StepHeader("s", 1, 5), 4),
        (StepHeader("s", 1, 4, (2, 4)), 6),
    ],
)
def test_a_wrong_base_length_is_stale(header: StepHeader, expected: int) -> None:
    """Coordinator and worker disagree about the tokens: the session has to be rebuilt."""
    one = verified()
    with pytest.raises(StaleStepError) as caught:
        one.advance(header, 21)
    assert caught.value.metadata["field"] == "header.base_length"
    assert caught.value.metadata["limit"] == str(expected)
    assert caught.value.metadata["value"] == str(header.base_length)


@pytest.mark.parametrize("path", [(3,), (1, 4), (5,), (0,)])
def test_a_wrong_path_is_malformed_and_changes_nothing(path: tuple[int, ...]) -> None:
    """Accepted nodes lead down the last tree without a gap, or nothing is committed."""
    one = verified()
    with pytest.raises(MalformedTreeError) as caught:
        one.advance(StepHeader("s", 1, 4 + len(path), path), 21)
    assert caught.value.metadata["field"] == "header.accepted_node_indices"
    assert one.token_ids == [7, 8, 9]
    assert one.tree is TREE


def test_nothing_can_be_accepted_before_the_first_step() -> None:
    """There is no tree yet."""
    with pytest.raises(MalformedTreeError, match="accepted node 1"):
        session().advance(StepHeader("s", 0, 3, (1,)), 9)


def test_the_first_root_must_be_the_last_token_of_the_prefill() -> None:
    """Otherwise the tree would hang on another text."""
    with pytest.raises(StaleStepError, match="root token 21: the session ends with 9"):
        session().advance(StepHeader("s", 0, 3), 21)


def test_an_unknown_session_is_named() -> None:
    """The coordinator opens it again."""
    sessions = table()
    with pytest.raises(UnknownSessionError) as caught, sessions.using("lost"):
        pass
    assert caught.value.metadata == {"session_id": "lost"}


def test_the_longest_unused_session_is_evicted() -> None:
    """Use counts, not age."""
    sessions = table("a", "b", "c")
    with sessions.using("a"):
        pass
    sessions.open(prefill("d"))
    assert names_in(sessions) == {"a", "c", "d"}


def test_a_busy_session_is_never_evicted() -> None:
    """The longest unused idle one goes instead, however recently it was used."""
    sessions = table("a", "b", "c")
    with sessions.using("a"), sessions.using("b"):
        sessions.open(prefill("d"))
        assert names_in(sessions) == {"a", "b", "d"}


def test_a_table_of_busy_sessions_is_full() -> None:
    """No room and nothing to evict is told with the limit, and nobody loses anything."""
    sessions = table("a", "b", session_limit=2)
    with sessions.using("a"), sessions.using("b"):
        with pytest.raises(CapacityError) as caught:
            sessions.open(prefill("c"))
        assert caught.value.metadata == {"field": "session_limit", "limit": "2"}
    assert names_in(sessions) == {"a", "b"}


def test_a_session_of_the_same_name_is_replaced() -> None:
    """A rebuilt session takes the place of the old one; nothing else is evicted for it."""
    sessions = table("a", "b", "c")
    old = sessions._sessions["a"]
    new = sessions.open(prefill("a", next_step=4))
    assert names_in(sessions) == {"a", "b", "c"}
    with sessions.using("a") as one:
        assert one is new is not old


def test_a_closed_session_is_gone() -> None:
    """Closing one that is not there is no error."""
    sessions = table("a", "b")
    sessions.close("a")
    sessions.close("a")
    assert names_in(sessions) == {"b"}


def test_a_busy_session_is_closed_after_its_use() -> None:
    """A pass keeps what it works on until it is over."""
    sessions = table("a")
    with sessions.using("a"):
        sessions.close("a")
        assert names_in(sessions) == {"a"}
    assert names_in(sessions) == set()


def test_a_session_opened_again_is_not_closed_by_an_earlier_close() -> None:
    """The new session of a name does not inherit the old one's end."""
    sessions = table("a")
    with sessions.using("a"):
        sessions.close("a")
        sessions.open(prefill("a"))
    assert names_in(sessions) == {"a"}


def test_a_session_is_idle_again_after_a_failed_use() -> None:
    """An exception does not leave it busy for ever."""
    sessions = table("a", session_limit=1)
    with pytest.raises(RuntimeError), sessions.using("a"):
        raise RuntimeError
    sessions.open(prefill("b"))
    assert names_in(sessions) == {"b"}


def test_sessions_over_the_memory_limit_are_evicted() -> None:
    """Idle ones go, the longest unused first, until the rest fits."""
    sessions = table("a", "b", "c", memory_limit=2 * CACHE_BYTES)
    for name in ("b", "a", "c"):
        with sessions.using(name) as one:
            fill(one, 10)
    assert sessions.kv_cache_bytes == 3 * CACHE_BYTES
    sessions.enforce_memory_limit()
    assert names_in(sessions) == {"a", "c"}
    assert sessions.kv_cache_bytes == 2 * CACHE_BYTES


def test_what_is_in_use_alone_can_be_over_the_memory_limit() -> None:
    """Then there is nothing to evict, and the failure tells the need and the limit."""
    sessions = table("a", memory_limit=CACHE_BYTES - 1)
    with sessions.using("a") as one:
        fill(one, 10)
        with pytest.raises(CapacityError) as caught:
            sessions.enforce_memory_limit()
    assert caught.value.metadata["limit"] == str(CACHE_BYTES - 1)
    assert caught.value.metadata["value"] == str(CACHE_BYTES)


class Counted(KVCache):
    """A cache that notes how often it was asked for its size."""

    looks = 0

    @property
    def memory_bytes(self) -> int:
        self.looks += 1
        return super().memory_bytes


def test_only_sessions_in_use_are_measured() -> None:
    """A step of one session costs the same however many others there are."""
    sessions = table("a", "b")
    for name in ("a", "b"):
        with sessions.using(name) as one:
            one.cache = Counted()
            fill(one, 10)
    idle = sessions._sessions["b"].cache
    assert isinstance(idle, Counted)
    idle.looks = 0
    with sessions.using("a"):
        sessions.enforce_memory_limit()
    assert idle.looks == 0
    assert sessions.kv_cache_bytes == 2 * CACHE_BYTES


def test_memory_is_counted_until_a_session_is_free() -> None:
    """Growing, being replaced, closed in use, dropped in use: the sum is that of what is held."""
    sessions = table("a", "b")
    with sessions.using("a") as one:
        fill(one, 10)
        fill(one, 300)
    assert sessions.kv_cache_bytes == 2 * CACHE_BYTES
    sessions.open(prefill("a"))
    assert sessions.kv_cache_bytes == 0
    with sessions.using("a") as one, sessions.using("b") as other:
        fill(one, 10)
        fill(other, 10)
        sessions.enforce_memory_limit()
        sessions.close("a")
        sessions.drop(other)
        assert sessions.kv_cache_bytes == CACHE_BYTES
    assert sessions.kv_cache_bytes == 0
    assert names_in(sessions) == set()


def test_a_session_is_busy_as_long_as_anybody_uses_it() -> None:
    """A pass inside of a prefill ends before it."""
    sessions = table(session_limit=1)
    with sessions.opening(prefill("a")) as one:
        with sessions.holding(one):
            pass
        with pytest.raises(CapacityError):
            sessions.open(prefill("b"))
    sessions.open(prefill("b"))
    assert names_in(sessions) == {"b"}


def test_a_session_that_fails_to_open_is_gone() -> None:
    """Whatever the failure was."""
    sessions = table()
    with pytest.raises(RuntimeError), sessions.opening(prefill("a")):
        raise RuntimeError
    assert names_in(sessions) == set()


def test_no_step_comes_before_the_end_of_the_prefill() -> None:
    """The session does not hold its whole text yet."""
    sessions = table()
    with sessions.opening(prefill("a")) as one, pytest.raises(StaleStepError, match="prefill"):
        one.repeated(StepHeader("a", 0, 3))
    assert one.repeated(StepHeader("a", 0, 3)) is None


def test_a_table_counts_its_sessions() -> None:
    """As GetInfo reports them."""
    assert len(table("a", "b")) == 2


class Clock:
    """Time that passes when it is told to."""

    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_sessions_at_work_are_counted_apart() -> None:
    """Those in use, and those used within ten seconds: others may be left from a coordinator that died."""
    clock = Clock()
    sessions: SessionTable[str] = SessionTable(5, 2**20, clock=clock)
    for name in ("left", "busy", "lately"):
        sessions.open(prefill(name))
    with sessions.using("busy"):
        clock.seconds += 5.0
        with sessions.using("lately"):
            pass
        clock.seconds += 9.0
        assert sessions.counts() == (3, 2)
        clock.seconds += 1.0
        assert sessions.counts() == (3, 1)
    assert sessions.counts() == (3, 1)


@pytest.mark.parametrize("looks", [SessionTable.counts, lambda table: table.open(prefill("new"))])
def test_a_session_that_nobody_comes_back_to_expires(
    looks: Callable[[SessionTable[str]], object],
) -> None:
    """After ten minutes without use, whatever room there is; it is freed, not retained, and counted."""
    clock, evicted = Clock(), []
    sessions: SessionTable[str] = SessionTable(
        5, 2**20, clock=clock, on_evicted=lambda: evicted.append(1), retained_limit=5
    )
    spoken(sessions, "left")
    spoken(sessions, "busy")
    spoken(sessions, "stepping")
    with sessions.using("busy"):
        clock.seconds += 599.0
        with sessions.using("stepping"):
            pass
        looks(sessions)
        assert {"left", "busy", "stepping"} <= names_in(sessions)
        clock.seconds += 1.0
        looks(sessions)
        assert names_in(sessions) - {"new"} == {"busy", "stepping"}
    assert (len(evicted), sessions.retained_bytes) == (1, 0)
    assert sessions.kv_cache_bytes == 2 * CACHE_BYTES


TEXT = tuple(range(100, 140))


def spoken(sessions: SessionTable[str], name: str, token_ids: tuple[int, ...] = TEXT) -> None:
    """A session that has read its prompt and checked a tree on it."""
    with sessions.opening(Prefill(name, token_ids, 0, SETTINGS)) as one:
        fill(one, len(token_ids) - 1)
    with sessions.using(name) as one:
        one.advance(StepHeader(name, 0, len(token_ids)), token_ids[-1])
        start = one.cache.length
        fill(one, TREE.topology.node_count)
        one.node_rows = {node: start + node for node in range(TREE.topology.node_count)}
        one.finish_step(StepHeader(name, 0, len(token_ids)), TREE, "reply 0", 1)


def reused(
    sessions: SessionTable[str], token_ids: tuple[int, ...] = (*TEXT, 1, 2), name: str = "next"
) -> list[int]:
    """The rows with which a session begins that has read nothing yet."""
    with sessions.using(sessions.open(Prefill(name, token_ids, 0, SETTINGS)).session_id) as one:
        sessions.reuse(one, with_features=False)
        assert one.reused_count == one.cache.length
        return cached_rows(one) if one.cache.length else []


def test_a_closed_session_leaves_its_committed_rows_to_the_next() -> None:
    """Not those of its last tree but the root's; what it held is the next one's now."""
    sessions = table(retained_limit=3)
    spoken(sessions, "a")
    sessions.close("a")
    assert len(sessions) == sessions.kv_cache_bytes == 0
    assert sessions.retained_bytes == CACHE_BYTES
    assert reused(sessions) == list(range(len(TEXT)))
    assert (sessions.kv_cache_bytes, sessions.retained_bytes) == (CACHE_BYTES, 0)


def test_the_last_token_of_a_prompt_is_never_reused() -> None:
    """It is the root of the first tree, and not read before that."""
    sessions = table(retained_limit=3)
    spoken(sessions, "a")
    sessions.close("a")
    assert reused(sessions, TEXT) == list(range(len(TEXT) - 1))


def test_a_conversation_is_not_given_up_for_its_first_words() -> None:
    """Another that begins alike gets a copy; the conversation itself goes on."""
    sessions = table(retained_limit=3)
    spoken(sessions, "a")
    sessions.close("a")
    assert reused(sessions, (*TEXT[:20], 1, 2)) == list(range(20))
    assert sessions.retained_bytes == CACHE_BYTES
    assert reused(sessions, name="its own") == list(range(len(TEXT)))


def test_without_the_prefix_cache_nothing_is_retained() -> None:
    """Closing frees."""
    sessions = table(retained_limit=0)
    spoken(sessions, "a")
    sessions.close("a")
    assert sessions.retained_bytes == 0
    assert not sessions.retains
    assert reused(sessions) == []


def test_what_failed_or_was_replaced_is_not_retained() -> None:
    """Nor is what was evicted, or closed half-way through its prompt."""
    sessions = table(session_limit=1, retained_limit=3)
    spoken(sessions, "replaced")
    sessions.open(prefill("replaced"))
    spoken(sessions, "evicted")
    spoken(sessions, "dropped")
    with sessions.using("dropped") as one:
        sessions.close("dropped")
        sessions.drop(one)
    opening = sessions.opening(Prefill("closed", TEXT, 0, SETTINGS))
    fill(opening.__enter__(), 30)
    sessions.close("closed")
    assert not opening.__exit__(RuntimeError, RuntimeError(), None)
    assert len(sessions) == sessions.retained_bytes == 0


def test_a_busy_session_is_retained_after_its_use() -> None:
    """A pass keeps what it works on until it is over."""
    sessions = table(retained_limit=3)
    spoken(sessions, "a")
    with sessions.using("a"):
        sessions.close("a")
        assert sessions.retained_bytes == 0
    assert sessions.retained_bytes == CACHE_BYTES


def test_retained_sessions_make_room_before_idle_ones() -> None:
    """The longest unused first, and at once; they never push out another."""
    sessions = table(memory_limit=2 * CACHE_BYTES, retained_limit=3)
    spoken(sessions, "a")
    spoken(sessions, "b", tuple(range(200, 240)))
    sessions.close("a")
    sessions.close("b")
    sessions.enforce_memory_limit()
    assert sessions.retained_bytes == 2 * CACHE_BYTES
    for name in ("c", "d"):
        with sessions.using(sessions.open(prefill(name)).session_id) as one:
            fill(one, 10)
            sessions.enforce_memory_limit()
            assert sessions.kv_cache_bytes + sessions.retained_bytes == 2 * CACHE_BYTES
    assert names_in(sessions) == {"c", "d"}
    assert sessions.retained_bytes == 0


def retaining(*first_tokens: int, memory_limit: int) -> SessionTable[str]:
    """A table with some closed sessions of 40 tokens, of which the first token says which are alike."""
    sessions = table(session_limit=9, memory_limit=memory_limit, retained_limit=9)
    for first in first_tokens:
        spoken(sessions, "closed", tuple(range(first, first + 40)))
        sessions.close("closed")
    return sessions


def test_copies_of_a_beginning_stay_within_the_memory_limit() -> None:
    """Others that are retained make room first; the one copied from is handed over at the end."""
    sessions = retaining(100, 200, 300, memory_limit=4 * CACHE_BYTES)
    held = []
    with ExitStack() as in_use:
        for name in "abcd":
            one = sessions.open(Prefill(name, (*TEXT[:22], 1, 2), 0, SETTINGS))
            in_use.enter_context(sessions.holding(one))
            sessions.reuse(one, with_features=False)
            assert cached_rows(one) == list(range(22))
            sessions.make_room([])
            held.append((sessions.kv_cache_bytes, sessions.retained_bytes))
    assert [(live // CACHE_BYTES, kept // CACHE_BYTES) for live, kept in held] == [
        (1, 3),
        (2, 2),
        (3, 1),
        (4, 0),
    ]


def test_a_session_does_not_hold_much_more_than_it_needs() -> None:
    """With no room for a copy, what is retained stays as it is where most of it would be lost."""
    sessions = retaining(100, memory_limit=2 * CACHE_BYTES)
    sessions.open(prefill("other"))
    with sessions.using("other") as other:
        fill(other, 1)
        assert reused(sessions, (*TEXT[:16], 1, 2)) == []
        assert sessions.retained_bytes == CACHE_BYTES


@pytest.mark.parametrize(("row_count", "kept"), [(20, 3), (257, 2), (600, 1), (5000, 0)])
def test_retained_sessions_make_room_before_a_pass(row_count: int, kept: int) -> None:
    """As many as its rows need, in whole blocks, and none where the cache has them already."""
    sessions = retaining(100, 200, 300, memory_limit=4 * CACHE_BYTES)
    sessions.open(prefill("s"))
    with sessions.using("s") as one:
        fill(one, 10)
        sessions.make_room([(one.cache, row_count)])
        assert sessions.retained_bytes == kept * CACHE_BYTES
        assert sessions.kv_cache_bytes == CACHE_BYTES


def test_features_of_a_closed_session_stay_within_the_memory_limit() -> None:
    """They count from its end on, when the longest unused one makes room for them."""
    sessions = retaining(200, memory_limit=2 * CACHE_BYTES)
    spoken(sessions, "s")
    with sessions.using("s") as one:
        one.features_given = [np.zeros((10, 1), np.uint16)]
    sessions.enforce_memory_limit()
    assert sessions.retained_bytes == CACHE_BYTES
    sessions.close("s")
    assert sessions.retained_bytes == CACHE_BYTES + 20


def test_a_copy_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The session is read anew, and what it could not have is used no more than before."""
    sessions = retaining(100, 200, memory_limit=8 * CACHE_BYTES)
    monkeypatch.setattr(LayerRows, "copied", lambda *_: None)
    assert reused(sessions, (*TEXT[:20], 1, 2)) == []
    assert sessions.evict_retained()
    assert reused(sessions, name="its own") == []
    assert sessions.retained_bytes == CACHE_BYTES


def test_retained_sessions_can_be_freed() -> None:
    """One, or all."""
    sessions = table(retained_limit=3)
    for first in (100, 200, 300):
        spoken(sessions, "a", tuple(range(first, first + 40)))
        sessions.close("a")
    assert sessions.evict_retained()
    assert sessions.retained_bytes == 2 * CACHE_BYTES
    assert sessions.free_retained()
    assert not sessions.free_retained()
    assert not sessions.evict_retained()
    assert sessions.retained_bytes == 0


def test_the_features_of_what_is_committed_stay_with_a_session() -> None:
    """Of the path that was accepted, and at the end of the last tree's root."""
    one = verified()
    one.features_given = [np.array([[0], [1]], np.uint16)]
    one.tree_features = np.array([[20], [21], [22], [23], [24]], np.uint16)
    one.advance(StepHeader("s", 1, 6, (2, 4)), 21)
    one.tree, one.tree_features = Tree.root_only(21), np.array([[30]], np.uint16)
    one.drop_tree()
    assert np.concatenate(one.features_given)[:, 0].tolist() == [0, 1, 20, 22, 24, 30]
