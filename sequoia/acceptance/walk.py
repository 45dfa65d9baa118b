"""How many steps a tree takes over texts that are known: at temperature 0, exactly the service's.

The target's word is known in advance there, it is the text; so only the draft runs. Trees are grown
by the draft worker itself, through the messages that a coordinator would send.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sequoia.acceptance.continuations import Continuation
from sequoia.messages import Features, GrownTree, GrowTree, Prefill, SessionSettings, StepHeader
from sequoia.settings import DrawRule, SamplingSettings
from sequoia.tree import Topology, Tree

GREEDY = SamplingSettings(temperature=0.0)


class TreeGrower(Protocol):
    """What is needed of a draft worker."""

    async def prefill(self, request: Prefill) -> object:
        """Open a session."""

    async def step(self, request: GrowTree) -> GrownTree:
        """Grow a tree."""

    def close_session(self, session_id: str) -> None:
        """Free a session."""


@dataclass(frozen=True, slots=True)
class Walker:
    """Takes a draft worker over texts.

    Attributes:
        grower: the draft worker.
        vocabulary_size: tokens that the target knows.
        context_length: the draft's; near its end trees are cut.
        batch_size: texts that are walked side by side.
        features_of: what the target's output layer read at every token of a text, `[tokens,
            hidden]`, for a draft that reads it.
    """

    grower: TreeGrower
    vocabulary_size: int
    context_length: int
    batch_size: int = 8
    features_of: Callable[[Continuation], Features] | None = None

    async def tokens_per_step(self, texts: Sequence[Continuation], topology: Topology) -> float:
        """Tokens that the target wrote at temperature 0, over the steps with this tree for them."""
        places = asyncio.Semaphore(self.batch_size)

        async def walk(text: Continuation) -> int:
            async with places:
                return await self._count_steps(text, topology)

        steps = sum(await asyncio.gather(*(walk(text) for text in texts)))
        return sum(len(text.new_token_ids) for text in texts) / steps

    async def _count_steps(self, text: Continuation, topology: Topology) -> int:
        name, tokens, length = f"text-{text.index}", text.token_ids, text.prompt_length
        features = self.features_of(text) if self.features_of else None
        settings = SessionSettings(GREEDY, DrawRule.GREEDY, 0, length, self.vocabulary_size)
        before = None if features is None else features[: length - 1]
        await self.grower.prefill(Prefill(name, tokens[:length], 0, settings, before))
        steps = 0
        accepted: tuple[int, ...] = ()
        while length < len(tokens):
            header = StepHeader(name, steps, length, accepted)
            shape = topology.truncated(self.context_length - length + 1)
            # Those of the positions before the accepted nodes and before the root.
            rows = slice(max(length - len(accepted) - 2, 0), length - 1)
            read = None if features is None else features[rows]
            grown = await self.grower.step(GrowTree(header, tokens[length - 1], shape, read))
            accepted = _accepted(grown.tree, tokens[length:])
            length += len(accepted) + 1
            steps += 1
        self.grower.close_session(name)
        return steps


def _accepted(tree: Tree, following: Sequence[int]) -> tuple[int, ...]:
    """The nodes from just below the root on that hold the tokens that follow it."""
    nodes: list[int] = []
    for token_id in following:
        child = tree.child_with_token(nodes[-1] if nodes else 0, token_id)
        if child is None:
            break
        nodes.append(child)
    return tuple(nodes)
