from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sequoia.tree import MAX_NODES, ROOT_ONLY, Topology, Tree, TreeError, level_order

#       0
#     1   2
#    3 4   5
#          6
TOPOLOGY = Topology((-1, 0, 0, 1, 1, 2, 5))
TREE = Tree(TOPOLOGY, (9, 11, 12, 13, 14, 15, 16))


@st.composite
def parents_before_children(draw: st.DrawFn) -> list[int]:
    """Any tree of up to 30 nodes, parents before their children, in no particular level order."""
    count = draw(st.integers(1, 30))
    return [-1, *(draw(st.integers(0, node - 1)) for node in range(1, count))]


topologies = parents_before_children().map(lambda parents: Topology(level_order(parents)))


@pytest.mark.parametrize(
    ("parents", "complaint"),
    [
        ((), "at least its root"),
        ((0,), "root's parent must be -1, not 0"),
        ((-1, -1), "node 1: parent -1 does not stand before it"),
        ((-1, 1), "node 1: parent 1 does not stand before it"),
        ((-1, 0, 3, 0), "node 2: parent 3 does not stand before it"),
        ((-1, 0, 1, 0), "node 3: parent 0 breaks the level order"),
        ((-1, 0, 0, 2, 1), "node 4: parent 1 breaks the level order"),
        ((-1, *[0] * MAX_NODES), f"{MAX_NODES + 1} nodes exceed the limit of {MAX_NODES}"),
    ],
)
def test_a_topology_refuses_what_breaks_its_rules(parents: tuple[int, ...], complaint: str) -> None:
    """Every broken rule is told with the node and the rule."""
    with pytest.raises(TreeError, match=complaint):
        Topology(parents)


def test_the_largest_tree_is_allowed() -> None:
    """The limit on nodes is a limit, not one less."""
    assert Topology((-1, *[0] * (MAX_NODES - 1))).node_count == MAX_NODES


def test_depths_count_from_the_root() -> None:
    """The root has depth 0, every child one more than its parent."""
    assert TOPOLOGY.depths == (0, 1, 1, 2, 2, 2, 3)


def test_children_stand_in_drawn_order() -> None:
    """Each node lists its children as they were drawn; leaves list none."""
    assert TOPOLOGY.children == ((1, 2), (3, 4), (5,), (), (), (6,), ())
    assert TOPOLOGY.inner_nodes == (0, 1, 2, 5)


def test_levels_hold_the_nodes_of_one_depth() -> None:
    """Levels run from the root downwards."""
    assert TOPOLOGY.levels == ((0,), (1, 2), (3, 4, 5), (6,))
    assert TOPOLOGY.level_count == 4


def test_a_root_alone_is_one_level_without_inner_nodes() -> None:
    """The tree of a step without speculation has all the views of a tree."""
    assert ROOT_ONLY.levels == ((0,),)
    assert ROOT_ONLY.inner_nodes == ()
    assert ROOT_ONLY.path(0) == ()


def test_a_path_leads_from_below_the_root_to_the_node() -> None:
    """Paths leave the root out, because it is committed already."""
    assert TOPOLOGY.path(6) == (2, 5, 6)
    assert TOPOLOGY.path(0) == ()


@given(topologies)
def test_the_mask_shows_a_node_itself_and_its_ancestors(topology: Topology) -> None:
    """Row i of the tree mask is true at i, at the root, and along the path between them."""
    for node in range(topology.node_count):
        seen = set(np.flatnonzero(topology.ancestry[node]).tolist())
        assert seen == {0, *topology.path(node)}


@given(topologies)
def test_depth_is_the_length_of_the_path(topology: Topology) -> None:
    """Depths, levels and paths tell the same story."""
    for depth, nodes in enumerate(topology.levels):
        assert all(len(topology.path(node)) == depth == topology.depths[node] for node in nodes)


@given(topologies, st.integers(-1, 31))
def test_truncation_keeps_the_first_levels_and_at_least_the_root(
    topology: Topology, level_count: int
) -> None:
    """The rest of the tree is as it was."""
    truncated = topology.truncated(level_count)
    assert truncated.level_count == min(max(level_count, 1), topology.level_count)
    assert truncated.parents == topology.parents[: truncated.node_count]


@given(parents_before_children())
def test_level_order_renumbers_without_changing_the_tree(parents: list[int]) -> None:
    """The shape stays the same, siblings included; only the numbers change."""

    def shape(parents: list[int], node: int) -> tuple[object, ...]:
        children = (child for child, parent in enumerate(parents) if parent == node)
        return tuple(shape(parents, child) for child in children)

    ordered = level_order(parents)
    assert shape(list(ordered), 0) == shape(parents, 0)
    assert Topology(ordered).node_count == len(parents)


def test_level_order_leaves_what_is_in_order() -> None:
    """A topology's own array is its level order."""
    assert level_order(TOPOLOGY.parents) == TOPOLOGY.parents


@pytest.mark.parametrize("nodes", [(), (1,), (2, 5, 6), (1, 4)])
def test_a_gapless_way_down_is_a_path(nodes: tuple[int, ...]) -> None:
    """An accepted path starts below the root and may end anywhere."""
    TOPOLOGY.require_path(nodes)


@pytest.mark.parametrize(
    ("nodes", "complaint"),
    [
        ((0,), "accepted node 0 is not a child of node 0"),
        ((3,), "accepted node 3 is not a child of node 0"),
        ((1, 5), "accepted node 5 is not a child of node 1"),
        ((2, 5, 7), "accepted node 7 is not a child of node 5"),
        ((-1,), "accepted node -1 is not a child of node 0"),
    ],
)
def test_a_way_with_a_gap_is_refused(nodes: tuple[int, ...], complaint: str) -> None:
    """The message names the node and where it should have hung."""
    with pytest.raises(TreeError, match=complaint):
        TOPOLOGY.require_path(nodes)


@pytest.mark.parametrize("token_ids", [(), (1,), (1, 2, 3)])
def test_a_tree_needs_a_token_for_every_node(token_ids: tuple[int, ...]) -> None:
    """Too few and too many tokens are refused alike."""
    with pytest.raises(TreeError, match=f"{len(token_ids)} token ids for 2 nodes"):
        Tree(Topology((-1, 0)), token_ids)


def test_path_tokens_leave_the_root_out() -> None:
    """The tokens along a path are those that follow the committed ones."""
    assert TREE.path_tokens(6) == (12, 15, 16)
    assert TREE.path_tokens(0) == ()


def test_a_child_is_found_by_its_token() -> None:
    """Only children of the node count, not nodes elsewhere that carry the token."""
    assert TREE.child_with_token(1, 14) == 4
    assert TREE.child_with_token(0, 14) is None
    assert TREE.child_with_token(6, 14) is None


def test_of_children_with_one_token_the_first_is_found() -> None:
    """Where siblings share a token, drawn order decides."""
    tree = Tree(Topology((-1, 0, 0)), (1, 7, 7))
    assert tree.child_with_token(0, 7) == 1


def test_the_tree_without_speculation_is_its_root() -> None:
    """It carries the last committed token and nothing else."""
    tree = Tree.root_only(5)
    assert tree.topology == ROOT_ONLY
    assert tree.token_ids == (5,)
