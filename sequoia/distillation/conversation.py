"""A conversation of the corpus: what the template forces, what is drawn, where it ends."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor
from transformers import PreTrainedTokenizerBase

ANSWER_TEMPERATURES = (0.0, 1.0, 0.0, 0.6, 0.0, 0.3, 0.8, 1.0, 0.0, 0.6)
PROMPT_TEMPERATURES = (0.0, 0.6, 1.0, 0.3, 0.8, 1.0, 0.6, 0.8)
USER_TEMPERATURES = (1.0, 0.8, 1.0)
PROMPT_EVERY = 6
"""One conversation in so many answers a given prompt; the others are wholly the target's."""
MAX_USER_TOKENS = 96
CONTENT = "\x00"


@dataclass(frozen=True)
class Template:
    """The fixed token ids around a user turn, as the chat template writes them."""

    opening: list[int]
    """From the start to where the user's text begins, default system block included."""
    bare: list[int]
    """The same without the system block."""
    middle: list[int]
    """Between the user's text and the assistant's, the end-of-turn token first."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Template":
        """Read the template off a rendered marker; ValueError where that fails."""
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": CONTENT}], tokenize=False, add_generation_prompt=True
        )
        if not isinstance(text, str):
            raise TypeError(f"the chat template gave {type(text).__name__}, not text")
        if text.count(CONTENT) != 1:
            raise ValueError("the chat template does not write the user's text exactly once")
        before, after = text.split(CONTENT)
        # The user block starts at the last turn marker: whatever the template opens a turn with.
        marker = tokenizer.encode(before, add_special_tokens=False)
        bare = marker[len(marker) - 1 - marker[::-1].index(marker[0]) :]
        return cls(marker, bare, tokenizer.encode(after, add_special_tokens=False))


@dataclass
class Conversation:
    """One row's work: what is forced, what is drawn, and what has come of it."""

    opening: list[int]
    prompt: list[int] | None
    user_temperature: float
    answer_temperature: float
    limit: int
    """Tokens at which the conversation is cut."""
    token_ids: list[int] = field(default_factory=list)
    """Fed so far; the next is `upcoming`."""
    answer_start: int = 0
    """Number of tokens fed when the assistant's first token was drawn; 0 while the user speaks."""
    hidden: list[Tensor] = field(default_factory=list)
    forced: list[int] = field(default_factory=list)
    upcoming: int = 0

    @property
    def temperature(self) -> float:
        """The temperature of the next draw."""
        return self.user_temperature if self.prompt is None else self.answer_temperature

    def advance(self, drawn: int, middle: list[int]) -> bool:
        """Choose the next token from what was drawn or is forced; False at the end."""
        if len(self.token_ids) >= self.limit:
            return False
        if self.forced:
            self.upcoming = self.forced.pop(0)
            return True
        if not self.answer_start and self.prompt is None:
            user_tokens = len(self.token_ids) - len(self.opening)
            if drawn == middle[0] or user_tokens >= MAX_USER_TOKENS:
                if user_tokens < 2:  # an empty user turn teaches nothing
                    return False
                self.prompt = []
                self.forced = middle[1:]
                self.upcoming = middle[0]
                return True
        elif not self.answer_start:
            self.answer_start = len(self.token_ids)
        if self.answer_start and drawn == middle[0]:
            return False
        self.upcoming = drawn
        return True


def conversations(
    template: Template, prompts: list[list[int]], length: int, start: int, seed: int
) -> Iterator[Conversation]:
    """The endless list of conversations to write, from number `start` on; a function of `seed`."""
    number = start
    while True:
        chance = random.Random(f"{seed}:{number}")  # noqa: S311 - no secret hangs on it
        limit = chance.randint(length // 2, length)
        turn, rest = divmod(number, PROMPT_EVERY)
        if rest == 0 and prompts:
            # The first pass is greedy, each later one draws: the same text is never written twice.
            temperature = PROMPT_TEMPERATURES[
                0 if turn < len(prompts) else 1 + (turn // len(prompts) - 1) % 7
            ]
            prompt = prompts[turn % len(prompts)][: length // 2]
            yield Conversation(template.opening, prompt, 1.0, temperature, limit)
        else:
            opening = template.bare if chance.random() < 0.1 else template.opening
            yield Conversation(
                opening,
                None,
                chance.choice(USER_TEMPERATURES),
                chance.choice(ANSWER_TEMPERATURES),
                limit,
            )
        number += 1
