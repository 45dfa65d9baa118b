"""Steps that visit only the nodes of their path come out as the service's own steps do."""

from __future__ import annotations

from pathlib import Path

import pytest

from draft_service.growth import Growth
from sequoia.acceptance.continuations import Prompt
from sequoia.acceptance.pair import load_pair
from sequoia.acceptance.rules import RuleName
from sequoia.acceptance.simulation import Simulator, Speculation, Text
from sequoia.bench.peers.runs import Prompt as PeerPrompt
from sequoia.cli.bench_in_process import MakeInProcessPeer
from sequoia.plans import REQUEST_CLASSES, Plan, PlannedTree
from sequoia.settings import SamplingSettings
from sequoia.tree import Topology
from tests.tiny import feature_draft, word_pair

PROMPTS = ((3, 4, 5, 6), (7, 8, 9), (20, 11), (30,))
NEW_TOKENS = 40
SEED = 5
TREES = [(-1,), (-1, 0, 1, 2, 3), (-1, 0, 0, 0, 1, 1, 2, 4, 4, 7)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """A tiny target with a draft that reads tokens, and with one that reads features."""
    folder = tmp_path_factory.mktemp("pair")
    target, draft = word_pair(folder, words=40)
    reading = folder / "reading"
    reading.mkdir()
    return {"tokens": (target, draft), "features": (target, feature_draft(reading, target))}


def plan(parents: tuple[int, ...]) -> str:
    """One tree for every request."""
    trees = (PlannedTree(name, 1, parents, 1.0, 0.1, 0.1) for name in REQUEST_CLASSES)
    return Plan(1, 0.0, tuple(trees)).to_json()


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("kind", ["tokens", "features"])
def test_texts_and_steps_are_those_of_the_engine(
    folders: dict[str, tuple[Path, Path]],
    kind: str,
    temperature: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Token for token and step for step, under every tree, with the same random numbers.

    Simulated trees keep the planned shape; so the engine's shall.
    """
    monkeypatch.setattr("draft_service.grower.AllocatedGrowth", Growth)
    target, draft = folders[kind]
    seeds = iter([SEED + number for _ in TREES for number in range(len(PROMPTS))])
    monkeypatch.setattr("secrets.randbits", lambda _: next(seeds))
    engine = MakeInProcessPeer(str(target), str(draft), "float32", "cpu", 1, temperature)()
    pair = load_pair(str(target), str(draft), "float32", "cpu")
    simulator = Simulator(pair.target, pair.draft, pair.stop_token_ids, batch_size=3)
    speculations = [Speculation(Topology(parents)) for parents in TREES]
    prompts = [Prompt(prompt, NEW_TOKENS) for prompt in PROMPTS]
    found = simulator.run(prompts, speculations, SamplingSettings(temperature), SEED)
    for parents, texts in zip(TREES, found, strict=True):
        for prompt, text in zip(PROMPTS, texts, strict=True):
            run = engine.generate(plan(parents), PeerPrompt(prompt, NEW_TOKENS))
            assert text == Text(run.token_ids, run.step_count)
    steps = [sum(text.step_count for text in texts) for texts in found]
    assert steps[0] == sum(len(text.token_ids) for text in found[0])
    assert max(steps[1:]) < steps[0]


@pytest.mark.parametrize("rule", list(RuleName))
def test_a_draft_that_is_the_target_is_always_accepted(
    folders: dict[str, tuple[Path, Path]], rule: RuleName
) -> None:
    """Where p = q every rule but top-k accepts its first child; a chain of n nodes gives n tokens."""
    target, _ = folders["tokens"]
    pair = load_pair(str(target), str(target), "float32", "cpu")
    simulator = Simulator(pair.target, pair.draft, frozenset())
    chain = Speculation(Topology((-1, 0, 1, 2)), rule)
    ((text,),) = simulator.run(
        [Prompt(PROMPTS[0], NEW_TOKENS)], [chain], SamplingSettings(1.0), SEED
    )
    assert len(text.token_ids) == NEW_TOKENS
    if rule is RuleName.TOPK:
        assert text.step_count > NEW_TOKENS / 4
    else:
        assert text.step_count == NEW_TOKENS / 4
