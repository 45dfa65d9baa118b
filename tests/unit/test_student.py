from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config

from sequoia.acceptance.levels import logits_by_level
from sequoia.distillation.student import BeginningError, Shape, Student, frequent_ids
from sequoia.distillation.target import Target
from sequoia.runtime.catalogue import ModelError
from sequoia.runtime.loading import load_draft
from tests.tiny import save_model, tiny_llama, word_tokenizer

WORDS = 40
HEAD = torch.arange(0, WORDS, 2)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target's folder."""
    model = tiny_llama(WORDS, seed=1, layers=4)
    return save_model(tmp_path_factory.mktemp("target"), model, word_tokenizer(WORDS))


@pytest.fixture(scope="module")
def target(folder: Path) -> Target:
    """That target."""
    return Target.load("tiny", folder, CPU)


def taught(target: Target, shape: Shape) -> Student:
    """A student whose fusion reads features, as training would leave it."""
    student = Student(target, shape, HEAD)
    if student.fusion is not None:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            shape_ = student.fusion.weight.shape
            student.fusion.weight.add_(0.05 * torch.randn(shape_, generator=generator))
    return student.eval()


def spoken(target: Target, length: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """A text and the target's features of it."""
    tokens = torch.randint(0, WORDS, (length,), generator=torch.Generator().manual_seed(5))
    return tokens, target.model.plain(tokens.tolist()).features


@pytest.mark.parametrize("count", [1, 2, 3])
def test_layers_are_spread_over_the_target(count: int) -> None:
    """One layer is the first; more begin with the first and end with the last."""
    shape = Shape.evenly(count, 30, None, reads_features=True)
    assert shape.layers == {1: (0,), 2: (0, 29), 3: (0, 14, 29)}[count] or shape.layers == (
        0,
        15,
        29,
    )


@pytest.mark.parametrize(
    "shape",
    [
        Shape((0,)),
        Shape((0, 3)),
        Shape((1,), width=16),
        Shape((0, 3), reads_features=False),
        Shape((2,), width=24, reads_features=False),
    ],
    ids=str,
)
def test_a_saved_student_says_as_a_draft_what_it_learned_to_say(
    target: Target, folder: Path, tmp_path: Path, shape: Shape
) -> None:
    """At every level of a tree the draft worker's model gives the student's logits."""
    taught(target, shape).save(tmp_path)
    student = Student.load(tmp_path, target).eval()
    draft = load_draft(tmp_path, folder, torch.float32, CPU)
    tokens, features = spoken(target)
    read = features.bfloat16().float()
    with torch.no_grad():
        states = student(tokens[None], read[None], levels=3)
    found = logits_by_level(draft, tokens.tolist(), features)
    assert len(states) == len(found) == (3 if shape.reads_features else 1)
    for state, logits in zip(states, found, strict=True):
        torch.testing.assert_close(
            logits, F.linear(state[0], target.head[HEAD]), atol=1e-4, rtol=1e-4
        )
    assert draft.token_ids is not None
    assert torch.equal(draft.token_ids, HEAD)


def test_a_student_begins_as_the_plain_one(target: Target) -> None:
    """Before it has learned to, it reads no features."""
    tokens, features = spoken(target)
    plain = Student(target, Shape((0, 3), reads_features=False), HEAD)
    fresh = Student(target, Shape((0, 3)), HEAD)
    with torch.no_grad():
        (expected,) = plain(tokens[None], None)
        (state,) = fresh(tokens[None], features[None])
    torch.testing.assert_close(state, expected)


def test_what_is_borrowed_is_neither_learned_nor_shipped(target: Target) -> None:
    """Embedding and head stay the target's; layers, norm and fusion are the student's."""
    student = Student(target, Shape((0, 3)), HEAD)
    names = set(student.learned())
    assert not any("embed" in name or "lm_head" in name for name in names)
    assert {"fusion.weight", "model.norm.weight"} <= names
    assert {name.split(".")[2] for name in names if "layers" in name} == {"0", "1"}
    trained = sum(tensor.numel() for tensor in student.parameters() if tensor.requires_grad)
    assert trained == sum(tensor.numel() for tensor in student.learned().values())


def test_a_saved_student_can_be_taught_further(target: Target, tmp_path: Path) -> None:
    """Loaded again it is what it was, to the precision of the file."""
    student = taught(target, Shape((0, 3)))
    student.save(tmp_path)
    again = Student.load(tmp_path, target)
    assert again.shape == student.shape
    for name, tensor in student.learned().items():
        assert torch.equal(again.learned()[name], tensor.bfloat16().float())


@pytest.mark.parametrize("reads_features", [True, False])
def test_a_deeper_student_begins_as_a_draft_that_is_there(
    reads_features: bool, target: Target
) -> None:
    """To the last bit, at every level of a tree; and every matrix of the further layers can learn."""
    tokens, features = spoken(target)
    draft = taught(target, Shape((0,), reads_features=reads_features))
    deeper = Student(target, Shape((0, 2, 3), reads_features=reads_features), HEAD)
    deeper.begin_as(draft)
    states, expected = (
        student(tokens[None], features[None], levels=2) for student in (deeper, draft)
    )
    for state, same in zip(states, expected, strict=True):
        torch.testing.assert_close(state, same)
    states[-1].square().sum().backward()
    learning = {
        name
        for name, one in deeper.model.named_parameters()
        if one.grad is not None and one.grad.any()
    }
    for layer in (1, 2):
        assert f"model.layers.{layer}.self_attn.o_proj.weight" in learning
        assert f"model.layers.{layer}.mlp.down_proj.weight" in learning


def test_a_layer_that_cannot_be_silenced_is_told(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Architectures name their matrices as they like."""
    monkeypatch.setattr("sequoia.distillation.student.OUTPUTS", frozenset({"o_proj"}))
    deeper = Student(target, Shape((0, 3)), HEAD)
    with pytest.raises(BeginningError, match="cannot be made to add nothing"):
        deeper.begin_as(taught(target, Shape((0,))))


def test_another_targets_draft_is_refused(target: Target, tmp_path: Path) -> None:
    """The embedding's hash says whose it is."""
    taught(target, Shape((0,))).save(tmp_path / "draft")
    other = save_model(tmp_path / "other", tiny_llama(WORDS, seed=2), word_tokenizer(WORDS))
    with pytest.raises(ValueError, match="made for another target"):
        Student.load(tmp_path / "draft", Target.load("other", other, CPU))


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        (Shape(()), "the target has 4"),
        (Shape((0, 4)), "the target has 4"),
        (Shape((-1,)), "the target has 4"),
        (Shape((0,), width=0), "width 0"),
        (Shape((0,), width=65), "width is 64"),
    ],
)
def test_shapes_that_the_target_does_not_have_are_refused(
    target: Target, shape: Shape, named: str
) -> None:
    """The message names what the target has."""
    with pytest.raises(ValueError, match=named):
        Student(target, shape, HEAD)


def test_a_target_that_bends_its_logits_is_refused(tmp_path: Path) -> None:
    """A draft borrows the output layer as one product; a softcap behind it would be lost."""
    config = Gemma2Config(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=0.5,
        initializer_range=0.5,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    folder = save_model(tmp_path, model, word_tokenizer(WORDS))
    with pytest.raises(ModelError, match="distillation needs"):
        Target.load("gemma", folder, CPU)


def test_targets_of_another_architecture_can_be_cut(tmp_path: Path) -> None:
    """Layers, embedding and head are found by what they are, not by Llama's names."""
    config = GPT2Config(vocab_size=WORDS, n_embd=32, n_layer=3, n_head=4, n_positions=64)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    folder = save_model(tmp_path / "target", model, word_tokenizer(WORDS))
    target = Target.load("gpt2", folder, CPU)
    taught(target, Shape((0, 2))).save(tmp_path / "draft")
    student = Student.load(tmp_path / "draft", target).eval()
    draft = load_draft(tmp_path / "draft", folder, torch.float32, CPU)
    tokens, features = spoken(target)
    with torch.no_grad():
        states = student(tokens[None], features.bfloat16().float()[None], levels=3)
    found = logits_by_level(draft, tokens.tolist(), features)
    for state, logits in zip(states, found, strict=True):
        torch.testing.assert_close(
            logits, F.linear(state[0], target.head[HEAD]), atol=1e-4, rtol=1e-4
        )


def test_frequent_ids_are_those_with_most_mass() -> None:
    """By the target's probabilities, with the wanted ones among them, in ascending order."""
    head = torch.eye(6)
    hidden = torch.tensor([[0.0, 9, 0, 0, 0, 0], [0.0, 0, 0, 0, 8, 0], [0.0, 0, 7, 0, 0, 0]])
    assert frequent_ids([hidden], head, 3, always=[5]).tolist() == [1, 4, 5]
    assert frequent_ids([hidden], head, 99, always=[]).tolist() == list(range(6))
