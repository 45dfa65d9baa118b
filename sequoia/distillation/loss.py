"""Distillation's loss: how far the student's whole distribution is from the target's."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sequoia.distillation.student import Student

CHUNK = 256
"""Positions whose two distributions are held at once: they should stay in the CPU's cache."""


@dataclass(frozen=True)
class Example:
    """One conversation of the corpus."""

    token_ids: Tensor
    """int32 [tokens]."""
    hidden: Tensor
    """The target's state after reading each token.  [tokens, hidden]"""
    answer_start: int
    """Where the assistant's first token stands; the positions from one before it are learned."""


def examples_of(shards: list[dict[str, Tensor]]) -> list[Example]:
    """The conversations of `shards` that have an answer to learn from."""
    found = []
    for shard in shards:
        lengths = shard["lengths"].tolist()
        ids, hidden = (
            torch.split(shard["token_ids"], lengths),
            torch.split(shard["hidden"], lengths),
        )
        for tokens, states, start in zip(ids, hidden, shard["answer_starts"].tolist(), strict=True):
            if start:
                found.append(Example(tokens, states, start))
    return found


class Distill(torch.autograd.Function):
    """kl * KL(p || q) + tv * TV(p, q), its gradient found on the way, a chunk at a time.

    With z the student's logits and m = [q < p]:  dKL/dz = q - p,  dTV/dz = q (sum(m q) - m).
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        student: Tensor,
        teacher: Tensor,
        head: Tensor,
        kl: float,
        tv: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, KL(p || q) and sum(min(p, q)), as means over positions.

        `student`, `teacher` are states [positions, hidden]; `head` is [tokens, hidden].
        """
        gradient = torch.empty_like(student)
        divergence = overlap = torch.zeros(())
        for start in range(0, len(student), CHUNK):
            part = slice(start, start + CHUNK)
            log_p = F.log_softmax(F.linear(teacher[part].to(head.dtype), head).float(), -1)
            log_q = F.log_softmax(F.linear(student[part].to(head.dtype), head).float(), -1)
            p, q = log_p.exp(), log_q.exp()
            divergence = divergence + log_p.sub_(log_q).mul_(p).sum()
            common = torch.minimum(p, q).sum(-1, keepdim=True)
            overlap = overlap + common.sum()
            slope = (q - p).mul_(kl)
            if tv:
                short = (q < p).to(q.dtype)
                rising = (short * q).sum(-1, keepdim=True)
                slope += (rising - short).mul_(q).mul_(tv)
            gradient[part] = F.linear(slope.to(head.dtype), head.T).to(gradient.dtype)
        count = len(student)
        ctx.save_for_backward(gradient.div_(count))
        divergence, overlap = divergence / count, overlap / count
        ctx.mark_non_differentiable(divergence, overlap)
        return kl * divergence + tv * (1 - overlap), divergence, overlap

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        """The gradient found in `forward`; only the student's states get one."""
        (gradient,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient * gradients[0], None, None, None, None


def loss_of(
    student: Student, batch: list[Example], kl: float, tv: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss kl * KL + tv * TV on a batch's answers, and its mean KL(p || q) and sum(min(p, q)).

    p and q are over the reduced head, at temperature 1. Right padding needs no mask: attention is
    causal and padded positions are not learned.
    """
    longest = max(len(example.token_ids) for example in batch)
    token_ids = torch.zeros(len(batch), longest, dtype=torch.long)
    learned = torch.zeros(len(batch), longest, dtype=torch.bool)
    for row, example in enumerate(batch):
        token_ids[row, : len(example.token_ids)] = example.token_ids
        learned[row, example.answer_start - 1 : len(example.token_ids)] = True
    with torch.autocast("cpu", torch.bfloat16):
        states = student(token_ids)
    teacher = torch.cat([example.hidden[example.answer_start - 1 :] for example in batch])
    result: tuple[Tensor, Tensor, Tensor] = Distill.apply(  # type: ignore[no-untyped-call]
        states[learned], teacher, student.head, kl, tv
    )
    return result
