"""Which decoder writes a target's texts."""

from __future__ import annotations

from pathlib import Path

import structlog
import torch

from sequoia.distillation.decode import Decoder
from sequoia.distillation.decode_llama import LlamaDecoder, is_plain_llama
from sequoia.distillation.decode_tree import TreeDecoder
from sequoia.distillation.target import Target
from sequoia.runtime.loading import load_model

log = structlog.get_logger(__name__)

PROBE_TOKENS = 8
PROBE_TOLERANCE = 0.1
"""Largest difference between a bfloat16 decoder's features and the model's, as a part of these.

SmolLM2-135M's is 0.015."""


def decoder_for(target: Target, folder: Path, rows: int, length: int) -> Decoder:
    """The quickest decoder that says what the target says, in bfloat16.

    Args:
        target: the model.
        folder: where its files are.
        rows: texts side by side.
        length: tokens of a text at most.
    """
    if is_plain_llama(target.config):
        lean = LlamaDecoder(target.config, target.weights, rows, length)
        deviation = feature_deviation(lean, target)
        if deviation <= PROBE_TOLERANCE:
            return lean
        log.warning("the lean decoder differs from the model", deviation=round(deviation, 3))
        del lean
    model = load_model(folder, torch.bfloat16, target.model.device)
    return TreeDecoder(model, rows, length)


def feature_deviation(decoder: Decoder, target: Target) -> float:
    """How far a decoder's features are from the model's on a few tokens, as a part of these.

    It is the median over the tokens: rounding alone throws some of them far off, special tokens most,
    but a decoder that computes something else is off at all of them.
    """
    count = min(PROBE_TOKENS, decoder.length)
    vocabulary = target.model.vocabulary_size
    token_ids = [vocabulary * (count + place) // (3 * count) for place in range(count)]
    expected = target.model.plain(token_ids).features.float()
    found = decoder.prefix_of(token_ids).features.float()
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).median())
