"""What a target's chat template writes around a user turn, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CONTENT = "\x00"
"""Stands for the user's words in a rendered template."""


class TemplateError(Exception):
    """A chat template that is not there, or of no use; the message says why."""


@dataclass(frozen=True, slots=True)
class Template:
    """The fixed token ids around a user turn, and the tokens that end one."""

    opening: tuple[int, ...]
    """From the start to where the user's text begins, default system block included."""
    bare: tuple[int, ...]
    """The same without the system block."""
    middle: tuple[int, ...]
    """Between the user's text and the assistant's."""
    user_ends: frozenset[int]
    """What ends the user's text when the target writes it."""
    answer_ends: frozenset[int]

    @property
    def invents(self) -> bool:
        """Whether the target can be made to write a user turn: there is something to continue."""
        return bool(self.bare)

    def around(self, prompt: Sequence[int]) -> tuple[int, ...]:
        """What the target reads before it answers a prompt."""
        return (*self.opening, *prompt, *self.middle)

    @classmethod
    def of(cls, tokenizer: Any, ends: frozenset[int]) -> Template:
        """Read the template off a rendered marker.

        Args:
            tokenizer: the target's.
            ends: tokens that end a text.

        Raises:
            TemplateError: there is none, it fails, or it does not repeat what the user says.
        """
        if not tokenizer.chat_template:
            raise TemplateError("the target has no chat template")
        try:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": CONTENT}], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # templates are programs of the model's authors
            raise TemplateError(f"the target's chat template fails: {error}") from error
        if str(text).count(CONTENT) != 1:
            raise TemplateError("the target's chat template does not write the user's text once")
        before, after = str(text).split(CONTENT)
        opening = tokenizer.encode(before, add_special_tokens=False)
        middle = tokenizer.encode(after, add_special_tokens=False)
        special = frozenset(tokenizer.all_special_ids)
        bare = opening
        if special & frozenset(opening[:1]):
            # The user block starts at the last turn marker, which also opened the first block.
            bare = opening[len(opening) - 1 - opening[::-1].index(opening[0]) :]
        turn_end = frozenset(middle[:1])
        return cls(
            tuple(opening),
            tuple(bare),
            tuple(middle),
            ends | turn_end,
            ends | turn_end & special,
        )

    @classmethod
    def none(cls, tokenizer: Any, ends: frozenset[int]) -> Template:
        """What there is around a text that is continued as it is: the token that begins one."""
        start = beginning(tokenizer)
        return cls(start, (), (), ends, ends)


def beginning(tokenizer: Any) -> tuple[int, ...]:
    """The token that the tokenizer puts before every text, if it does."""
    first = tokenizer.encode("a")[:1]
    return tuple(first) if first and first == [tokenizer.bos_token_id] else ()
