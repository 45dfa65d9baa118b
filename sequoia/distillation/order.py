"""What a run is to make, kept in its work folder so that a resumed run makes the same."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sequoia.distillation.budget import Budget
from sequoia.distillation.failures import DistillError, explained

if TYPE_CHECKING:
    from sequoia.distillation.student import Shape
    from sequoia.distillation.target import Target

HEAD_TOKENS = 12288
MAY_SHRINK = frozenset({"rows", "batch_tokens"})
"""What memory decides may be lower in a run that goes on."""


@dataclass(frozen=True, slots=True)
class Order:
    """A draft to make.

    Attributes:
        target: reference of the target.
        layers: a count, or a list of layers with a comma.
        width: of a layer's feed-forward part; None for the target's.
        vocab_size: token ids that the draft can say; None for the default.
        reads_features: whether the draft reads the target's features.
        beginning: reference of a draft to begin with; None for the target's layers as they are.
        prompts: files of prompts for the target to answer.
        texts: files for the target to read.
        unseen: file of prompts to judge by.
        rows: conversations written side by side.
        batch_tokens: tokens of a batch in learning.
        learning_rate: the highest.
        seed: of everything that is drawn.
    """

    target: str
    layers: str
    width: int | None
    vocab_size: int | None
    reads_features: bool
    beginning: str | None
    prompts: tuple[Path, ...]
    texts: tuple[Path, ...]
    unseen: Path | None
    rows: int
    batch_tokens: int
    learning_rate: float
    seed: int

    def shape_for(self, target: Target) -> Shape:
        """The shape of the draft.

        Raises:
            DistillError: the target has no such layers.
        """
        from sequoia.distillation.student import Shape  # torch takes seconds to import

        layers, count = read_layers(self.layers), target.layer_count
        if isinstance(layers, int):
            if layers > count:
                raise DistillError(f"{layers} is more than the target's {count}", "--layers")
            return Shape.evenly(layers, count, self.width, self.reads_features)
        if layers[-1] >= count:
            raise DistillError(
                f"the target has no layer {layers[-1]}: they are 0 to {count - 1}", "--layers"
            )
        return Shape(layers, self.width, self.reads_features)

    def head_size_for(self, target: Target, always: frozenset[int]) -> int:
        """How many token ids the draft can say.

        Args:
            target: the model.
            always: ids that must be among them.

        Raises:
            DistillError: the target has fewer, or those in `always` are more.
        """
        most, least = target.model.vocabulary_size, len(always) + 1
        if self.vocab_size is None:
            return max(min(HEAD_TOKENS, most), least)
        if not least <= self.vocab_size <= most:
            raise DistillError(
                f"{self.vocab_size} is outside {least} (the special tokens and one more) to {most} "
                "(the target's)",
                "--vocab-size",
            )
        return self.vocab_size

    def as_json(self) -> dict[str, Any]:
        """By option; files by what is in them, so that they may be moved but not changed."""
        return {
            "target": self.target,
            "layers": self.layers,
            "width": self.width,
            "vocab_size": self.vocab_size,
            "no_features": not self.reads_features,
            "from": self.beginning,
            "prompts": [_digest(path) for path in self.prompts],
            "text": [_digest(path) for path in self.texts],
            "unseen": None if self.unseen is None else _digest(self.unseen),
            "rows": self.rows,
            "batch_tokens": self.batch_tokens,
            "learning_rate": self.learning_rate,
            "seed": self.seed,
        }


def read_layers(text: str) -> int | tuple[int, ...]:
    """A count of layers, or where there is a comma the layers themselves.

    Raises:
        DistillError: it is neither.
    """
    hint = "a count such as 2, or a rising list with a comma such as 0,29"
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise DistillError(f"{text!r} is not {hint}", "--layers") from None
    if not numbers or numbers != sorted(set(numbers)) or numbers[0] < 0:
        raise DistillError(f"{text!r} is not {hint}", "--layers")
    if "," in text:
        return tuple(numbers)
    if numbers[0] < 1:
        raise DistillError("a draft needs a layer", "--layers")
    return numbers[0]


def keep_order(path: Path, order: Order, budget: Budget) -> None:
    """Write down what a run is to make."""
    fields = {"order": order.as_json(), "budget": dataclasses.asdict(budget)}
    with explained(path.parent, None):
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        partial.replace(path)


def check_order(path: Path, order: Order, budget: Budget | None) -> Budget:
    """Check that a run goes on as it was begun; returns its budget.

    Args:
        path: what `keep_order` wrote.
        order: what is to be made now.
        budget: what may be spent now, all runs together; None for what was to be spent before.

    Raises:
        DistillError: an option differs, or the file cannot be read.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        earlier, spent = dict(fields["order"]), Budget(**fields["budget"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DistillError(f"{path}: cannot be read: {error}") from None
    for name, now in order.as_json().items():
        before = earlier.get(name)
        if now == before or (name in MAY_SHRINK and now < before):
            continue
        option = "--" + name.replace("_", "-")
        if name in {"prompts", "text", "unseen"}:
            raise DistillError("not the files of the run that is resumed", option)
        raise DistillError(
            f"{_shown(now)} now, {_shown(before)} in the run that is resumed", option
        )
    return spent if budget is None else budget.following(spent)


def _shown(value: object) -> str:
    return "not given" if value is None else str(value)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
