"""How far a draft agrees with its target, on the target's own continuations; and what it costs."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig

from sequoia.distillation.conversation import Conversation, Template
from sequoia.distillation.corpus import write
from sequoia.distillation.decode import Decoder
from sequoia.distillation.loss import Example
from sequoia.distillation.student import EMBEDDING, Student

RANKS = 32
"""Children of a node that an acceptance vector covers."""
SUPPORT = 64
"""Tokens that the draft's distribution keeps, as on the wire."""
TOPS = (1, 2, 4, 8)
CHUNK = 256


@dataclass(frozen=True)
class Agreement:
    """Agreement at one temperature, as means over `positions` positions."""

    temperature: float
    positions: int
    overlap: float
    """sum(min(p, q)) over the whole vocabulary; at temperature 0, of the distributions at 1."""
    top_match: dict[int, float]
    """The probability that the target's argmax is among the draft's first k tokens, by k."""
    vector: list[float]
    """0, then the probability that child k is the accepted one (k = 1..32), then that none is."""
    coverage: float
    """The target's mass on the tokens that the draft's head can say."""


def continuations(
    decoder: Decoder,
    template: Template,
    prompts: Sequence[list[int]],
    temperatures: Sequence[float],
    *,
    new_tokens: int,
    seed: int = 0,
) -> dict[float, list[Example]]:
    """The target's answer to every prompt at every temperature, `new_tokens` long at most.

    ValueError for a prompt that leaves no room for its answer in the decoder's cache.
    """
    stream = []
    for temperature in temperatures:
        for prompt in prompts:
            size = len(template.opening) + len(prompt) + len(template.middle) + new_tokens
            if size > decoder.cache.shape[-2]:
                raise ValueError(f"a prompt of {len(prompt)} tokens needs a cache of {size}")
            stream.append(Conversation(template.opening, list(prompt), 0.0, temperature, size - 1))
    found: dict[float, list[Example]] = {temperature: [] for temperature in temperatures}
    for row in write(decoder, template, iter(stream), torch.Generator().manual_seed(seed)):
        tokens = torch.tensor(row.token_ids, dtype=torch.int32)
        example = Example(tokens, torch.stack(row.hidden), row.answer_start)
        found[row.answer_temperature].append(example)
    return found


@torch.no_grad()
def agreement(
    student: Student, head: Tensor, examples: Sequence[Example], temperature: float, seed: int = 0
) -> Agreement:
    """Compare the student with the target on the answers of `examples`.

    `head` is the target's own, fp32 [vocab, hidden]. Positions are teacher-forced.
    """
    generator = torch.Generator().manual_seed(seed)
    scale = 1 / (temperature or 1.0)
    overlap = coverage = torch.zeros(())
    vector, top = torch.zeros(RANKS + 2), torch.zeros(len(TOPS))
    positions = 0
    for example in examples:
        answer = slice(example.answer_start - 1, None)
        states = torch.split(student(example.token_ids.long()[None])[0, answer], CHUNK)
        for learned, taught in zip(states, torch.split(example.hidden[answer], CHUNK), strict=True):
            scores = F.linear(learned.float(), head[student.head_token_ids]) * scale
            p = torch.softmax(F.linear(taught.float(), head) * scale, -1)  # [positions, vocab]
            q = torch.softmax(scores, -1)  # [positions, head]
            covered = p[:, student.head_token_ids]
            overlap = overlap + torch.minimum(covered, q).sum()
            coverage = coverage + covered.sum()
            best = student.head_token_ids[scores.topk(RANKS).indices]
            match = (best == p.argmax(-1, keepdim=True)).float()
            top += torch.stack([match[:, :k].sum() for k in TOPS])
            if temperature:
                vector[1:] += accepted_rank(covered, q, generator).sum(0)
            else:
                vector[1:-1] += match.sum(0)
                vector[-1] += len(match) - match.sum()
            positions += len(learned)
    return Agreement(
        temperature,
        positions,
        float(overlap) / positions,
        {k: float(x) / positions for k, x in zip(TOPS, top, strict=True)},
        (vector / positions).tolist(),
        float(coverage) / positions,
    )


def accepted_rank(p: Tensor, q: Tensor, generator: torch.Generator) -> Tensor:
    """The probability that child k of a node is the accepted one, for one draw of its children.

    Children are drawn in order from q without replacement; child x is accepted with probability
    min(1, p(x) / q(x)), and a rejection leaves p <- norm(max(p - q, 0)), q <- q without x.

    `p`, `q` are [positions, tokens]; p may miss mass outside q's tokens. Returns
    [positions, RANKS + 1], none accepted last.
    """
    q, index = q.topk(min(SUPPORT, q.shape[-1]))
    q, p = q / q.sum(-1, keepdim=True), p.gather(-1, index)
    tail = (1 - p.sum(-1)).clamp_min(0)
    noise = torch.empty_like(q).exponential_(generator=generator)
    order = (q / noise).argsort(-1, descending=True)  # an exponential race
    p, q = p.gather(-1, order), q.gather(-1, order)
    alive, ranks = torch.ones(len(p)), []
    for k in range(min(RANKS, q.shape[-1])):
        chance = (p[:, k] / q[:, k].clamp_min(1e-30)).clamp_max(1) * (q[:, k] > 0)
        ranks.append(alive * chance)
        alive = alive * (1 - chance)
        p = (p - q).clamp_min(0)
        mass = (p.sum(-1) + tail).clamp_min(1e-30)
        p, tail = p / mass[:, None], tail / mass
        q = q.clone()
        q[:, k] = 0
        q = q / q.sum(-1, keepdim=True).clamp_min(1e-30)
    ranks += [torch.zeros(len(p))] * (RANKS - len(ranks))
    return torch.stack([*ranks, alive], -1)


def level_over_token(
    student: Student, config: LlamaConfig, target: dict[str, Tensor], prefix: int = 256
) -> tuple[float, float]:
    """Seconds of one draft level of 8 nodes and of one target token after `prefix` tokens.

    Both in the dtype of `target` through the same decoder; the target's token is timed alone and
    padded to 8 rows, and the quicker of the two counts.
    """
    dtype = target[EMBEDDING].dtype
    borrowed = {EMBEDDING: target[EMBEDDING]}
    borrowed |= {name: tensor.to(dtype) for name, tensor in student.learned().items()}
    borrowed["lm_head.weight"] = student.head.to(dtype)
    draft = _seconds(Decoder(student.config, borrowed, 8, prefix))
    whole = min(_seconds(Decoder(config, target, rows, prefix)) for rows in (1, 8))
    return draft, whole


def _seconds(decoder: Decoder) -> float:
    rows = len(decoder.index)
    feed = torch.zeros(rows, dtype=torch.long), torch.full((rows,), decoder.cache.shape[-2] - 1)
    return median_seconds(lambda: decoder.logits(decoder.step(*feed)))


def median_seconds(work: Callable[[], object], repeats: int = 20) -> float:
    """The median time of `work`, after three runs to warm up."""
    times = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times[3:])[repeats // 2]
