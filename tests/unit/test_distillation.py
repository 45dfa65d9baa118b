from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from sequoia.distillation.conversation import Conversation, Template
from sequoia.distillation.corpus import load_shards, save_shard, write, write_corpus
from sequoia.distillation.decode import Decoder, draw
from sequoia.distillation.evaluate import accepted_rank, agreement, continuations
from sequoia.distillation.loss import Distill, Example, examples_of, loss_of
from sequoia.distillation.student import EMBEDDING, Student, frequent_ids
from sequoia.distillation.train import Settings, Trainer

TEMPLATE = Template(opening=[1, 3, 4], bare=[1, 4], middle=[2, 5])


@pytest.fixture
def config() -> LlamaConfig:
    """A Llama of three narrow layers."""
    return LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=64,
    )


@pytest.fixture
def model(config: LlamaConfig) -> LlamaForCausalLM:
    """That Llama with random weights."""
    torch.manual_seed(0)
    model: LlamaForCausalLM = LlamaForCausalLM(config).eval()
    return model


@pytest.fixture
def target(model: LlamaForCausalLM) -> Mapping[str, Tensor]:
    """Its checkpoint, made sharper than fresh weights are: something to learn."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    del state["lm_head.weight"]
    state[EMBEDDING] *= 8
    return state


@pytest.fixture
def examples(config: LlamaConfig, target: Mapping[str, Tensor]) -> list[Example]:
    """What it answers to eight prompts."""
    decoder = Decoder(config, target, 4, 40)
    prompts = [[10 + i, 20 + i, 30 + i] for i in range(8)]
    answers = continuations(decoder, TEMPLATE, prompts, (1.0,), new_tokens=16)
    return answers[1.0]


def _student(config: LlamaConfig, target: Mapping[str, Tensor]) -> Student:
    return Student(config, target, [0, 2], torch.arange(64))


def _settings(steps: int) -> Settings:
    return Settings(steps=steps, batch_tokens=60, learning_rate=3e-3, warmup_steps=2)


def test_the_decoder_says_what_transformers_says(
    config: LlamaConfig, model: LlamaForCausalLM
) -> None:
    """Rows at positions of their own give the logits of a plain forward pass."""
    token_ids = torch.randint(0, config.vocab_size, (3, 9))
    decoder = Decoder(config, model.state_dict(), 3, 12)
    with torch.no_grad():
        expected = model(token_ids).logits
    for position in range(9):
        hidden = decoder.step(token_ids[:, position], torch.full((3,), position))
        torch.testing.assert_close(decoder.logits(hidden), expected[:, position])


def test_draws_follow_the_distribution() -> None:
    """Two-stage inversion draws each token as often as its probability says."""
    logits = torch.randn(1, 700, generator=torch.Generator().manual_seed(1)) * 3
    rows = logits.expand(20_000, -1)
    drawn = draw(rows, torch.ones(len(rows)), torch.Generator().manual_seed(2))
    found = torch.bincount(drawn, minlength=700) / len(rows)
    assert (found - torch.softmax(logits[0], -1)).abs().max() < 0.02
    assert draw(logits, torch.zeros(1), torch.Generator()).item() == logits.argmax().item()


def test_a_conversation_is_forced_where_the_template_speaks(
    config: LlamaConfig, target: Mapping[str, Tensor]
) -> None:
    """Opening, prompt and turn change stand as given; the answer begins right after them."""
    asked = Conversation(TEMPLATE.opening, [11, 12], 1.0, 0.0, limit=15)
    invented = Conversation(TEMPLATE.bare, None, 1.0, 1.0, limit=15)
    decoder = Decoder(config, target, 1, 16)
    stream = iter([asked, invented])
    found = list(write(decoder, TEMPLATE, stream, torch.Generator().manual_seed(0)))
    assert found == [asked, invented]
    assert asked.token_ids[:7] == [1, 3, 4, 11, 12, 2, 5]
    assert asked.answer_start == 7
    assert invented.token_ids[:2] == TEMPLATE.bare
    assert all(len(one.hidden) == len(one.token_ids) <= 15 for one in found)


def test_a_corpus_goes_on_with_new_conversations(
    config: LlamaConfig, target: Mapping[str, Tensor], tmp_path: Path
) -> None:
    """A second run adds shards to the first one's and repeats none of its conversations."""
    prompts = [[11, 12], [13, 14]]
    for _ in range(2):
        decoder = Decoder(config, target, 4, 24)
        write_corpus(decoder, TEMPLATE, prompts, tmp_path, deadline=0.0, shard_tokens=1)
    first, second = (shard["token_ids"].tolist() for shard in load_shards(tmp_path))
    assert first != second


def test_stored_states_give_back_the_targets_distribution(
    config: LlamaConfig, target: Mapping[str, Tensor], tmp_path: Path
) -> None:
    """A shard read back holds the hidden state after each of its tokens."""
    conversation = Conversation(TEMPLATE.opening, [11, 12], 1.0, 0.0, limit=15)
    decoder = Decoder(config, target, 2, 16)
    rows = list(write(decoder, TEMPLATE, iter([conversation]), torch.Generator()))
    save_shard(tmp_path / "shard-00000.safetensors", rows)
    (example,) = examples_of(load_shards(tmp_path))
    greedy = F.linear(example.hidden, target[EMBEDDING]).argmax(-1)
    start = example.answer_start
    assert greedy[start - 1 : -1].tolist() == example.token_ids[start:].tolist()


def test_the_loss_on_a_fixed_batch_falls(
    config: LlamaConfig, target: Mapping[str, Tensor], examples: list[Example]
) -> None:
    """A few steps of training bring the student closer to the target."""
    student = _student(config, target)
    before = loss_of(student, examples, 1.0, 0.0)[0].item()
    Trainer(student, _settings(30), None).run(examples)
    assert loss_of(student, examples, 1.0, 0.0)[0].item() < 0.9 * before


@pytest.mark.parametrize(("kl", "tv"), [(1.0, 0.0), (0.0, 1.0), (0.5, 2.0)])
def test_the_gradient_is_that_of_the_loss(kl: float, tv: float) -> None:
    """The gradient found by hand agrees with autograd's on the plain formula."""
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(50, 16, generator=generator)
    teacher = torch.randn(9, 16, generator=generator)
    student = torch.randn(9, 16, generator=generator, requires_grad=True)
    log_p, log_q = (F.log_softmax(F.linear(x, head), -1) for x in (teacher, student))
    plain = kl * (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    plain = plain + tv * (log_p.exp() - log_q.exp()).abs().sum(-1).mean() / 2
    (expected,) = torch.autograd.grad(plain, student)
    loss, _, _ = Distill.apply(student, teacher, head, kl, tv)  # type: ignore[no-untyped-call]
    (found,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_resumed_training_continues_exactly(
    config: LlamaConfig, target: Mapping[str, Tensor], examples: list[Example], tmp_path: Path
) -> None:
    """Stopped after three steps and resumed, the weights are those of an unbroken run."""
    whole, parts = _student(config, target), _student(config, target)
    Trainer(whole, _settings(8), None).run(examples)

    class Stop(Exception):  # noqa: N818 - a signal, not a failure
        pass

    def stop_at_three(progress: object) -> None:
        if first.step == 3:
            raise Stop

    first = Trainer(parts, _settings(8), tmp_path)
    with pytest.raises(Stop):
        first.run(examples, stop_at_three)
    resumed = Trainer(_student(config, target), _settings(8), tmp_path)
    assert resumed.step == 3
    resumed.run(examples)
    for name, tensor in resumed.student.learned().items():
        torch.testing.assert_close(tensor, whole.learned()[name], rtol=0, atol=0)


def test_a_saved_draft_loads_on_its_target_only(
    config: LlamaConfig, target: Mapping[str, Tensor], tmp_path: Path
) -> None:
    """The folder borrows embedding and head by hash, so another target is refused."""
    student = _student(config, target)
    student.save(tmp_path, "tiny")
    tensors = load_file(tmp_path / "model.safetensors")
    assert EMBEDDING not in tensors
    assert "lm_head.weight" not in tensors
    loaded = Student.load(tmp_path, config, target)
    assert torch.equal(loaded.head_token_ids, student.head_token_ids)
    with pytest.raises(ValueError, match="another target"):
        Student.load(tmp_path, config, {**target, EMBEDDING: target[EMBEDDING] + 1})


def test_the_head_takes_the_likeliest_tokens(target: Mapping[str, Tensor]) -> None:
    """The ids of most mass and the special ones make the head, in ascending order."""
    states = target[EMBEDDING][[50, 40, 40]]
    assert frequent_ids([states], target[EMBEDDING], 4, [2, 1]).tolist() == [1, 2, 40, 50]


def test_equal_distributions_accept_the_first_child() -> None:
    """Where q is p the first child is always accepted; otherwise ranks still sum to one."""
    generator = torch.Generator().manual_seed(3)
    p = torch.softmax(torch.randn(20, 40, generator=generator), -1)
    q = torch.softmax(torch.randn(20, 40, generator=generator), -1)
    same = accepted_rank(p, p, generator)
    torch.testing.assert_close(same[:, 0], torch.ones(20))
    torch.testing.assert_close(accepted_rank(p, q, generator).sum(-1), torch.ones(20))


def test_agreement_counts_every_answered_position(
    config: LlamaConfig, target: Mapping[str, Tensor], examples: list[Example]
) -> None:
    """A student that is the whole target agrees with it everywhere."""
    twin = Student(config, target, [0, 1, 2], torch.arange(config.vocab_size)).eval()
    found = agreement(twin, target[EMBEDDING], examples, 0.0)
    assert found.positions == sum(len(x.token_ids) - x.answer_start + 1 for x in examples)
    assert found.overlap == pytest.approx(1, abs=1e-3)
    assert found.vector[1] == found.top_match[1] == 1.0
