"""`sequoia bench figures` with tiny models: in one process, and on running roles."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sequoia.bench.errors import BenchmarkError
from sequoia.bench.figures import forward_times, regret
from sequoia.bench.figures import held as held_module
from sequoia.bench.figures.estimates import Tokens
from sequoia.bench.figures.held import HeldTrees, Stretch
from sequoia.bench.figures.shapes import binary, branches, chain
from sequoia.bench.forward.passes import MakePassTimer
from sequoia.cli import bench_figures_system
from sequoia.cli.bench import bench_app
from sequoia.cli.bench_figures_system import SystemFigures
from sequoia.embedded_valkey import EmbeddedValkey
from sequoia.plans import Plan, PlannedTree
from tests.stack import running_stack
from tests.tiny import word_pair

PROMPTS = ((3, 4, 5), (7, 8, 9))
NEW_TOKENS = 12
CHOICE = (-1, 0, 0)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny target and its draft."""
    return word_pair(tmp_path_factory.mktemp("pair"), words=80)


@pytest.fixture
def valkey() -> Iterator[EmbeddedValkey]:
    """A server of its own."""
    with EmbeddedValkey() as server:
        yield server


def test_the_command_prints_files_and_fills_the_page(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """One object keyed by figure with the plotted numbers, three files each, and their parts of the page."""
    prompts, page, out = tmp_path / "p.jsonl", tmp_path / "page.md", tmp_path / "out"
    prompts.write_text("".join(json.dumps({"prompt": f"w{n} w4 w5"}) + "\n" for n in (3, 6)))
    page.write_text(
        "".join(f"<!-- figure {n} -->\n<!-- end of figure {n} -->\n" for n in range(1, 7))
    )
    options = "--figures 2,1,3 --max-new-tokens 6 --dtype float32 --threads 1 --json"
    places = {"--target": pair[0], "--draft": pair[1], "--prompts": prompts, "--page": page}
    given = [str(word) for option in {**places, "--out": out}.items() for word in option]
    done = subprocess.run(
        [sys.executable, "-m", "sequoia", "bench", "figures", *options.split(), *given],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    found = json.loads(done.stdout)
    assert sorted(found) == ["1", "2", "3"]
    sizes = {point["size"] for point in found["1"]["points"]}
    assert sizes == {1, 4, 16, 64, 256, 1024}
    for point in found["1"]["points"]:
        assert 1.0 <= point["measured"] <= point["levels"]
        assert (point["measured"] == 1.0) or point["nodes"] > 1
    curves = found["2"]["curves"]
    assert len(curves) == 12
    for curve in curves:
        assert len(curve["rejection"]) == 64
        assert all(0.0 <= rate <= 1.0 for rate in curve["rejection"])
    greedy = {cell["tokens_per_step"] for cell in found["3"]["cells"] if not cell["temperature"]}
    assert len(greedy) == 1
    assert {path.suffix for path in out.iterdir()} == {".json", ".md", ".png"}
    assert len(list(out.iterdir())) == 9
    text = page.read_text()
    assert "## 2. Rejection rate" in text
    assert "](out/figure-3-robustness.png)" in text
    assert str(pair[0].parent) not in text + "".join(p.read_text() for p in out.glob("*.json"))


async def test_trees_are_held_while_they_are_timed(
    pair: tuple[Path, Path], valkey: EmbeddedValkey
) -> None:
    """Each request runs under the tree that was asked for; without one, a token a step."""

    def ask(address: str) -> list[Stretch]:
        with HeldTrees(address, valkey.url) as held:
            return [
                held.generate(parents, 0.0, NEW_TOKENS, PROMPTS[0])
                for parents in (None, chain(5).parents, branches(8, 2).parents, None)
            ]

    async with running_stack(*pair, redis_url=valkey.url) as stack:
        plain, deep, broad, again = await asyncio.to_thread(ask, stack.channel.address)
        assert stack.coordinator.engine is not None
        plan = stack.coordinator.engine.plan
    assert plain.tokens_per_step == again.tokens_per_step == 1.0
    assert plain.token_count == NEW_TOKENS - 1
    assert max(deep.tokens_per_step, broad.tokens_per_step) > 1.0
    assert deep.plan_version + 1 == broad.plan_version == plan.version
    assert {tree.parents for tree in plan.trees} == {branches(8, 2).parents}


async def test_choice_and_rivals_take_turns_on_the_system(
    pair: tuple[Path, Path], valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both figures, from the planner's tree and those it is compared with to their reports."""
    grid = (chain(2), branches(2, 2))
    monkeypatch.setattr(bench_figures_system, "GRID", grid)
    trees = tuple(PlannedTree(name, 1, CHOICE, 1.5, 0.1, 0.2) for name in ("greedy", "sharp"))
    counts = {at: [Tokens(1.2, 0.1), Tokens(1.4, 0.1)] for at in (0.0, 0.6)}

    def measure(address: str) -> None:
        with HeldTrees(address, valkey.url) as held:
            figures = SystemFigures(held, Plan(1, 0.0, trees), PROMPTS, NEW_TOKENS, 2)
            rows, plain = figures.on_chip(counts)
            assert [(row.system, row.temperature) for row in rows] == [
                (name, at) for at in (0.0, 0.6) for name in ("sequoia", "specinfer")
            ]
            assert rows[0].topology.parents == CHOICE
            assert rows[1].topology in grid
            assert rows[1].tokens_per_step in {1.2, 1.4}
            assert plain.keys() == {0.0, 0.6}
            choice, candidates = figures.regret([binary(4), chain(3)])
            assert choice.topology.parents == CHOICE
            assert {one.topology for one in candidates} == {binary(4), chain(3), choice.topology}
            assert len(choice.turns) == 2
            assert regret.measure_regret(choice, candidates).share >= 0.0

    async with running_stack(*pair, redis_url=valkey.url) as stack:
        await asyncio.to_thread(measure, stack.channel.address)


async def test_a_plan_that_nobody_follows_is_told(
    pair: tuple[Path, Path], valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator without Redis keeps its own plan, and the figure does not pretend otherwise."""
    monkeypatch.setattr(held_module, "TRIALS", 2)

    def ask(address: str) -> None:
        with HeldTrees(address, valkey.url) as held:
            held.generate(CHOICE, 0.0, NEW_TOKENS, PROMPTS[0])

    async with running_stack(*pair) as stack:
        with pytest.raises(BenchmarkError, match="did not come into force"):
            await asyncio.to_thread(ask, stack.channel.address)


def test_forward_times_have_a_line_for_every_model_and_type(pair: tuple[Path, Path]) -> None:
    """Each in a process of its own, over every number of nodes."""
    makers = [MakePassTimer("target", str(pair[0]), None, "float32", "cpu", 1)]
    (line,) = forward_times.measure(makers, 1, lambda _done, _total: None)
    assert (line.model, line.dtype) == ("target", "float32")
    assert tuple(line.seconds) == forward_times.NODES
    assert all(spread.median > 0 for spread in line.seconds.values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--figures", "7"], ["--figures", "'7'", "1 to 6"]),
        (["--figures", ""], ["--figures", "''"]),
        (["--temperature", "0"], ["--temperature", "(0, 100]"]),
        (["--temperature", "nan"], ["--temperature", "(0, 100]"]),
        (["--prompt-count", "0"], ["--prompt-count"]),
        (["--page", "absent.md"], ["--page", "absent.md"]),
    ],
)
def test_bad_options_are_refused_by_name(
    arguments: list[str], words: list[str], tmp_path: Path
) -> None:
    """Before a model is loaded."""
    wide = {"COLUMNS": "200", "TERMINAL_WIDTH": "200", "NO_COLOR": "1", "TERM": "dumb"}
    given = ["figures", *arguments, "--out", str(tmp_path)]
    outcome = CliRunner().invoke(bench_app, given, env=wide)
    assert outcome.exit_code == 2, outcome.output
    assert outcome.stdout == ""
    for word in words:
        assert word in outcome.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_planners_choice_is_judged_on_a_system_of_its_own(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """Roles are started, the planner plans, and its tree is among those that take turns."""
    options = "--figures 6 --max-new-tokens 8 --prompt-count 2 --repetitions 1 --threads 1 --json"
    places = {"--target": pair[0], "--draft": pair[1], "--out": tmp_path}
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "w3 w4 w5"}\n{"prompt": "w7 w8 w9"}\n')
    given = [str(word) for option in {**places, "--prompts": prompts}.items() for word in option]
    done = subprocess.run(
        [sys.executable, "-m", "sequoia", "bench", "figures", *options.split(), *given],
        capture_output=True,
        text=True,
        env={**os.environ, "SEQUOIA_MAX_NODES": "4"},  # large trees take the planner long
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["6"]
    assert found["regret"] >= 0.0
    assert found["choice"] in found["candidates"]
    times = [one["seconds_per_token"] for one in found["candidates"]]
    assert found["best"]["seconds_per_token"] == min(times)
    ratio = found["choice"]["seconds_per_token"] / min(times)
    assert found["regret"] == pytest.approx(ratio - 1)
