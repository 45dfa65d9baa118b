"""A conversation of the corpus: what the template forces, what is drawn, where it ends."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from sequoia.distillation.template import Template

ANSWER_TEMPERATURES = (0.0, 1.0, 0.0, 0.6, 0.0, 0.3, 0.8, 1.0, 0.0, 0.6)
PROMPT_TEMPERATURES = (0.0, 0.6, 1.0, 0.3, 0.8, 1.0, 0.6, 0.8)
USER_TEMPERATURES = (1.0, 0.8, 1.0)
PROMPT_EVERY = 6
"""One conversation in so many answers a given prompt; the others are wholly the target's."""
MAX_USER_TOKENS = 96
MIN_USER_TOKENS = 2
"""An empty user turn teaches nothing."""


@dataclass(slots=True)
class Conversation:
    """One row's work: what is forced, what is drawn, and what has come of it."""

    opening: tuple[int, ...]
    prompt: tuple[int, ...] | None
    """The user's words; None where the target invents them."""
    user_temperature: float
    answer_temperature: float
    limit: int
    """Tokens at which the conversation is cut."""
    token_ids: list[int] = field(default_factory=list)
    """Fed so far; the next is `upcoming`."""
    answer_start: int = 0
    """Number of tokens fed when the assistant's first token was drawn; 0 before."""
    features: list[Tensor] = field(default_factory=list)
    """The target's, one a token fed.  [hidden]"""
    forced: deque[int] = field(default_factory=deque)
    user_speaks: bool = field(init=False)
    upcoming: int = 0

    def __post_init__(self) -> None:
        self.user_speaks = self.prompt is None

    @property
    def temperature(self) -> float:
        """The temperature of the next draw."""
        return self.user_temperature if self.user_speaks else self.answer_temperature

    @property
    def new_tokens(self) -> int:
        """Tokens fed that other conversations do not begin with."""
        return len(self.token_ids) - len(self.opening)

    def advance(self, drawn: int, template: Template) -> bool:
        """Choose the next token from what was drawn or is forced; False at the end."""
        if len(self.token_ids) >= self.limit:
            return False
        following = self._following(drawn, template)
        if following is not None:
            self.upcoming = following
        return following is not None

    def _following(self, drawn: int, template: Template) -> int | None:
        if self.forced:
            return self.forced.popleft()
        if self.user_speaks:
            if drawn not in template.user_ends and self.new_tokens < MAX_USER_TOKENS:
                return drawn
            if self.new_tokens < MIN_USER_TOKENS:
                return None
            self.user_speaks = False
            self.forced.extend(template.middle)
            if self.forced:
                return self.forced.popleft()
        self.answer_start = self.answer_start or len(self.token_ids)
        return None if drawn in template.answer_ends else drawn


def conversations(
    template: Template, prompts: Sequence[tuple[int, ...]], length: int, start: int, seed: int
) -> Iterator[Conversation]:
    """The endless list of conversations to write, from number `start` on; a function of `seed`.

    Args:
        template: what stands around a user turn.
        prompts: token ids of the given ones; may be empty where the target can invent its own.
        length: tokens of a conversation at most.
        start: number of the first conversation.
        seed: of everything that is left to chance.
    """
    every = PROMPT_EVERY if template.invents else 1
    fixed = len(template.opening) + len(template.middle)
    number = start
    while prompts or template.invents:
        chance = random.Random(f"{seed}:{number}")  # noqa: S311 - no secret hangs on it
        limit = fixed + chance.randint((length - fixed) // 2, length - fixed)
        turn, rest = divmod(number, every)
        if rest == 0 and prompts:
            temperature = _prompt_temperature(turn // len(prompts))
            prompt = prompts[turn % len(prompts)][: (length - fixed) // 2]
            # So that there is an answer.
            limit = max(limit, fixed + len(prompt) + (length - fixed) // 8)
            yield Conversation(template.opening, prompt, 1.0, temperature, limit)
        else:
            opening = template.bare if chance.random() < 0.1 else template.opening
            user = chance.choice(USER_TEMPERATURES)
            yield Conversation(opening, None, user, chance.choice(ANSWER_TEMPERATURES), limit)
        number += 1


def _prompt_temperature(time: int) -> float:
    """How warm the answer is when a prompt is given for the n-th time, counted from 0.

    The first answer is greedy, each later one is drawn: no text is written twice.
    """
    if time == 0:
        return PROMPT_TEMPERATURES[0]
    return PROMPT_TEMPERATURES[1 + (time - 1) % (len(PROMPT_TEMPERATURES) - 1)]
