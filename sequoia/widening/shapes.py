"""Shapes of Llama models: those that can be asked for, and what a target becomes in them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sequoia.widening.failures import WidenError

EXPLICIT = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,6})(?::([1-9]\d{0,6}))?")
FFN_MULTIPLE = 256


@dataclass(frozen=True, slots=True)
class Shape:
    """What the sizes of all weights of a Llama follow from, the vocabulary apart."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        """Query heads that attend to one KV head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True, slots=True)
class Outline:
    """A shape before it is known how wide a head is: that is the target's matter.

    Attributes:
        kv_width: elements of a layer's keys, and of its values, for one token. It decides what a
            token takes in the cache, so the outline of a large model has that model's.
    """

    layers: int
    hidden: int
    ffn: int
    kv_width: int


OUTLINES = {
    # SmolLM2-1.7B (arXiv 2502.02737) has 24 layers, fewer than the built-in target.
    "1.7b": Outline(32, 2048, 8192, 2048),
    # LLaMA (arXiv 2302.13971, table 2); Llama-2-7B and -13B (arXiv 2307.09288) have the same shapes.
    "7b": Outline(32, 4096, 11008, 4096),
    "13b": Outline(40, 5120, 13824, 5120),
    "33b": Outline(60, 6656, 17920, 6656),
    # Llama-2-70B: 8 KV heads of 128 elements, each for 8 query heads.
    "70b": Outline(80, 8192, 28672, 1024),
}


def read_outline(text: str) -> Outline:
    """The outline that `--shape` names.

    Explicit ones are `LAYERSxHIDDEN` or `LAYERSxHIDDEN:FFN`, with as many KV heads as query heads. FFN
    is by default what Llama has for this hidden size: 8/3 of it, rounded up to a multiple of 256.

    Raises:
        WidenError: it names none.
    """
    if outline := OUTLINES.get(text):
        return outline
    match = EXPLICIT.fullmatch(text)
    if match is None:
        raise WidenError(
            f"{text!r} is neither {', '.join(OUTLINES)} nor LAYERSxHIDDEN or LAYERSxHIDDEN:FFN, "
            "such as 32x2048:8192",
            "--shape",
        )
    layers, hidden = int(match[1]), int(match[2])
    ffn = int(match[3]) if match[3] else -(-8 * hidden // (3 * FFN_MULTIPLE)) * FFN_MULTIPLE
    return Outline(layers, hidden, ffn, hidden)


def fit(outline: Outline, source: Shape) -> Shape:
    """The shape that a target of shape `source` gets within an outline.

    Heads keep their size, because rotary positions and the scale of attention depend on it. So
    where the large model has heads of 128 elements and the target of 64, there are twice as many,
    and keys and values are as wide as the large model's.

    Raises:
        WidenError: the outline is too small for the target in some direction.
    """
    for field in ("layers", "hidden", "ffn"):
        wide, small = getattr(outline, field), getattr(source, field)
        if wide < small:
            raise WidenError(f"{field} {wide} is smaller than the target's {small}", "--shape")
    for field, width in (("hidden", outline.hidden), ("KV", outline.kv_width)):
        if width % source.head_dim:
            raise WidenError(
                f"{field} size {width} is not a multiple of the target's head size "
                f"{source.head_dim}",
                "--shape",
            )
    heads, kv_heads = outline.hidden // source.head_dim, outline.kv_width // source.head_dim
    shape = Shape(outline.layers, outline.hidden, outline.ffn, heads, kv_heads, source.head_dim)
    if (needed := source.kv_heads * kv_copies(source, shape)) > kv_heads:
        raise WidenError(
            f"{heads} query heads over {kv_heads} KV heads hold less than the target's "
            f"{source.heads} over {source.kv_heads}, which need {needed} KV heads",
            "--shape",
        )
    return shape


def kv_copies(source: Shape, wide: Shape) -> int:
    """KV heads of the wide model that one of the target's becomes.

    More than one where the wide model has fewer query heads to a KV head than the target: then the
    query heads that shared a KV head are spread over several, which hold the same.
    """
    return -(-source.group // wide.group)
