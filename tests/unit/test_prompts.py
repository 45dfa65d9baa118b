"""Prompts files: both kinds of lines, an even choice, and one clear sentence for every bad file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sequoia.bench.prompts import MT_BENCH
from sequoia.prompts import PromptsError, read_prompts, spread


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test writes its file."""
    return tmp_path / "prompts.jsonl"


def test_a_prompt_or_the_first_turn_is_read(path: Path) -> None:
    """Lines of both kinds may stand in one file, empty lines between them."""
    path.write_text('{"prompt": "one", "id": 7}\n\n{"turns": ["two", "three"]}\n')
    assert read_prompts(path) == ["one", "two"]


def test_mt_bench_is_read_whole() -> None:
    """One prompt for each line of the file in the repository."""
    prompts = read_prompts(MT_BENCH)
    assert len(prompts) == len(MT_BENCH.read_text(encoding="utf-8").splitlines())
    assert prompts[0].startswith("Compose an engaging travel blog post")


def test_a_line_separator_inside_a_text_ends_no_line(path: Path) -> None:
    """Only a newline ends a line: JSON allows U+2028 inside of strings."""
    path.write_text(json.dumps({"prompt": "a\u2028b"}, ensure_ascii=False), encoding="utf-8")
    assert read_prompts(path) == ["a\u2028b"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ("holds no prompts",)),
        (b"\n \n", ("holds no prompts",)),
        (b'{"prompt": "x"}\n{"prompt": ', (":2: is not JSON",)),
        (b"[" * 100_000, (":1: is not JSON",)),
        (b'{"prompt": "x"}\n["y"]\n', (":2: must be a JSON object, not list",)),
        (b'{"text": "x", "id": 1}', (":1: neither prompt nor turns", "id, text")),
        (b'{"prompt": 3}', (":1: prompt must be a text",)),
        (b'{"prompt": ""}', (":1: prompt must be a text that is not empty",)),
        (b'{"turns": []}', (":1: turns must be a list that is not empty",)),
        (b'{"turns": "hello"}', (":1: turns must be a list",)),
        (b'{"turns": [null]}', (":1: turns[0] must be a text",)),
        (b'{"prompt": "x"}\n{"prompt": "\xff"}\n', (":2: is not UTF-8",)),
    ],
)
def test_a_bad_file_is_refused_by_name_and_line(
    path: Path, content: bytes, words: tuple[str, ...]
) -> None:
    """The message is one line that begins with the file and says what is wrong where."""
    path.write_bytes(content)
    with pytest.raises(PromptsError) as refused:
        read_prompts(path)
    message = str(refused.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A missing file and a folder are refused alike."""
    for path in (tmp_path / "nothing.jsonl", tmp_path):
        with pytest.raises(PromptsError, match=r"cannot be read") as refused:
            read_prompts(path)
        assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("count", "expected"), [(1, "a"), (2, "ac"), (3, "abd"), (5, "abcde"), (9, "abcde")]
)
def test_prompts_are_chosen_evenly(count: int, expected: str) -> None:
    """Every part of the file is heard, each prompt once, in order."""
    assert spread("abcde", count) == list(expected)
