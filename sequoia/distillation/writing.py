"""The first stage of a run: the corpus."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from sequoia.distillation.budget import Budget
from sequoia.distillation.corpus import Report, read_corpus, write_corpus
from sequoia.distillation.decode import Decoder
from sequoia.distillation.decoders import decoder_for
from sequoia.distillation.display import Display, Moment, Rate
from sequoia.distillation.extent import Extent, Limit
from sequoia.distillation.failures import explained, require_room
from sequoia.distillation.foreign import pieces
from sequoia.distillation.order import Order
from sequoia.distillation.place import Place
from sequoia.distillation.preparation import Ready
from sequoia.distillation.shelf import Shelf
from sequoia.distillation.stopping import stops_between_steps

PASSES_TIMED = 3
FEATURE_BYTES = 2


def make_corpus(
    ready: Ready, order: Order, budget: Budget, place: Place, display: Display, more_bytes: int
) -> None:
    """Let the target read and write until the budget's part for it is spent.

    Args:
        ready: the target.
        order: what is to be made.
        budget: what may be spent.
        place: where the shards go.
        display: shown the progress.
        more_bytes: that the later stages write.

    Raises:
        DistillError: no room, or no memory.
        KeyboardInterrupt: the user wants to stop; what was written is kept.
    """
    limit = budget.writing
    with explained(place.work, "--rows"), stops_between_steps() as check:
        shelf = Shelf(place.corpus)
        if limit.reached(shelf.extent()):
            return
        show = _reporter(display, limit, check)
        if order.texts:
            text = pieces(order.texts, ready.target.tokenizer, ready.length)
            until = budget.reading if ready.writes else limit
            _require_room(ready, place, until.tokens - shelf.extent().tokens, more_bytes)
            read_corpus(ready.target, text, shelf, until, report=show)
        if not ready.writes:
            return
        _write(ready, order, shelf, limit, place, show, more_bytes)


def _write(
    ready: Ready,
    order: Order,
    shelf: Shelf,
    limit: Limit,
    place: Place,
    show: Report,
    more_bytes: int,
) -> None:
    left = limit.tokens - shelf.extent().tokens
    rows = _rows(order.rows, left, ready.length)
    decoder = decoder_for(ready.target, ready.folder, rows, ready.length)
    seconds = limit.seconds - shelf.extent().seconds
    left = min(left, seconds * tokens_a_second(decoder))
    _require_room(ready, place, left, more_bytes)
    write_corpus(
        decoder,
        ready.template,
        ready.prompts,
        shelf,
        limit,
        rows=_rows(rows, left, ready.length),
        seed=order.seed,
        report=show,
    )


def tokens_a_second(decoder: Decoder) -> float:
    """How fast a decoder writes, by a few passes; its rows are scratch for them."""
    nothing = torch.zeros(decoder.rows, dtype=torch.long)
    began = time.perf_counter()
    for _ in range(PASSES_TIMED):
        decoder.logits(decoder.step(nothing, nothing)).argmax(-1).tolist()
    return PASSES_TIMED * decoder.rows / (time.perf_counter() - began)


def _rows(most: int, tokens: float, length: int) -> int:
    """Conversations side by side: so many that each gets to its answer within `tokens`."""
    each = max(1, length // 2)
    return max(1, int(min(most, tokens // each)))


def _require_room(ready: Ready, place: Place, tokens: float, more_bytes: int) -> None:
    if tokens == float("inf"):  # foreign text against the clock: no telling
        tokens = 0
    hidden = ready.target.model.feature_size
    size = int(max(tokens, 0) * hidden * FEATURE_BYTES) + more_bytes
    require_room(place.work, size, "corpus and checkpoints")


def _reporter(display: Display, limit: Limit, check: Callable[[], None]) -> Report:
    rate = Rate()

    def report(extent: Extent) -> None:
        display.show(Moment("writing", limit.part(extent), rate(extent.tokens)))
        check()

    return report
