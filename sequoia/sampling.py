"""From logits to distributions to draws, the same for draft and target.

Warping follows transformers' order: penalties, temperature, top-k, top-p, min-p. Drawing without
replacement is a Gumbel top-k: the k largest of log q + noise are an ordered draw of k tokens
without replacement (Kool et al., "Stochastic beams and where to find them", ICML 2019).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sequoia.randomness import gumbel
from sequoia.settings import SamplingSettings

SUPPORT_SIZE = 64
NUCLEUS_SIZE = 1024  # tokens among which a nucleus is looked for first
DRAW_BLOCK = 256  # numbers that are summed before one of them is looked for
SMALL_TEMPERATURE = 1e-3  # above, no logit of a model overflows
SMALLEST_TEMPERATURE = 1e-30  # in fp32; below, all but the favourite are gone anyway


def penalise(
    logits: Tensor, settings: SamplingSettings, prompt: Sequence[int], generated: Sequence[int]
) -> Tensor:
    """Apply the penalties to one row of logits `[vocabulary]`; returns a new row.

    The repetition penalty looks at prompt and generated tokens (Keskar et al., CTRL, section 4.1),
    presence and frequency at the generated ones alone. `generated` includes the node's own path.
    """
    logits = logits.clone()
    if settings.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*prompt, *generated}), device=logits.device)
        if seen.numel():
            values = logits[seen]
            factor = settings.repetition_penalty
            logits[seen] = torch.where(values > 0, values / factor, values * factor)
    if generated and (settings.presence_penalty or settings.frequency_penalty):
        tokens, counts = torch.tensor(generated, device=logits.device).unique(return_counts=True)
        logits[tokens] -= settings.presence_penalty + settings.frequency_penalty * counts
    return logits


def warp(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Log probabilities `[rows, vocabulary]` after temperature, top-k, top-p and min-p.

    Computed in fp32; tokens cut off have -inf. Not for temperature 0, which has no distribution.
    """
    log_probs = torch.log_softmax(_scaled(logits, settings), dim=-1)
    vocabulary = log_probs.shape[-1]
    if 0 < settings.top_k < vocabulary:
        kept = log_probs.topk(settings.top_k, dim=-1)
        log_probs = torch.full_like(log_probs, -math.inf).scatter(-1, kept.indices, kept.values)
        log_probs = torch.log_softmax(log_probs, dim=-1)
    if settings.top_p < 1.0:
        log_probs = torch.log_softmax(_nucleus(log_probs, settings.top_p), dim=-1)
    if settings.min_p > 0.0:
        floor = log_probs.amax(dim=-1, keepdim=True) + math.log(settings.min_p)
        log_probs = log_probs.masked_fill(log_probs < floor, -math.inf)
        log_probs = torch.log_softmax(log_probs, dim=-1)
    return log_probs


def warped_probs(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """The probabilities of `warp`, in fewer passes over the numbers where nothing is cut off."""
    if settings.cuts_off:
        return warp(logits, settings).exp()
    return torch.softmax(_scaled(logits, settings), dim=-1)


def _scaled(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Logits over the temperature, in fp32."""
    logits = logits.float()
    if settings.temperature < SMALL_TEMPERATURE:
        # Less the largest, the favourite stays at 0 where the others overflow.
        logits = logits - logits.amax(dim=-1, keepdim=True)
    return logits / max(settings.temperature, SMALLEST_TEMPERATURE)


def _nucleus(log_probs: Tensor, top_p: float) -> Tensor:
    """Log probabilities without the tokens to which more likely ones leave no room in `top_p`.

    Sorting a whole vocabulary takes longer than a pass of a small model. So the most likely tokens
    are sorted first, and all of them where these do not reach `top_p`. Of equal tokens those with
    smaller ids are the more likely.
    """
    vocabulary = log_probs.shape[-1]
    size = min(NUCLEUS_SIZE, vocabulary)
    ordered = log_probs.topk(size, dim=-1).values
    if size < vocabulary and float(ordered.exp().sum(-1).min()) < top_p:
        ordered = log_probs.sort(dim=-1, descending=True).values
    probs = ordered.exp()
    # A token stays while the mass of the more likely ones has not reached top_p yet.
    count = (probs.cumsum(dim=-1) - probs < top_p).sum(dim=-1, keepdim=True)
    count.clamp_(min=1)  # where top_p is 0 in fp32
    least = ordered.gather(-1, count - 1)
    kept = log_probs >= least
    if bool((kept.sum(dim=-1, keepdim=True) > count).any()):
        equal = log_probs == least
        room = count - (log_probs > least).sum(dim=-1, keepdim=True)
        kept &= ~equal | (equal.cumsum(dim=-1) <= room)
    return log_probs.masked_fill(~kept, -math.inf)


def sparsify(log_probs: Tensor, size: int) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    """The `size` most likely tokens of every row and their weights at the wire's precision.

    Args:
        log_probs: `[rows, vocabulary]`.
        size: most tokens to keep.

    Returns:
        Indices and weights, both `[rows, size]`, most likely first. Weights are relative to the
        most likely token; a weight of 0 is not part of the support. From here on they *are* q.
    """
    kept = log_probs.topk(min(size, log_probs.shape[-1]), dim=-1)
    weights = (kept.values - kept.values[:, :1]).exp()
    return kept.indices.cpu().numpy(), weights.cpu().numpy().astype(np.float16)


def draw_without_replacement(
    weights: NDArray[np.float16], count: int, uniform: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Indices of an ordered draw of at most `count` tokens with the given weights `[support]`.

    Fewer are returned when fewer have a weight. `uniform` holds one number per token.
    """
    with np.errstate(divide="ignore"):
        keys = np.log(weights.astype(np.float64)) + gumbel(uniform)
    order = np.argsort(-keys, kind="stable")[:count]
    return order[np.isfinite(keys[order])]


def draw_indices(weights: Tensor, uniform: NDArray[np.float64]) -> tuple[list[int], list[float]]:
    """One index a row, drawn from non-negative weights `[rows, vocabulary]` by inversion.

    Weights need not sum to one. Where all are zero, the answer is 0. `uniform` holds one number a row.

    Returns:
        The indices, and the sum of every row.
    """
    rows, vocabulary = weights.shape
    fits = vocabulary % DRAW_BLOCK == 0
    padded = weights if fits else F.pad(weights, (0, -vocabulary % DRAW_BLOCK))
    blocks = padded.unflatten(-1, (-1, DRAW_BLOCK))
    sums = blocks.sum(dim=-1).double()  # in fp64 from block to block
    ends = sums.cumsum(dim=-1)
    threshold = ends[:, -1:] * torch.from_numpy(uniform).to(ends)[:, None]
    block = torch.searchsorted(ends, threshold, right=True).clamp_(max=sums.shape[-1] - 1)
    left = threshold - (ends.gather(-1, block) - sums.gather(-1, block))
    within = blocks[torch.arange(rows, device=block.device), block[:, 0]]
    place = torch.searchsorted(within.double().cumsum(dim=-1), left, right=True)
    index = block * DRAW_BLOCK + place.clamp_(max=DRAW_BLOCK - 1)
    # Rounding at a block's end may meet a number that is zero.
    missed = padded.gather(-1, index) <= 0
    if bool(missed.any()):
        index = torch.where(missed, padded.argmax(dim=-1, keepdim=True), index)
    return index[:, 0].tolist(), ends[:, -1].tolist()


def favourites(scores: Tensor) -> list[int]:
    """The index of the largest number of every row; the first of equal ones."""
    if scores.device.type != "cpu":
        return [int(index) for index in scores.argmax(dim=-1).tolist()]
    # Ten times as fast as torch's on a CPU.
    return [int(index) for index in scores.float().numpy().argmax(axis=-1)]
