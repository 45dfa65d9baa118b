"""`sequoia bench` against running roles with tiny models, bad input, and the built-in pair."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from sequoia.bench.peers.runs import Decode, Prompt
from sequoia.bench.peers.served import ServedSystem
from sequoia.bench.serve.load import closed_loop, open_loop
from sequoia.cli.bench import bench_app
from sequoia.cli.bench_in_process import MakeInProcessPeer
from sequoia.cli.bench_prompts import read_prompt_tokens
from sequoia.errors import PromptTooLongError
from sequoia.generation import GenerationRequest
from sequoia.plans import Plan, PlannedTree
from sequoia.runtime.catalogue import cache_folder
from sequoia.settings import SamplingSettings
from tests.stack import running_stack
from tests.tiny import save_model, tiny_llama, word_pair, word_tokenizer

PROMPT = (3, 4, 5, 6)
NEW_TOKENS = 12
PLAN = Plan(1, 0.0, (PlannedTree("greedy", 1, (-1, 0, 0, 1), 2.0, 0.1, 0.2),))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny target and its draft."""
    return word_pair(tmp_path_factory.mktemp("pair"), words=40)


def greedy_text(folder: Path) -> tuple[int, ...]:
    """What transformers continues the prompt with."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([PROMPT])
    output = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False)
    return tuple(output[0, len(PROMPT) :].tolist())


def test_the_engine_in_one_process_says_what_the_target_says(pair: tuple[Path, Path]) -> None:
    """Under the plan that it is given, again and again, in fewer steps than tokens."""
    peer = MakeInProcessPeer(str(pair[0]), str(pair[1]), "float32", "cpu", 1, 0.0)()
    expected = greedy_text(pair[0])
    for _ in range(2):
        run = peer.generate(PLAN.to_json(), Prompt(PROMPT, NEW_TOKENS))
        assert run.token_ids == expected
        assert run.step_count < len(expected)
    (alone,) = (PlannedTree("greedy", 1, (-1,), 1.0, 0.1, 0.1),)
    run = peer.generate(Plan(2, 0.0, (alone,)).to_json(), Prompt(PROMPT, NEW_TOKENS))
    assert run.tokens_per_step == 1.0
    assert run.token_ids == expected


async def test_load_is_recorded_as_clients_see_it(pair: tuple[Path, Path]) -> None:
    """Closed and open loops count the same things, and leave no session behind."""
    requests = [
        GenerationRequest(
            token_ids=PROMPT, sampling=SamplingSettings(temperature=0.0), max_new_tokens=NEW_TOKENS
        )
    ]
    async with running_stack(*pair) as stack:
        address = stack.channel.address
        closed = await closed_loop(address, requests, clients=2, seconds=0.7)
        opened = await open_loop(address, requests, rate=10.0, seconds=0.7, seed=3)
        for recording in (closed, opened):
            assert recording.usages
            assert recording.token_count >= recording.step_count > 0
            assert len(recording.first_token) >= len(recording.usages)
            assert min(recording.between_tokens) >= 0.0
            assert recording.sessions_in_target is not None
            assert recording.refused_count == 0
        assert stack.target.worker is not None
        assert len(stack.target.worker.sessions) == 0


async def test_the_served_system_tells_reading_the_prompt_apart(pair: tuple[Path, Path]) -> None:
    """The first tokens come from one step, the later ones take the rest of the time."""

    def generate(address: str) -> tuple[Decode, Decode]:
        with ServedSystem(address, 0.0) as served:
            prompt = Prompt(PROMPT, NEW_TOKENS)
            return served.generate(True, prompt), served.generate(False, prompt)

    async with running_stack(*pair) as stack:
        runs = await asyncio.to_thread(generate, stack.channel.address)
    for run in runs:
        assert run.token_ids == greedy_text(pair[0])
        assert 0.0 < run.first_seconds < run.seconds
        assert 0.0 < run.pass_seconds * run.step_count < run.seconds
        later = len(run.token_ids) - run.first_count
        assert run.seconds_per_later_token == (run.seconds - run.first_seconds) / later
    assert runs[1].first_count == 1
    assert runs[1].step_count == len(runs[1].token_ids)


def test_prompts_that_do_not_fit_are_refused_with_the_limit(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """Prompt and new tokens together stay within the context."""
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "w3 w4"}))
    texts = read_prompt_tokens(str(pair[0]), path, 1, 500)
    assert texts.room == 12
    with pytest.raises(
        PromptTooLongError, match=r"prompt 1 of the 1 from .*prompts.jsonl.* context of 512"
    ):
        read_prompt_tokens(str(pair[0]), path, 1, 511)


def test_a_target_without_a_chat_template_reads_the_text(tmp_path: Path) -> None:
    """As with `sequoia acceptance`."""
    tokenizer = word_tokenizer(40)
    tokenizer.chat_template = None
    target = save_model(tmp_path / "target", tiny_llama(40, seed=1), tokenizer)
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "w3 w4"}))
    assert read_prompt_tokens(str(target), path, 1, 8).prompts == ((3, 4),)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["peers", "--prompts", "EMPTY"], 2, ["--prompts", "holds no prompts"]),
        (["peers", "--prompts", "/no/such"], 2, ["--prompts", "/no/such"]),
        (["peers", "--draft", "/no/such/draft"], 1, ["/no/such/draft", "no such folder"]),
        (["peers", "--temperature", "nan"], 2, ["--temperature", "[0, 100]"]),
        (["peers", "--max-new-tokens", "4097"], 2, ["max_new_tokens", "4096"]),
        (["peers", "--max-new-tokens", "512"], 2, ["512", "context"]),
        (["peers", "--repetitions", "0"], 2, ["--repetitions"]),
        (["peers", "--out", "EMPTY"], 2, ["--out", "prompts.jsonl"]),
        (["forward", "--nodes", "1,0"], 2, ["--nodes", "'0'"]),
        (["forward", "--batch", "many"], 2, ["--batch", "'many'"]),
        (["forward", "--draft", "/no/such/draft"], 1, ["/no/such/draft"]),
        (["serve", "--concurrency", "0"], 2, ["--concurrency", "'0'"]),
        (["serve", "--concurrency", "1,65"], 2, ["--concurrency", "64"]),
        (["serve", "--rate", "-1"], 2, ["--rate", "'-1'"]),
        (["soak", "--minutes", "0"], 2, ["--minutes"]),
        (["soak", "--clients", "65"], 2, ["--clients", "64"]),
        (["offload", "--shape", "7b"], 2, ["--shape", "--target"]),
        (["offload", "--device-memory", "4GB"], 2, ["--device-memory", "'4GB'", "4GiB"]),
        (["offload", "--budgets", "1GiB,0"], 2, ["--budgets", "'0'"]),
        (["offload", "--plain-tokens", "1"], 2, ["--plain-tokens", "2"]),
        (["offload", "--draft", "/no/such/draft"], 1, ["/no/such/draft", "no such folder"]),
        (["offload", "--other-draft", "/no/such/draft"], 1, ["/no/such/draft", "no such folder"]),
    ],
)
def test_bad_input_is_refused_by_name(
    pair: tuple[Path, Path],
    tmp_path: Path,
    arguments: list[str],
    status: int,
    words: list[str],
) -> None:
    """Before any role is started, with the option and its limit."""
    empty = tmp_path / "prompts.jsonl"
    empty.write_text("\n")
    given = [str(empty) if argument == "EMPTY" else argument for argument in arguments]
    names = ["--target", str(pair[0])] + ([] if "--draft" in given else ["--draft", str(pair[1])])
    out = [] if "--out" in given else ["--out", str(tmp_path)]
    wide = {"COLUMNS": "200", "TERMINAL_WIDTH": "200", "NO_COLOR": "1", "TERM": "dumb"}
    result = CliRunner().invoke(bench_app, [*given, *names, *out], env=wide)
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_peers_compares_the_built_in_pair(tmp_path: Path) -> None:
    """All systems of this machine have a row, ratios follow from rows, and greedy texts agree."""
    command = [sys.executable, "-m", "sequoia", "bench", "peers", "--json", "--dtype", "float32"]
    command += ["--prompt-count", "1", "--max-new-tokens", "6", "--repetitions", "1"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "SEQUOIA_MAX_NODES": "16"},  # large trees take the planner long
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    found = json.loads(done.stdout)
    rows = {row["name"]: row for row in found["rows"]}
    skipped = {one["name"] for one in found["skipped"]}
    assert {
        "sequoia",
        "sequoia-no-speculation",
        "sequoia-in-process",
        "transformers",
        "transformers-prompt-lookup",
    } <= rows.keys()
    assert "transformers-assisted" in skipped  # the shipped draft reads features
    assert "llama.cpp-f32" in rows or "llama.cpp" in skipped
    assert rows["sequoia-no-speculation"]["tokens_per_step"] == 1.0
    for name, ratio in found["ratios"].items():
        first, second = name.split(" / ")
        quotient = rows[first]["seconds_per_token"] / rows[second]["seconds_per_token"]
        assert ratio == pytest.approx(quotient)
    assert "sequoia-no-speculation / transformers" in found["ratios"]
    assert found["greedy_match"] == 1.0
    assert found["overhead_ms_per_step"] is not None
    assert found["plan"]["tree"]["request_class"] == "greedy"
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md", ".png"}


@pytest.fixture
def own_cache(tmp_path: Path) -> Iterator[Path]:
    """A cache folder with what is in the usual one, and room for what is not to stay."""
    usual, folder = cache_folder(), tmp_path / "cache"
    folder.mkdir()
    for name in ("models", "native"):
        (usual / name).mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(usual / name)
    yield folder
    shutil.rmtree(folder / "wide", ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_offload_streams_a_widened_target(own_cache: Path, tmp_path: Path) -> None:
    """All rows, the limits of memory and disk, and two budgets, from one command."""
    budget = 1280 * 2**20
    command = [sys.executable, "-m", "sequoia", "bench", "offload", "--json"]
    command += ["--shape", "30x960:1536", "--dtype", "float32", "--device-memory", str(budget)]
    command += ["--budgets", "1408MiB", "--prompt-count", "1"]
    command += ["--max-new-tokens", "8", "--plain-tokens", "3"]
    done = subprocess.run(
        [*command, "--repetitions", "1", "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "SEQUOIA_CACHE": str(own_cache),
            "SEQUOIA_MAX_NODES": "16",
        },
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["skipped"] == []
    rows = {row["name"]: row for row in found["rows"]}
    names = ["sequoia", "sequoia-no-speculation", "accelerate", "accelerate-with-page-cache"]
    assert list(rows) == names
    for row in rows.values():
        assert row["seconds_per_token"] > 0.0
        assert row["greedy_match"] == 1.0
    assert rows["sequoia-no-speculation"]["tokens_per_step"] == 1.0
    assert rows["accelerate"]["tokens_per_step"] == 1.0
    assert rows["sequoia"]["tokens_per_step"] > 1.0
    for name, ratio in found["ratios"].items():
        first, second = name.partition(",")[0].split(" / ")
        quotient = rows[first]["seconds_per_token"] / rows[second]["seconds_per_token"]
        factor = rows[first]["tokens_per_step"] if "," in name else 1.0
        assert ratio == pytest.approx(quotient * factor)
    assert found["peak_memory_bytes"] <= 1.1 * budget
    weights = found["settings"]["checkpoint_bytes"]
    for one in found["passes"]:
        assert 0 < one["byte_count"] < weights
    assert found["read_bandwidth_ratio"] > 0.0
    assert found["tree"]["node_count"] > 1
    small, large = found["budgets"]
    assert [small["device_memory_bytes"], large["device_memory_bytes"]] == [budget, 1408 * 2**20]
    assert [row["name"] for row in large["rows"]] == names[:2]
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".json", ".md", ".png"}
