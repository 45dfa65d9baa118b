"""`sequoia distill` and what it cannot do: wrong options, files, folders and settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from sequoia.cli.distill import distill
from sequoia.distillation.budget import Budget
from sequoia.distillation.order import Order, keep_order
from sequoia.distillation.place import Place
from tests.tiny import byte_tokenizer, save_model, tiny_llama

app = typer.Typer()
app.command()(distill)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A target over bytes, of three layers."""
    folder = tmp_path_factory.mktemp("target")
    return str(save_model(folder, tiny_llama(257, seed=3, layers=3), byte_tokenizer()))


def run(*arguments: str) -> Result:
    """The outcome of the command."""
    wide = {"COLUMNS": "200", "TERMINAL_WIDTH": "200", "NO_COLOR": "1", "TERM": "dumb"}
    return CliRunner().invoke(app, arguments, env=wide)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tokens", "0"], ["--tokens", "above 0"]),
        (["--minutes", "-1"], ["--minutes", "above 0"]),
        (["--minutes", "nan"], ["--minutes", "above 0"]),
        (["--tokens", "5", "--minutes", "5"], ["--tokens", "--minutes"]),
        (["--layers", "none"], ["--layers", "0,29"]),
        (["--layers", "0"], ["--layers", "needs a layer"]),
        (["--layers", "2,1"], ["--layers", "rising"]),
        (["--layers", "-1"], ["--layers"]),
        (["--width", "0"], ["--width"]),
        (["--vocab-size", "0"], ["--vocab-size", "above 0"]),
        (["--vocab-size", "9", "--from", "x"], ["--vocab-size", "--from"]),
        (["--rows", "0"], ["--rows"]),
        (["--batch-tokens", "0"], ["--batch-tokens"]),
        (["--learning-rate", "0"], ["--learning-rate"]),
        (["--learning-rate", "inf"], ["--learning-rate"]),
        (["--seed", "-1"], ["--seed"]),
        (["--device", "tpu"], ["--device", "cuda"]),
        (["--prompts", "/no/such/file"], ["--prompts: /no/such/file", "cannot be read"]),
        (["--unseen", "/no/such/file"], ["--unseen: /no/such/file", "cannot be read"]),
        (["--text", "/no/such/file"], ["--text: /no/such/file", "cannot be read"]),
        (["--resume"], ["--resume", "holds no run"]),
        # These take the target to find out.
        (["--layers", "4"], ["--layers: 4 is more than the target's 3"]),
        (["--layers", "0,3"], ["--layers", "no layer 3", "0 to 2"]),
        (["--from", "/no/such/draft"], ["/no/such/draft", "no such folder"]),
        (["--vocab-size", "258"], ["--vocab-size", "258", "257"]),
        (["--vocab-size", "1"], ["--vocab-size", "special"]),
        (["--width", "65"], ["width 65", "64"]),
    ],
)
def test_bad_options_are_refused_by_name(
    arguments: list[str], words: list[str], target: str, tmp_path: Path
) -> None:
    """A message with the option and what it may be; nothing is left that a second try trips over."""
    result = run("--target", target, "--out", str(tmp_path / "draft"), *arguments)
    assert result.exit_code in {1, 2}
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.stderr
    Place(tmp_path / "draft", tmp_path / "draft/.work").prepare(resume=False)


@pytest.mark.parametrize("content", ["", "{}", '{"prompt": 5}', "no JSON"])
def test_bad_prompts_files_are_refused_by_name(content: str, target: str, tmp_path: Path) -> None:
    """Empty or malformed: status 2 and one line that names option and file."""
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    result = run("--target", target, "--out", str(tmp_path / "draft"), "--prompts", str(path))
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: --prompts: {path}")
    assert result.stderr.count("\n") == 1


def test_an_unknown_target_is_refused_by_name(tmp_path: Path) -> None:
    """Status 1 and one line, as the other commands have it, and no folder is made."""
    result = run("--target", "/no/such/target", "--out", str(tmp_path / "draft"))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: model '/no/such/target'")
    assert not (tmp_path / "draft").exists()


@pytest.mark.parametrize("option", ["--out", "--work"])
def test_folders_that_cannot_be_used_are_refused(option: str, target: str, tmp_path: Path) -> None:
    """A file in the place of a folder, a folder below a file, a folder that holds something."""
    file = tmp_path / "file"
    file.touch()
    for folder, words in ((file, "cannot be written"), (file / "x", "cannot be written")):
        arguments = {"--out": str(tmp_path / "out"), option: str(folder)}
        result = run("--target", target, *(x for pair in arguments.items() for x in pair))
        assert result.exit_code == 2
        assert f"error: {option}: {folder}" in result.stderr
        assert words in result.stderr
    arguments = {"--out": str(tmp_path / "out"), option: str(tmp_path)}
    result = run("--target", target, *(x for pair in arguments.items() for x in pair))
    assert result.exit_code == 2
    assert "is not empty" in result.stderr
    assert "--resume" in result.stderr


def test_a_target_that_can_invent_nothing_needs_something_to_say(tmp_path: Path) -> None:
    """Without a chat template, prompts or text it is said what is missing."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    target = str(save_model(tmp_path / "target", tiny_llama(257, seed=3), tokenizer))
    result = run("--target", target, "--out", str(tmp_path / "draft"))
    assert result.exit_code == 1
    for word in ("no chat template", "--prompts", "--text"):
        assert word in result.stderr


@pytest.fixture
def begun(target: str, tmp_path: Path) -> Path:
    """The folder of a run that was begun."""
    place = Place(tmp_path / "draft", tmp_path / "draft/.work")
    place.prepare(resume=False)
    order = Order(target, "1", None, 200, True, None, (), (), None, 4, 300, 2e-3, 0)
    keep_order(place.order, order, Budget(tokens=1200))
    return place.out


def test_what_was_begun_is_not_overwritten(begun: Path, target: str) -> None:
    """Only --resume goes on with what is there."""
    result = run("--target", target, "--out", str(begun), "--tokens", "5000")
    assert result.exit_code == 2
    assert "is not empty" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--layers", "2"], "--layers: 2 now, 1 in the run that is resumed"),
        (["--vocab-size", "100"], "--vocab-size: 100 now, 200 in"),
        (["--width", "9"], "--width: 9 now, not given in"),
        (["--no-features"], "--no-features: True now, False in"),
        (["--rows", "5"], "--rows: 5 now, 4 in"),
        (["--seed", "5"], "--seed: 5 now, 0 in"),
        (["--tokens", "5"], "--tokens: 5 is less than the 1200 of before"),
        (["--minutes", "5"], "counts --tokens"),
    ],
)
def test_a_resumed_run_keeps_its_settings(
    arguments: list[str], words: str, begun: Path, target: str
) -> None:
    """The option that differs is named with both values."""
    usual = ["--vocab-size", "200", "--rows", "4", "--batch-tokens", "300", "--resume"]
    result = run("--target", target, "--out", str(begun), *usual, *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
