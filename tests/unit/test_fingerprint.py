from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sequoia.runtime.fingerprint import model_sha256
from sequoia.runtime.pairing import load_draft_worker, load_target_worker
from tests.tiny import feature_draft, save_model, tiny_llama, word_tokenizer

CONFIG = {"hidden_size": 8, "transformers_version": "1"}


def model(folder: Path, config: object = CONFIG, **files: bytes) -> Path:
    """A folder with a description and weights of these bytes."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_bytes(content)
    return folder


@pytest.mark.parametrize("suffix", ["safetensors", "gguf"])
def test_copies_are_one_model(tmp_path: Path, suffix: str) -> None:
    """Whatever folder and files are called, and whichever library wrote the description."""
    one = model(tmp_path / "one", **{f"a_{suffix}": b"12", f"b_{suffix}": b"34"})
    config = {"_name_or_path": "x", "transformers_version": "2", "hidden_size": 8}
    other = model(tmp_path / "other", config, **{f"c_{suffix}": b"12", f"d_{suffix}": b"34"})
    assert model_sha256(one) == model_sha256(other)
    assert len(model_sha256(one)) == 64


@pytest.mark.parametrize("at", [0, 70_000, 2**21, 2**22 - 1])
@pytest.mark.parametrize("suffix", ["safetensors", "gguf"])
def test_other_weights_are_another_model(tmp_path: Path, suffix: str, at: int) -> None:
    """Wherever about a block of them differs, its size alike."""
    content = bytearray(2**22)
    before = model_sha256(model(tmp_path / "one", **{f"a_{suffix}": bytes(content)}))
    content[at : at + 2**16] = b"\1" * len(content[at : at + 2**16])
    assert model_sha256(model(tmp_path / "other", **{f"a_{suffix}": bytes(content)})) != before


def test_size_number_and_order_of_files_count(tmp_path: Path) -> None:
    """As does the description."""
    folders = [
        model(tmp_path / "1", a_gguf=b"1"),
        model(tmp_path / "2", a_gguf=b"11"),
        model(tmp_path / "3", a_gguf=b"1", b_gguf=b"1"),
        model(tmp_path / "4", a_gguf=b"1", b_gguf=b"2"),
        model(tmp_path / "5", a_gguf=b"2", b_gguf=b"1"),
        model(tmp_path / "6", {"hidden_size": 9}, a_gguf=b"1"),
        model(tmp_path / "7", [], a_gguf=b"1"),
    ]
    assert len({model_sha256(folder) for folder in folders}) == len(folders)


def test_what_is_not_loaded_does_not_count(tmp_path: Path) -> None:
    """A GGUF file beside safetensors, a draft in a folder below, a text about the model."""
    one = model(tmp_path / "one", a_safetensors=b"1")
    before = model_sha256(one)
    (one / "a.gguf").write_bytes(b"2")
    (one / "README.md").write_text("a model")
    model(one / "draft", a_safetensors=b"3")
    assert model_sha256(one) == before


def test_a_description_that_is_none_is_read_as_it_is(tmp_path: Path) -> None:
    """Whoever loads the model says what is wrong with it."""
    one = model(tmp_path / "one", a_safetensors=b"1")
    before = model_sha256(one)
    (one / "config.json").write_bytes(b"\xff{")
    assert model_sha256(one) != before


def test_a_borrowed_draft_is_another_with_another_target(tmp_path: Path) -> None:
    """It has weights of that; a plain target is what its own folder holds."""
    target = save_model(tmp_path / "target", tiny_llama(12, seed=1), word_tokenizer(12))
    draft = feature_draft(tmp_path / "draft", target)
    moved = shutil.copytree(target, tmp_path / "moved")
    assert load_target_worker(str(moved), "float32", "cpu").model_sha256 == model_sha256(target)
    loaded = [
        load_draft_worker(str(draft), str(one), "float32", "cpu").model_sha256
        for one in (target, moved)
    ]
    assert loaded == [model_sha256(draft, target)] * 2
    assert model_sha256(draft, target) != model_sha256(draft)
