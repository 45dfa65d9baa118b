from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from coordinator.features import FeatureHistory
from coordinator.worker import Compatibility
from draft_service.grower import Grower
from draft_service.growth import Growth
from sequoia.errors import InvalidArgumentError
from sequoia.messages import (
    Features,
    GrownTree,
    GrowTree,
    Prefill,
    SessionSettings,
    StepHeader,
    WorkerInfo,
)
from sequoia.runtime.features import pack_features, unpack_features
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.loading import load_draft, load_model
from sequoia.runtime.worker import WorkerLimits
from sequoia.settings import DrawRule, SamplingSettings
from sequoia.tree import ROOT_ONLY, Topology
from tests.tiny import feature_draft, save_model, tiny_llama, word_tokenizer

WORDS = 12
TEXT = (3, 4, 5, 6, 1, 2, 7, 8)
SHAPE = Topology((-1, 0, 0, 1, 1, 2, 3))
SETTINGS = SessionSettings(SamplingSettings(temperature=0), DrawRule.GREEDY, 7, 1, WORDS)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def planned_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees keep the shape that was asked for: what is compared here are the tokens on it."""
    monkeypatch.setattr("draft_service.grower.AllocatedGrowth", Growth)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny target's folder."""
    folder = tmp_path_factory.mktemp("target")
    return save_model(folder, tiny_llama(WORDS, seed=1), word_tokenizer(WORDS))


@pytest.fixture(scope="module")
def model(target: Path, tmp_path_factory: pytest.TempPathFactory) -> TreeModel:
    """A draft that reads this target's features."""
    folder = feature_draft(tmp_path_factory.mktemp("draft"), target, influence=0.5)
    return load_draft(folder, target, torch.float32, CPU)


@pytest.fixture(scope="module")
def given(target: Path) -> Features:
    """The target's features of every token of the text, as they travel."""
    return pack_features(load_model(target, torch.float32, CPU).plain(TEXT).features)


@pytest.fixture
def grower(model: TreeModel) -> Iterator[Grower]:
    """A draft worker with this draft."""
    worker = Grower("tiny", model, "sha", WorkerLimits())
    yield worker
    worker.device.stop()


def expected(model: TreeModel, text: Sequence[int], given: Features) -> list[int]:
    """Tokens of the greedy tree on a text, from whole sequences rather than from a cache."""
    features = unpack_features(given, torch.float32, CPU)
    shifted = torch.cat([torch.zeros(1, model.feature_size), features])[: len(text)]
    tree = [text[-1]]

    def read(node: int) -> tuple[list[int], Tensor]:
        """The path's tokens and what is read at them: below the root the draft's own features."""
        if node == 0:
            return list(text), shifted
        tokens, read_before = read(SHAPE.parents[node])
        own = model.plain(tokens, read_before).features[-1:]
        return [*tokens, tree[node]], torch.cat([read_before, own])

    for node, children in enumerate(SHAPE.children):
        if children:
            best = model.plain(*read(node)).logits[-1].topk(len(children)).indices.tolist()
            assert [len(tree) + rank for rank in range(len(best))] == list(children)
            tree.extend(best)
    return tree


async def opened(grower: Grower, count: int, given: Features, step: int = 0) -> None:
    """Open a session on the first tokens of the text."""
    await grower.prefill(Prefill("s", TEXT[:count], step, SETTINGS, given[: count - 1]))


async def step(
    grower: Grower,
    number: int,
    count: int,
    given: Features,
    accepted: tuple[int, ...] = (),
    shape: Topology = SHAPE,
) -> GrownTree:
    """A step on the first `count` tokens of the text."""
    header = StepHeader("s", number, count, accepted)
    latest = given[max(count - 2 - len(accepted), 0) : count - 1]
    return await grower.step(GrowTree(header, TEXT[count - 1], shape, latest))


def test_features_reach_the_first_layer(model: TreeModel) -> None:
    """Other features, other logits; and none is the same as zeros."""
    zeros = torch.zeros(3, model.feature_size)
    assert torch.equal(model.plain([1, 2, 3]).logits, model.plain([1, 2, 3], zeros).logits)
    assert not torch.allclose(
        model.plain([1, 2, 3]).logits, model.plain([1, 2, 3], zeros + 1).logits
    )


@pytest.mark.parametrize("count", [1, 2, 5])
async def test_a_tree_reads_the_features_before_its_tokens(
    grower: Grower, model: TreeModel, given: Features, count: int
) -> None:
    """Committed tokens read the target's features, tree nodes those of their parents."""
    await opened(grower, count, given)
    tree = (await step(grower, 0, count, given)).tree
    assert list(tree.token_ids) == expected(model, TEXT[:count], given)


async def test_a_session_goes_on_as_a_fresh_one_would(
    grower: Grower, model: TreeModel, given: Features
) -> None:
    """Accepted nodes are read again with the target's features in place of the draft's own."""
    await opened(grower, 3, given)
    first = (await step(grower, 0, 3, given)).tree
    grown = dict(zip(first.topology.path(3), first.path_tokens(3), strict=True))
    text = (*TEXT[:3], *grown.values(), 9)
    # Whatever the target says of these tokens, any features do to compare.
    features = np.concatenate([given[:2], given[4:7]])
    await grower.step(GrowTree(StepHeader("s", 1, len(text), tuple(grown)), 9, SHAPE, features[2:]))
    reply = grower.sessions._sessions["s"].last_reply
    assert reply is not None
    assert list(reply.tree.token_ids) == expected(model, text, features)


async def test_a_root_that_was_not_read_is_read_later(
    grower: Grower, model: TreeModel, given: Features
) -> None:
    """Trees of the root alone run no pass; what stood before the root is kept for the next one."""
    await opened(grower, 1, given)
    for number, count in enumerate((1, 2, 3)):
        await step(grower, number, count, given, shape=ROOT_ONLY)
    tree = (await step(grower, 3, 4, given)).tree
    assert list(tree.token_ids) == expected(model, TEXT[:4], given)


async def test_features_of_the_wrong_shape_are_refused(grower: Grower, given: Features) -> None:
    """One row per token that is read, as wide as the target's hidden state; and none is too few."""
    for wrong in (None, given[:2], given[:5], given[:4, :-1]):
        with pytest.raises(InvalidArgumentError, match="features"):
            await grower.prefill(Prefill("s", TEXT[:5], 0, SETTINGS, wrong))
    await opened(grower, 5, given)
    for wrong in (None, given[:0], given[:2], given[:1, :-1]):
        with pytest.raises(InvalidArgumentError, match="features"):
            await grower.step(GrowTree(StepHeader("s", 0, 5), TEXT[4], SHAPE, wrong))


async def test_a_draft_says_what_it_reads(
    grower: Grower, model: TreeModel, given: Features
) -> None:
    """The width of its features; 0 for one that reads tokens alone."""
    assert grower.info().feature_size == given.shape[1] == model.feature_size
    plain = Grower("plain", TreeModel(tiny_llama(WORDS, seed=1)), "sha", WorkerLimits())
    assert plain.info().feature_size == 0
    plain.device.stop()


def test_a_draft_that_reads_other_features_does_not_fit() -> None:
    """Features are as wide as the target's hidden state; a draft that reads none always fits."""
    needed = Compatibility("sha", feature_size=32)
    assert needed.misfit(info(feature_size=32)) == needed.misfit(info(feature_size=0)) == ""
    assert "48 elements" in needed.misfit(info(feature_size=48))
    assert "tokenizer" in Compatibility("another").misfit(info(feature_size=0))


def info(feature_size: int) -> WorkerInfo:
    """What a draft worker says of itself."""
    return WorkerInfo("m", "sha", 12, 512, "float32", "cpu", 1, 1, 0, 0, 64, "one", feature_size)


def test_a_history_grows_and_begins_again() -> None:
    """Rows stand in the order of the tokens; the last ones are given, as far as there are any."""
    history, rows = FeatureHistory(), np.arange(40, dtype=np.uint16).reshape(20, 2)
    assert len(history.rows) == len(history.last(3)) == 0
    history.restart(rows[:2])
    for start, end in ((2, 3), (3, 9), (9, 10), (10, 20)):
        history.append(rows[start:end])
        assert np.array_equal(history.rows, rows[:end])
    assert np.array_equal(history.last(3), rows[17:])
    history.restart(rows[:1])
    history.append(rows[5:6])
    assert np.array_equal(history.rows, rows[[0, 5]])
    assert np.array_equal(history.last(9), rows[[0, 5]])


def test_features_travel_as_bfloat16() -> None:
    """The nearest bfloat16 number, and from there on exactly."""
    features = torch.tensor([[1.0, -2.5, 3.14159, 1e30]])
    there = unpack_features(pack_features(features), torch.float32, CPU)
    assert torch.equal(there, features.bfloat16().float())
    assert np.array_equal(pack_features(there), pack_features(features))
