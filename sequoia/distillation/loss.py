"""Distillation's loss: how far the student's whole distribution is from the target's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
import torch
from torch import Tensor
from torch.nn import functional as F

from sequoia.distillation.student import Student

log = structlog.get_logger(__name__)

CHUNK = 256
"""Positions whose two distributions are held at once: they should stay in the CPU's cache."""
LEVEL_WEIGHT = 0.7
"""What a level of the tree counts in the loss, against the level above it."""

Slope = Callable[[Tensor, Tensor, float, float], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation of the corpus."""

    token_ids: Tensor
    """int32 [tokens]."""
    hidden: Tensor
    """The target's feature after reading each token.  [tokens, hidden]"""
    answer_start: int
    """Where the assistant's first token stands; the positions from one before it are learned."""


@dataclass(frozen=True, slots=True)
class LossWeights:
    """What the loss is made of: kl * KL(p || q) + tv * TV(p, q)."""

    kl: float
    tv: float


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss on a batch, and how the levels agree with the target."""

    total: Tensor
    divergences: list[float]
    """KL(p || q), by level."""
    overlaps: list[float]
    """Σ min(p, q), by level."""


def examples_of(shards: Sequence[dict[str, Tensor]]) -> list[Example]:
    """The conversations of `shards` that have an answer to learn from."""
    found = []
    for shard in shards:
        lengths = shard["lengths"].tolist()
        ids = torch.split(shard["token_ids"], lengths)
        hidden = torch.split(shard["hidden"], lengths)
        for tokens, states, start in zip(ids, hidden, shard["answer_starts"].tolist(), strict=True):
            if start:
                found.append(Example(tokens, states, start))
    return found


def slope(student: Tensor, teacher: Tensor, kl: float, tv: float) -> tuple[Tensor, Tensor, Tensor]:
    """The loss's gradient by the student's logits, summed KL(p || q) and summed Σ min(p, q).

    With z the student's logits and m = [q < p]:  dKL/dz = q - p,  dTV/dz = q (Σ m q - m).

    Args:
        student: logits of q, `[positions, tokens]`.
        teacher: logits of p, the same shape.
        kl: weight of KL.
        tv: weight of total variation.
    """
    log_p = F.log_softmax(teacher.float(), -1)
    log_q = F.log_softmax(student.float(), -1)
    p, q = log_p.exp(), log_q.exp()
    divergence = ((log_p - log_q) * p).sum()
    overlap = torch.minimum(p, q).sum()
    short = (q < p).float()
    rising = (short * q).sum(-1, keepdim=True)
    gradient = kl * (q - p) + tv * (rising - short) * q
    return gradient.to(student.dtype), divergence, overlap


@functools.cache
def fused_slope() -> Slope:
    """`slope` as one compiled loop where there is a compiler (7 times as fast), else as it is."""
    example = torch.zeros(2, 4, dtype=torch.bfloat16)
    try:
        compiled: Slope = torch.compile(slope, dynamic=True)
        compiled(example, example, 1.0, 1.0)
    except Exception as error:
        log.warning("loss not compiled, learning is slower", error=type(error).__name__)
        return slope
    return compiled


class Distill(torch.autograd.Function):
    """kl * KL(p || q) + tv * TV(p, q), its gradient found on the way, a chunk at a time."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        student: Tensor,
        teacher: Tensor,
        head: Tensor,
        weights: LossWeights,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, KL(p || q) and Σ min(p, q), as means over positions.

        `student`, `teacher` are what the head reads, [positions, hidden]; `head` is [tokens, hidden].
        """
        compute = fused_slope() if head.dtype == torch.bfloat16 else slope
        gradient = torch.empty_like(student)
        divergence = overlap = torch.zeros((), device=student.device)
        for start in range(0, len(student), CHUNK):
            part = slice(start, start + CHUNK)
            by_logits, kl, common = compute(
                F.linear(student[part].to(head.dtype), head),
                F.linear(teacher[part].to(head.dtype), head),
                weights.kl,
                weights.tv,
            )
            divergence, overlap = divergence + kl, overlap + common
            gradient[part] = F.linear(by_logits, head.T).to(gradient.dtype)
        count = len(student)
        ctx.save_for_backward(gradient.div_(count))
        divergence, overlap = divergence / count, overlap / count
        ctx.mark_non_differentiable(divergence, overlap)
        return weights.kl * divergence + weights.tv * (1 - overlap), divergence, overlap

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        """The gradient found in `forward`; only the student's states get one."""
        (gradient,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient * gradients[0], None, None, None


def loss_of(
    student: Student, batch: Sequence[Example], weights: LossWeights, levels: int = 1
) -> Loss:
    """The loss on a batch's answers, summed over the first levels of a tree.

    p and q are over the reduced head, at temperature 1. Right padding needs no mask: attention is
    causal and padded positions are not learned.
    """
    device = student.head.device
    longest = max(len(example.token_ids) for example in batch)
    token_ids = torch.zeros(len(batch), longest, dtype=torch.long)
    learned = torch.zeros(len(batch), longest, dtype=torch.bool)
    features = None
    if student.shape.reads_features:
        features = torch.zeros(len(batch), longest, batch[0].hidden.shape[1])
    for row, example in enumerate(batch):
        token_ids[row, : len(example.token_ids)] = example.token_ids
        learned[row, example.answer_start - 1 : len(example.token_ids)] = True
        if features is not None:
            features[row, : len(example.token_ids)] = example.hidden.float()
    with torch.autocast(device.type, torch.bfloat16):
        read = None if features is None else features.to(device)
        states = student(token_ids.to(device), read, levels)
    teacher = torch.cat([example.hidden[example.answer_start - 1 :] for example in batch]).to(
        device
    )
    total = torch.zeros((), device=device)
    divergences, overlaps = [], []
    for level, state in enumerate(states):
        loss, divergence, overlap = Distill.apply(  # type: ignore[no-untyped-call]
            state[learned.to(device)], teacher, student.head, weights
        )
        total = total + LEVEL_WEIGHT**level * loss
        divergences.append(float(divergence))
        overlaps.append(float(overlap))
    return Loss(total, divergences, overlaps)
