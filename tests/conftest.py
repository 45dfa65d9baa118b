"""What all tests share: one thread for torch, and models that are made once and only read."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog
import torch
from hypothesis import settings
from transformers import PreTrainedTokenizerFast

from tests.tiny import byte_tokenizer, word_pair

# Tiny models gain nothing from more threads, and lose much where cores are shared.
torch.set_num_threads(1)

# The same examples every time, however slow the machine: a failure is a change, not bad luck.
settings.register_profile("sequoia", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("sequoia")


@pytest.fixture(autouse=True)
def unconfigured_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command run inside a test would tie every later log line to that test's captured stderr."""
    monkeypatch.setattr(structlog, "configure", lambda **_: None)


@pytest.fixture(scope="session")
def word_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a tiny target and its draft over words; not to be written to."""
    return word_pair(tmp_path_factory.mktemp("word-pair"))


@pytest.fixture(scope="session")
def byte_tokens() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per byte."""
    return byte_tokenizer()
