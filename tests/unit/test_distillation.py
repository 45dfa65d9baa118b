from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from sequoia.distillation.loss import Distill, Example, LossWeights, loss_of
from sequoia.distillation.student import Shape, Student
from sequoia.distillation.target import Target
from sequoia.distillation.train import Progress, Settings, Trainer
from tests.tiny import save_model, tiny_llama, word_tokenizer

WORDS = 97
KL = LossWeights(kl=1.0, tv=0.0)


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiler: it takes longer than everything else here."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    """A Llama of three narrow layers."""
    folder = tmp_path_factory.mktemp("target")
    save_model(folder, tiny_llama(WORDS, seed=1, layers=3), word_tokenizer(WORDS))
    return Target.load("tiny", folder, torch.device("cpu"))


@pytest.fixture(scope="module")
def examples(target: Target) -> list[Example]:
    """Eight texts, and what the target makes of them."""
    generator = torch.Generator().manual_seed(2)
    found = []
    for length in range(16, 24):
        ids = torch.randint(0, WORDS, (length,), generator=generator, dtype=torch.int32)
        features = target.model.plain(ids.tolist()).features.bfloat16().clone()
        found.append(Example(ids, features, answer_start=4))
    return found


def _student(target: Target, reads_features: bool = True) -> Student:
    return Student(target, Shape((0, 2), reads_features=reads_features), torch.arange(64))


def _settings(steps: int) -> Settings:
    return Settings(tokens=50 * steps, batch_tokens=60, learning_rate=3e-3, warmup_steps=2)


@pytest.mark.parametrize("reads_features", [True, False])
def test_the_loss_on_a_fixed_batch_falls(
    reads_features: bool, target: Target, examples: list[Example]
) -> None:
    """A few steps of training bring the student closer to the target."""
    student = _student(target, reads_features)
    before = loss_of(student, examples, KL).divergences[0]
    Trainer(student, _settings(40), None).run(examples)
    assert loss_of(student, examples, KL).divergences[0] < 0.9 * before


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
    weights = LossWeights(kl, tv)
    loss, _, _ = Distill.apply(student, teacher, head, weights)  # type: ignore[no-untyped-call]
    (found,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_resumed_training_continues_exactly(
    target: Target, examples: list[Example], tmp_path: Path
) -> None:
    """Stopped after three steps and resumed, the weights are those of an unbroken run."""
    whole = _student(target)
    Trainer(whole, _settings(8), None).run(examples)

    class Stop(Exception):  # noqa: N818 - a signal, not a failure
        pass

    def stop_at_three(progress: Progress) -> None:
        if progress.step == 3:
            raise Stop

    with pytest.raises(Stop):
        Trainer(_student(target), _settings(8), tmp_path).run(examples, stop_at_three)
    resumed = Trainer(_student(target), _settings(8), tmp_path)
    assert resumed.step == 3
    resumed.run(examples)
    for name, tensor in resumed.student.learned().items():
        torch.testing.assert_close(tensor, whole.learned()[name], rtol=0, atol=0)


def test_a_training_ends_with_its_budget(target: Target, examples: list[Example]) -> None:
    """It reads about so many tokens, and tells how far it is."""
    heard: list[Progress] = []
    trainer = Trainer(_student(target), _settings(10), None)
    trainer.run(examples, heard.append)
    assert 500 <= trainer.tokens < 600
    assert trainer.part == 1.0
    assert [progress.step for progress in heard] == list(range(1, len(heard) + 1))
    assert heard[0].part == 0.0
    assert len(heard[0].overlaps) == 1
    assert len(heard[-1].overlaps) == 2
