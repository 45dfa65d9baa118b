"""Plans as values: reading what may be garbage, and picking the tree for a request."""

import json
from typing import Any

import pytest

from sequoia.messages import WorkerInfo
from sequoia.plans import (
    BUILT_IN_PLAN,
    PLAN_BYTES_LIMIT,
    REQUEST_CLASSES,
    AcceptanceCounts,
    Plan,
    PlanError,
    PlannedTree,
    pair_name,
    request_class,
)
from sequoia.rpc.planner_codec import GET_PLAN, REPLAN
from sequoia.settings import DrawRule

TREE = PlannedTree("greedy", 2, (-1, 0, 0, 1), 1.9, 0.012, 0.02)
PLAN = Plan(7, 1_700_000_000.5, (TREE, PlannedTree("flat", 1, (-1,), 1.0, 0.02, 0.02)))


def changed(**fields: Any) -> str:
    """The plan's JSON with some fields replaced."""
    return json.dumps(json.loads(PLAN.to_json()) | fields)


def changed_tree(**fields: Any) -> str:
    """The plan's JSON with its only tree changed."""
    return changed(trees=[json.loads(PLAN.to_json())["trees"][0] | fields])


def test_a_planned_tree_has_one_topology() -> None:
    """It is asked for at every step, and checked once."""
    assert TREE.topology is TREE.topology
    assert TREE.topology.parents == TREE.parents


def test_json_round_trip() -> None:
    """What is written for Redis reads back as the same plan, as text and as bytes."""
    assert Plan.from_json(PLAN.to_json()) == PLAN
    assert Plan.from_json(PLAN.to_json().encode()) == PLAN


@pytest.mark.parametrize("method", [GET_PLAN, REPLAN], ids=["GetPlan", "Replan"])
def test_wire_round_trip(method: Any) -> None:
    """A plan reads back the same from the planner's answers, and the requests are empty."""
    assert method.decode_reply(method.encode_reply(PLAN)) == PLAN
    assert method.decode_request(method.encode_request(None)) is None


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "plan"),
        ("not json", "plan"),
        ("null", "plan"),
        ("[1, 2]", "plan"),
        (b"\xff\xfe\x00", "plan"),
        ("[" * 100_000, "plan"),
        ("1" * 5000, "plan"),
        (" " * (PLAN_BYTES_LIMIT + 1), "plan"),
        ("{}", "created_at"),
        (changed(note="hello"), "note"),
        (changed(version=0), "version"),
        (changed(version=2**63), "version"),
        (changed(version=True), "version"),
        (changed(version="3"), "version"),
        (changed(version=1.5), "version"),
        (changed(created_at="today"), "created_at"),
        (changed(created_at=10**400), "created_at"),
        (changed(created_at=-1), "created_at"),
        (PLAN.to_json().replace("1700000000.5", "NaN"), "created_at"),
        (changed(trees=[]), "trees"),
        (changed(trees={"a": 1}), "trees"),
        (changed(trees=["tree"]), "tree"),
        (changed(trees=json.loads(PLAN.to_json())["trees"][:1] * 2), "trees"),
        (changed(trees=[{}]), "batch_size"),
        (changed_tree(colour="green"), "colour"),
        (changed_tree(request_class="tepid"), "request_class"),
        (changed_tree(request_class=["greedy"]), "request_class"),
        (changed_tree(batch_size=0), "batch_size"),
        (changed_tree(batch_size=5000), "batch_size"),
        (changed_tree(batch_size=2.0), "batch_size"),
        (changed_tree(parents=[]), "parents"),
        (changed_tree(parents="-1"), "parents"),
        (changed_tree(parents=[-1, "0"]), "parents"),
        (changed_tree(parents=[-1, False]), "parents"),
        (changed_tree(parents=[0, 0]), "parents"),
        (changed_tree(parents=[-1, 1]), "parents"),
        (changed_tree(parents=[-1, 0, 1, 0]), "parents"),
        (changed_tree(parents=[-1] + [0] * 4096), "parents"),
        (changed_tree(parents=[-1, 10**40]), "parents"),
        (changed_tree(expected_tokens_per_step=-1), "expected_tokens_per_step"),
        (changed_tree(expected_tokens_per_step=None), "expected_tokens_per_step"),
        (changed_tree(predicted_seconds_per_token=float("inf")), "predicted_seconds_per_token"),
        (
            changed_tree(predicted_seconds_per_token_without_speculation=True),
            "predicted_seconds_per_token_without_speculation",
        ),
    ],
)
def test_garbage_is_refused_with_the_field(text: str | bytes, field: str) -> None:
    """Whatever lies in Redis, reading it either gives a valid plan or names the field at fault."""
    with pytest.raises(PlanError, match=rf"^{field}: "):
        Plan.from_json(text)


def test_the_refusal_of_long_garbage_is_short() -> None:
    """A message about a value does not repeat a megabyte of it."""
    for text in (changed(version="x" * 10**5), changed_tree(request_class="x" * 10**5)):
        with pytest.raises(PlanError) as refused:
            Plan.from_json(text)
        assert len(str(refused.value)) < 200


def test_the_tree_is_planned_for_at_least_the_load() -> None:
    """The least planned load that covers the present one counts; beyond all, the largest."""
    trees = {size: PlannedTree("greedy", size, (-1,), 1, 1, 1) for size in (4, 1, 2)}
    plan = Plan(1, 0.0, (*trees.values(), PlannedTree("flat", 3, (-1, 0), 1, 1, 1)))
    picked = {load: plan.tree_for("greedy", load) for load in (1, 2, 3, 4, 5, 1000)}
    expected = {1: 1, 2: 2, 3: 4, 4: 4, 5: 4, 1000: 4}
    assert picked == {load: trees[size] for load, size in expected.items()}


def test_the_deepest_tree_is_known() -> None:
    """Calls to the draft get the time of its levels."""
    trees = tuple(
        PlannedTree("greedy", 1, tuple(range(-1, nodes)), 1, 1, 1) for nodes in (4, 23, 1)
    )
    assert Plan(1, 0.0, trees).level_count == 24
    assert Plan(1, 0.0, ()).level_count == 1


def test_a_plan_may_be_silent_on_a_class() -> None:
    """No tree is borrowed from another class."""
    assert PLAN.tree_for("sharp", 1) is None


def test_the_built_in_plan_covers_every_class_and_gives_up_under_load() -> None:
    """Before any planner there is a small tree at low load, and the root alone at high load."""
    for name in REQUEST_CLASSES:
        alone, crowded = (BUILT_IN_PLAN.tree_for(name, load) for load in (1, 50))
        assert alone
        assert crowded
        assert alone.topology.node_count > 1
        assert crowded.topology.node_count == 1


@pytest.mark.parametrize(
    ("temperature", "rule", "name"),
    [
        (0.0, DrawRule.GREEDY, "greedy"),
        (0.6, DrawRule.WITHOUT_REPLACEMENT, "sharp"),
        (0.8, DrawRule.WITHOUT_REPLACEMENT, "flat"),
        (0.79, DrawRule.COUPLED, "sharp-seeded"),
        (1.5, DrawRule.COUPLED, "flat-seeded"),
    ],
)
def test_request_class(temperature: float, rule: DrawRule, name: str) -> None:
    """The class follows from the rule and from whether the distribution is sharp or flat."""
    assert request_class(temperature, rule) == name
    assert name in REQUEST_CLASSES


def worker_info(model: str, dtype: str = "float32", instance_id: str = "a") -> WorkerInfo:
    """A worker of some model."""
    return WorkerInfo(model, "", 10, 100, dtype, "cpu", 1, 1, 0, 0, 64, instance_id)


def test_a_pair_is_named_by_its_models_alone() -> None:
    """Statistics survive a restarted worker, and another model or type starts afresh."""
    name = pair_name(worker_info("d"), worker_info("t"))
    assert name == pair_name(worker_info("d", instance_id="b"), worker_info("t"))
    others = {
        pair_name(worker_info("t"), worker_info("d")),
        pair_name(worker_info("d", "bfloat16"), worker_info("t")),
        pair_name(None, worker_info("t")),
        pair_name(None, None),
    }
    assert len(others) == 4
    assert name not in others


def test_counts_default_to_nothing() -> None:
    """Without observations every rank has no trials and no accepts."""
    assert sum(AcceptanceCounts().trials) == sum(AcceptanceCounts().accepts) == 0
