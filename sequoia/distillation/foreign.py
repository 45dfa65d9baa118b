"""Foreign text for the target to read: files, cut into pieces of token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sequoia.distillation.failures import DistillError
from sequoia.distillation.template import beginning

BLOCK = 4096
"""Characters that are tokenized at a time."""
MIN_PIECE = 2


def require_text(paths: Sequence[Path]) -> None:
    """Check that files hold text.

    Raises:
        DistillError: one of them cannot be read, is not UTF-8, or holds nothing but white space.
    """
    for path in paths:
        try:
            if not any(block.strip() for block in _blocks(path)):
                raise DistillError(f"{path}: holds no text", "--text")
            for _ in _blocks(path):
                pass
        except UnicodeDecodeError as error:
            raise DistillError(f"{path}: is not UTF-8: {error.reason}", "--text") from None
        except OSError as error:
            why = error.strerror or error
            raise DistillError(f"{path}: cannot be read: {why}", "--text") from None


def pieces(paths: Sequence[Path], tokenizer: Any, length: int) -> Iterator[list[int]]:
    """The texts end to end, in pieces of `length` tokens; each begins as the tokenizer begins a text."""
    start = list(beginning(tokenizer))
    piece = list(start)
    for path in paths:
        for block in _blocks(path):
            for token_id in tokenizer.encode(block, add_special_tokens=False, verbose=False):
                piece.append(token_id)
                if len(piece) >= length:
                    yield piece
                    piece = list(start)
    if len(piece) >= len(start) + MIN_PIECE:
        yield piece


def _blocks(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        while block := file.read(BLOCK):
            yield block
