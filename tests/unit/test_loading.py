from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig

from sequoia.runtime.cache import KVCache
from sequoia.runtime.catalogue import ModelError
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.loading import (
    BORROWED_DRAFT_FILE,
    BorrowedDraft,
    choose_device,
    choose_dtype,
    load_draft,
    load_model,
    tensor_sha256,
)
from sequoia.runtime.segment import Segment
from sequoia.runtime.tokenization import end_of_text_ids, load_tokenizer, tokenizer_sha256
from tests.tiny import byte_tokenizer, save_model, tiny_llama, word_tokenizer

WORDS = 12
HEAD = (7, 2, 11, 0, 5)  # vocabulary ids of the draft's output rows
CPU = torch.device("cpu")
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


def load(folder: Path, dtype: torch.dtype = torch.float32) -> TreeModel:
    """An ordinary model on the CPU."""
    return load_model(folder, dtype, CPU)


def logits_of(model: TreeModel) -> Tensor:
    """What a model says after a few tokens."""
    ((logits, _),) = model.forward([Segment.chain(KVCache(), [3, 1, 4, 1, 5])])
    return logits


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A target's folder, to be written to."""
    return save_model(tmp_path / "target", tiny_llama(WORDS, seed=1), word_tokenizer(WORDS))


@pytest.fixture
def draft(tmp_path: Path, target: Path) -> Path:
    """One layer that borrows the target's embedding and some rows of its output layer."""
    folder = tmp_path / "draft"
    model = tiny_llama(WORDS, seed=1, layers=1)
    model.config.save_pretrained(folder)
    weights = model.state_dict()
    del weights[EMBEDDING], weights[OUTPUT]
    weights["head_token_ids"] = torch.tensor(HEAD, dtype=torch.int32)
    save_file(weights, folder / "model.safetensors")
    description = {
        "format": 1,
        "target": "tiny",
        "embedding": EMBEDDING,
        "head": OUTPUT,
        "embedding_sha256": tensor_sha256(load_file(target / "model.safetensors")[EMBEDDING]),
    }
    (folder / BORROWED_DRAFT_FILE).write_text(json.dumps(description))
    return folder


def rewrite(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def reweigh(folder: Path, changes: dict[str, Tensor], drop: tuple[str, ...] = ()) -> None:
    """Change tensors of a folder's weights."""
    path = folder / "model.safetensors"
    weights = load_file(path) | changes
    save_file({name: weights[name] for name in weights if name not in drop}, path)


def test_a_model_folder_is_loaded_as_it_was_saved(target: Path) -> None:
    """The weights are those of the file, every row of the output layer a vocabulary id."""
    model = load(target)
    assert model.token_ids is None
    assert torch.equal(logits_of(model), logits_of(TreeModel(tiny_llama(WORDS, seed=1))))


def test_a_model_is_loaded_in_the_element_type_asked_for(target: Path) -> None:
    """The logits come as fp32 all the same."""
    model = load(target, torch.bfloat16)
    assert model.dtype is torch.bfloat16
    assert logits_of(model).dtype is torch.float32


@pytest.mark.parametrize("size", [0, 10, 5000])
def test_broken_weights_are_refused(target: Path, size: int) -> None:
    """A file that ends too early is an error of the model, not a crash."""
    path = target / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelError, match=str(target)):
        load(target)


def test_weights_that_do_not_fit_the_configuration_are_refused(target: Path) -> None:
    """Other sizes than the configuration says."""
    rewrite(target / "config.json", hidden_size=64)
    with pytest.raises(ModelError, match=str(target)):
        load(target)


def test_missing_weights_are_refused(target: Path) -> None:
    """transformers would fill them with noise and go on; the first of them is named."""
    rewrite(target / "config.json", num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"no weights for 9 tensors, model\.layers\.2\."):
        load(target)


@pytest.mark.parametrize(
    "config",
    ["{", "{}", "[]", '{"model_type": "t5"}', '{"model_type": "llama", "hidden_size": "wide"}'],
)
def test_a_configuration_of_no_decoder_is_refused(target: Path, config: str) -> None:
    """Broken, empty, of a model that does not generate from left to right, or with a wrong field."""
    (target / "config.json").write_text(config)
    with pytest.raises(ModelError, match=str(target)):
        load(target)


def test_an_ordinary_draft_is_loaded_like_any_model(target: Path) -> None:
    """Without a description a draft's folder is a model's folder."""
    assert BorrowedDraft.read(target) is None
    assert load_draft(target, None, torch.float32, CPU).vocabulary_size == WORDS


def test_a_draft_borrows_embedding_and_head(target: Path, draft: Path) -> None:
    """It says what its own layers say between the target's embedding and the target's rows."""
    model = load_draft(draft, target, torch.float32, CPU)
    whole = tiny_llama(WORDS, seed=1, layers=1)
    borrowed = load_file(target / "model.safetensors")
    whole.load_state_dict({EMBEDDING: borrowed[EMBEDDING], OUTPUT: borrowed[OUTPUT]}, strict=False)
    expected = logits_of(TreeModel(whole))[:, list(HEAD)]
    assert torch.allclose(logits_of(model), expected, atol=1e-5)


def test_the_rows_of_a_reduced_head_map_to_vocabulary_ids(target: Path, draft: Path) -> None:
    """Row i of its logits is the i-th token of `head_token_ids`."""
    model = load_draft(draft, target, torch.float32, CPU)
    assert model.token_ids is not None
    assert model.token_ids.tolist() == list(HEAD)
    assert model.vocabulary_size == max(HEAD) + 1
    assert model.embedding_size == WORDS
    assert logits_of(model).shape[-1] == len(HEAD)


def test_a_draft_may_bring_a_head_of_its_own(target: Path, draft: Path) -> None:
    """Rows in the draft's file come before the target's."""
    borrowing = logits_of(load_draft(draft, target, torch.float32, CPU))
    head = load_file(target / "model.safetensors")[OUTPUT][list(HEAD)]
    reweigh(draft, {OUTPUT: 2 * head})
    owning = logits_of(load_draft(draft, target, torch.float32, CPU))
    assert torch.allclose(owning, 2 * borrowing, atol=1e-4)


def test_a_draft_takes_the_element_type_asked_for(target: Path, draft: Path) -> None:
    """What it borrows included."""
    model = load_draft(draft, target, torch.bfloat16, CPU)
    assert {parameter.dtype for parameter in model.model.parameters()} == {torch.bfloat16}


def test_a_draft_made_for_another_target_is_refused(tmp_path: Path, draft: Path) -> None:
    """The hash of the embedding tells, and the message names both."""
    other = save_model(tmp_path / "other", tiny_llama(WORDS, seed=2), word_tokenizer(WORDS))
    with pytest.raises(ModelError, match=f"made for tiny; the embedding of {other} is another"):
        load_draft(draft, other, torch.float32, CPU)


def test_a_borrowing_draft_needs_its_target(draft: Path) -> None:
    """Without one the message says whose it is."""
    with pytest.raises(ModelError, match="this draft borrows from tiny: name its target"):
        load_draft(draft, None, torch.float32, CPU)


@pytest.mark.parametrize(
    "description",
    ["", "{", "[]", "3", '"target"', "null", '{"target": "tiny"}', b"\xff\xfe"],
    ids=repr,
)
def test_a_broken_description_is_refused(draft: Path, description: str | bytes) -> None:
    """The file is named."""
    data = description.encode() if isinstance(description, str) else description
    (draft / BORROWED_DRAFT_FILE).write_bytes(data)
    with pytest.raises(ModelError, match=f"{BORROWED_DRAFT_FILE}: not a draft description"):
        BorrowedDraft.read(draft)


def test_a_description_of_a_tensor_that_is_not_there_is_refused(target: Path, draft: Path) -> None:
    """The tensor is named."""
    rewrite(draft / BORROWED_DRAFT_FILE, embedding="model.wte.weight")
    with pytest.raises(ModelError, match=r"no tensor model\.wte\.weight"):
        load_draft(draft, target, torch.float32, CPU)


@pytest.mark.parametrize(
    "damage",
    [
        {"changes": {}, "drop": ("head_token_ids",)},
        {"changes": {}, "drop": ("model.norm.weight",)},
        {"changes": {"model.more.weight": torch.ones(1)}},
        {"changes": {"model.norm.weight": torch.ones(7)}},
        {"changes": {"head_token_ids": torch.tensor([1, WORDS], dtype=torch.int32)}},
    ],
    ids=["no ids", "missing weights", "unexpected weights", "wrong size", "id of no row"],
)
def test_a_draft_whose_files_are_not_as_described_is_refused(
    target: Path, draft: Path, damage: dict[str, Any]
) -> None:
    """Whatever is wrong with its tensors, it is an error of the model that names the folder."""
    reweigh(draft, **damage)
    with pytest.raises(ModelError, match=str(draft)):
        load_draft(draft, target, torch.float32, CPU)


def test_a_draft_without_weights_is_refused(target: Path, draft: Path) -> None:
    """A description alone is no draft."""
    (draft / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=str(draft)):
        load_draft(draft, target, torch.float32, CPU)


def test_auto_takes_the_device_that_is_there() -> None:
    """A GPU where there is one, otherwise the CPU."""
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device("auto").type == expected
    assert choose_device("cpu") == CPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there_is_refused() -> None:
    """Asking for a GPU never falls back to the CPU silently."""
    with pytest.raises(ModelError, match="no CUDA device is present"):
        choose_device("cuda")


@pytest.mark.parametrize(
    ("dtype", "device", "expected"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "cuda", torch.bfloat16),
        ("float32", "cuda", torch.float32),
        ("bfloat16", "cpu", torch.bfloat16),
    ],
)
def test_auto_takes_the_element_type_of_the_device(
    dtype: str, device: str, expected: torch.dtype
) -> None:
    """bfloat16 on a GPU, float32 on a CPU; a name is taken at its word."""
    assert choose_dtype(dtype, torch.device(device)) is expected


@pytest.mark.parametrize(
    ("configured", "expected"), [(3, {0, 3}), ([3, 4], {0, 3, 4}), (None, {0}), ([0], {0})]
)
def test_texts_end_where_the_model_and_the_tokenizer_say(
    tmp_path: Path, configured: int | list[int] | None, expected: set[int]
) -> None:
    """One id, several or none in the generation settings, and the tokenizer's own."""
    GenerationConfig(eos_token_id=configured).save_pretrained(tmp_path)
    assert end_of_text_ids(tmp_path, word_tokenizer(WORDS)) == expected


def test_without_generation_settings_the_tokenizer_says_where_texts_end(tmp_path: Path) -> None:
    """A folder need not have any."""
    assert end_of_text_ids(tmp_path, byte_tokenizer()) == {256}


def test_a_tokenizer_without_an_end_token_ends_no_text(tmp_path: Path) -> None:
    """Then only the length and the request's own stops do."""
    tokenizer = word_tokenizer(WORDS)
    tokenizer.eos_token = None
    assert end_of_text_ids(tmp_path, tokenizer) == frozenset()


def test_a_tokenizer_keeps_its_fingerprint(target: Path) -> None:
    """Saved and loaded again, and whatever its template, it is the same vocabulary."""
    tokenizer = load_tokenizer(target)
    tokenizer.chat_template = "another"
    assert tokenizer_sha256(tokenizer) == tokenizer_sha256(word_tokenizer(WORDS))


@dataclass
class Vocabulary:
    """Stands in for a tokenizer."""

    entries: dict[str, int]

    def get_vocab(self) -> dict[str, int]:
        return self.entries


def test_other_vocabularies_have_other_fingerprints() -> None:
    """More tokens, other tokens, or the same ones under other ids."""
    tokenizers = [word_tokenizer(2), word_tokenizer(3), byte_tokenizer()]
    swapped, same = Vocabulary({"w1": 0, "w0": 1}), Vocabulary({"w1": 1, "w0": 0})
    fingerprints = [tokenizer_sha256(tokenizer) for tokenizer in (*tokenizers, swapped)]
    assert len(set(fingerprints)) == len(fingerprints)
    assert tokenizer_sha256(same) == fingerprints[0]


def test_a_folder_without_a_tokenizer_is_refused(target: Path) -> None:
    """The message names the folder."""
    for path in target.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match=f"{target}: no tokenizer"):
        load_tokenizer(target)


def test_the_hash_of_a_tensor_is_that_of_its_values() -> None:
    """Layout and element type in memory do not matter, values and their order do."""
    tensor = torch.arange(6.0).reshape(2, 3)
    assert tensor_sha256(tensor) == tensor_sha256(tensor.t().contiguous().t())
    assert tensor_sha256(tensor) == tensor_sha256(tensor.bfloat16())
    assert tensor_sha256(tensor) != tensor_sha256(tensor.flip(0))


def test_a_description_of_another_format_is_refused(draft: Path) -> None:
    """A draft that a later version wrote is not misread."""
    rewrite(draft / BORROWED_DRAFT_FILE, format=2)
    with pytest.raises(ModelError, match="format 2 is not 1"):
        BorrowedDraft.read(draft)
