"""`sequoia acceptance`: its report, what the service makes of it, and bad input, with tiny models."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from draft_service.grower import Grower
from sequoia.acceptance.continuations import Prompt, write
from sequoia.acceptance.pair import load_pair
from sequoia.acceptance.rules import RuleName
from sequoia.acceptance.walk import Walker
from sequoia.cli.acceptance import acceptance
from sequoia.cli.acceptance_run import Measurement
from sequoia.cli.plan import plan
from sequoia.errors import IncompatibleModelsError, InvalidArgumentError
from sequoia.generation import ChatMessage, GenerationRequest
from sequoia.plans import BUILT_IN_PLAN
from sequoia.prompts import PromptsError
from sequoia.runtime.worker import WorkerLimits
from sequoia.settings import SamplingSettings
from tests.stack import running_stack
from tests.tiny import save_model, tiny_llama, word_pair, word_tokenizer

WORDS = 40
PROMPTS = ["w3 w4 w5", "w6 w7", "w8"]
KEYS = {
    "vector",
    "rejection",
    "overlap",
    "top_match",
    "draft_level_over_target_token",
    "positions",
    "tokens_per_step",
    "tokens_per_step_expected",
    "coverage",
    "temperature",
    "rule",
    "target",
    "draft",
    "levels",
    "draft_level_ms",
    "target_token_ms",
    "dtype",
    "device",
    "prompts",
    "skipped_prompts",
}

acceptance_app, plan_app = typer.Typer(), typer.Typer()
acceptance_app.command()(acceptance)
plan_app.command()(plan)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Folders of a target and a draft over words."""
    target, draft = word_pair(tmp_path_factory.mktemp("pair"), WORDS)
    return str(target), str(draft)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prompts file with both kinds of lines."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    lines = [{"prompt": PROMPTS[0]}, {"turns": [PROMPTS[1], "w1"]}, {"prompt": PROMPTS[2]}]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def measurement(temperature: float, rule: RuleName = RuleName.SEQUOIA) -> Measurement:
    """A short run."""
    return Measurement(temperature, rule, max_new_tokens=12, batch_size=2, seed=1)


def test_json_is_one_object_that_plan_accepts(
    pair: tuple[str, str], prompts: Path, tmp_path: Path
) -> None:
    """Stdout holds the figures and nothing else; progress is on stderr; `plan` reads the object."""
    command = [sys.executable, "-m", "sequoia", "acceptance", "--json", "--temperature", "0"]
    command += ["--target", pair[0], "--draft", pair[1], "--prompts", str(prompts)]
    done = subprocess.run(
        [*command, "--max-prompts", "2", "--max-new-tokens", "8"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    report = json.loads(done.stdout)
    assert set(report) == KEYS
    assert report["prompts"] == 2
    assert list(report["rejection"]) == [str(k) for k in range(1, 33)]
    assert list(report["top_match"]) == ["1", "2", "4", "8", "16", "32"]
    assert len(report["vector"]) == 34
    assert set(report["tokens_per_step"]) == {"16", "64"}
    assert "the target writes" in done.stderr

    path = tmp_path / "acceptance.json"
    path.write_text(done.stdout)
    planned = CliRunner().invoke(
        plan_app,
        ["--acceptance", str(path), "--max-nodes", "16", "--max-levels", "32", "--json"],
    )
    assert planned.exit_code == 0, planned.stderr
    expected = json.loads(planned.stdout)["expected_tokens"]
    assert expected == pytest.approx(report["tokens_per_step_expected"]["16"])


@pytest.mark.parametrize("rule", list(RuleName))
def test_above_temperature_zero_nothing_is_walked(pair: tuple[str, str], rule: RuleName) -> None:
    """`tokens_per_step` is null then; the expectation follows from the vector under every rule."""
    report = measurement(0.8, rule).run(PROMPTS, *pair, "float32", "cpu")
    found = report.as_json()
    assert set(found) == KEYS
    assert found["tokens_per_step"] is None
    assert found["rule"] == rule.value
    assert 1.0 < report.expected[16] <= report.expected[64]
    assert sum(report.levels[0].vector) == pytest.approx(1.0)


def test_tables_show_the_figures(pair: tuple[str, str]) -> None:
    """Small and large numbers of children have rows that fit a terminal; the summary names the pair."""
    report = measurement(0.0).run(PROMPTS, *pair, "float32", "cpu")
    stream = io.StringIO()
    Console(file=stream, width=80).print(report.as_tables())
    shown = stream.getvalue()
    first = report.levels[0]
    for text in (f"{first.overlap:.4f}", f"{report.times.ratio:.3f}", "(at temperature 1)"):
        assert text in shown
    for k in (1, 2, 4, 8, 16, 32):
        assert f"{first.rejection[k - 1]:.3f}" in shown


async def test_the_walk_counts_the_steps_of_the_service(pair: tuple[str, str]) -> None:
    """The same text in as many steps as the whole service takes for it, with the same tree."""
    models = load_pair(*pair, "float32", "cpu")
    request = GenerationRequest(
        chat=(ChatMessage("user", PROMPTS[0]),),
        sampling=SamplingSettings(temperature=0.0),
        max_new_tokens=40,
        echo_prompt_token_ids=True,
    )
    async with running_stack(Path(pair[0]), Path(pair[1])) as stack:
        generated = await stack.generate(request)
    prompt = generated.chunks[0].prompt_token_ids
    texts = write(models.target, [Prompt(prompt, 40)], request.sampling, models.stop_token_ids)
    assert list(texts[0].new_token_ids) == generated.token_ids

    tree = BUILT_IN_PLAN.tree_for("greedy", 1)
    assert tree is not None
    grower = Grower("draft", models.draft, "sha", WorkerLimits())
    walker = Walker(grower, models.target.vocabulary_size, models.draft.context_length)
    try:
        walked = await walker.tokens_per_step(texts, tree.topology)
    finally:
        grower.device.stop()
    assert walked == generated.completion.usage.tokens_per_step > 1.0


def test_prompts_beyond_the_context_are_left_out(
    pair: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """They are counted and named on stderr; a run with no other prompts is refused."""
    too_long = "w3 " * 600
    report = measurement(0.0).run([*PROMPTS, too_long], *pair, "float32", "cpu")
    assert (report.prompt_count, report.skipped_count) == (3, 1)
    assert "1 of 4 prompts left out" in capsys.readouterr().err
    with pytest.raises(PromptsError, match="none of 1 prompts fits the context of 512 tokens"):
        measurement(0.0).run([too_long], *pair, "float32", "cpu")


def test_models_with_other_tokenizers_are_refused(pair: tuple[str, str], tmp_path: Path) -> None:
    """Draft and target must give every id the same token."""
    other = save_model(tmp_path / "other", tiny_llama(9, seed=1), word_tokenizer(9))
    with pytest.raises(IncompatibleModelsError, match="another tokenizer"):
        load_pair(pair[0], str(other), "float32", "cpu")


def run(pair: tuple[str, str], prompts: Path, *arguments: str) -> Result:
    """The outcome of the command, as far as it gets without loading a model."""
    names = ["--target", pair[0], "--draft", pair[1], "--prompts", str(prompts)]
    wide = {"COLUMNS": "200", "TERMINAL_WIDTH": "200", "NO_COLOR": "1", "TERM": "dumb"}
    return CliRunner().invoke(acceptance_app, [*names, *arguments], env=wide)


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--temperature", "-1", ("is outside [0, 100]",)),
        ("--temperature", "nan", ("is outside [0, 100]",)),
        ("--temperature", "warm", ()),
        ("--rule", "coin", ("sequoia", "specinfer", "spectr", "topk")),
        ("--max-new-tokens", "0", ("1",)),
        ("--max-prompts", "0", ("1",)),
        ("--batch-size", "1025", ("1024",)),
        ("--seed", "-1", ("0",)),
        ("--dtype", "float8", ("bfloat16",)),
    ],
)
def test_bad_options_are_refused_by_name(
    pair: tuple[str, str], prompts: Path, flag: str, value: str, words: tuple[str, ...]
) -> None:
    """Status 2, and a message with the option and what it may be."""
    result = run(pair, prompts, "--temperature", "0", flag, value)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    for word in (flag, *words):
        assert word in result.stderr


@pytest.mark.parametrize("content", [None, "", '{"prompt": "w1"}\nno JSON'])
def test_bad_prompts_files_are_refused_by_name(
    pair: tuple[str, str], tmp_path: Path, content: str | None
) -> None:
    """Missing, empty or malformed: status 2 and one line that names option and file."""
    path = tmp_path / "bad.jsonl"
    if content is not None:
        path.write_text(content)
    result = run(pair, path, "--temperature", "0")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: --prompts: {path}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("/no/such/target", "/no/such/draft"), ("/no/such/target", "no such folder")),
        ((None, "/no/such/draft"), ("/no/such/draft", "no such folder")),
    ],
)
def test_unknown_models_are_refused_by_name(
    pair: tuple[str, str], prompts: Path, names: tuple[str | None, str], words: tuple[str, ...]
) -> None:
    """Status 1 and one line, as the other commands have it."""
    result = run((names[0] or pair[0], names[1]), prompts, "--temperature", "0")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    for word in words:
        assert word in result.stderr


def test_a_target_without_a_draft_of_its_own_needs_one_named(
    pair: tuple[str, str], prompts: Path
) -> None:
    """The message says which option is missing."""
    result = CliRunner().invoke(
        acceptance_app,
        ["--target", pair[0], "--prompts", str(prompts), "--temperature", "0"],
    )
    assert result.exit_code == 1
    assert "name one with --draft" in result.stderr


def test_a_chat_template_that_refuses_is_reported(tmp_path: Path) -> None:
    """Templates are programs of the model's authors; what they say is passed on."""
    tokenizer = word_tokenizer(WORDS)
    tokenizer.chat_template = "{{ raise_exception('no users here') }}"
    target = str(save_model(tmp_path / "target", tiny_llama(WORDS, seed=1), tokenizer))
    with pytest.raises(InvalidArgumentError, match="no users here"):
        measurement(0.0).run(PROMPTS, target, target, "float32", "cpu")


def test_a_target_without_a_chat_template_reads_the_text(tmp_path: Path) -> None:
    """Prompts are tokenized as they are where nothing renders them."""
    tokenizer = word_tokenizer(WORDS)
    tokenizer.chat_template = None
    target = str(save_model(tmp_path / "target", tiny_llama(WORDS, seed=1), tokenizer))
    report = measurement(0.0).run(PROMPTS, target, target, "float32", "cpu")
    assert report.levels[0].overlap == pytest.approx(1.0, abs=1e-5)
