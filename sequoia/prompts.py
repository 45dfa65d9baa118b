"""Prompts from a file of JSON lines: a `prompt` each, or `turns` of which the first is used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path


class PromptsError(Exception):
    """A prompts file that cannot be used; the message is one line and names file and line."""


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file, in its order; empty lines are passed over.

    Raises:
        PromptsError: the file cannot be read, holds no prompt, or a line is not an object with a
            `prompt` or `turns` of text.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PromptsError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise PromptsError(f"{path}:{line}: is not UTF-8: {error.reason}") from None
    # Not `splitlines`: strings in JSON may hold U+2028 and its like as they are.
    lines = enumerate(content.split("\n"), 1)
    prompts = [_prompt(f"{path}:{number}", line) for number, line in lines if line.strip()]
    if not prompts:
        raise PromptsError(f"{path}: holds no prompts")
    return prompts


def spread(prompts: Sequence[str], count: int) -> list[str]:
    """At most `count` of the prompts, evenly spread over all of them, in their order."""
    count = min(count, len(prompts))
    return [prompts[index * len(prompts) // count] for index in range(count)]


def _prompt(place: str, line: str) -> str:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PromptsError(f"{place}: is not JSON: {error}") from None
    if not isinstance(entry, dict):
        raise PromptsError(f"{place}: must be a JSON object, not {type(entry).__name__}")
    if "prompt" in entry:
        field, text = "prompt", entry["prompt"]
    elif "turns" in entry:
        turns = entry["turns"]
        if not isinstance(turns, list) or not turns:
            raise PromptsError(f"{place}: turns must be a list that is not empty")
        field, text = "turns[0]", turns[0]
    else:
        found = ", ".join(sorted(entry)) or "none"
        raise PromptsError(f"{place}: neither prompt nor turns (keys found: {found})")
    if not isinstance(text, str) or not text.strip():
        raise PromptsError(f"{place}: {field} must be a text that is not empty")
    return text
