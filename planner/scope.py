"""What is worth measuring: how many nodes, levels and loads, by how long a pass takes."""

from __future__ import annotations

from dataclasses import dataclass

from sequoia.messages import WorkerInfo

SLOW_SECONDS = 0.5  # of a pass over a few tokens; from here on measurements are few
# Up to here what a step takes beside its passes counts; beside longer ones it is nothing, and to
# time so many steps would take minutes.
SHORT_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Scope:
    """Limits of the trees that may be planned, and which passes tell of them.

    Attributes:
        max_nodes: largest tree, root included.
        max_levels: most levels of a tree.
        batch_sizes: loads, rising.
        first_step: nodes of the second smallest pass that is measured.
        step: nodes of every further pass, over those of the one before.
        pass_nodes: most nodes of a pass, all sequences together; None for no bound.
        times_steps: whether what a step takes beside its passes is measured.
    """

    max_nodes: int
    max_levels: int
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16)
    first_step: int = 2
    step: int = 2
    pass_nodes: int | None = None
    times_steps: bool = True

    def node_counts(self, largest: int) -> tuple[int, ...]:
        """Sizes to measure, from 1 to `largest` itself."""
        counts, count = [1], self.first_step
        while count < largest:
            counts.append(count)
            count *= self.step
        return tuple(dict.fromkeys((*counts, largest)))


def largest_tree(max_nodes: int, pass_nodes: int | None, batch_size: int) -> int:
    """Most nodes of a tree when so many share a pass."""
    return max_nodes if pass_nodes is None else max(min(max_nodes, pass_nodes // batch_size), 1)


def scope_for(
    target: WorkerInfo,
    max_nodes: int | None,
    max_levels: int | None,
    max_batch_size: int | None,
) -> Scope:
    """The scope for a target; limits that the operator has not set follow from its placement.

    Where every pass streams the weights a large tree costs little more than a small one, and what
    counts is its number of tokens. The time of a pass hardly depends on small sizes, so few are measured:
    a plan must be there within minutes. Beside such a pass a call is nothing, and what waiting behind
    other passes adds to it would be taken for its cost.
    """
    is_streamed = target.placement == "offload"
    nodes = max_nodes or (1024 if is_streamed else 64)
    levels = max_levels or (24 if is_streamed else 8)
    # Memory is set aside for one tree of this size, so more of them share a pass when they are smaller.
    pass_nodes = target.node_limit if is_streamed else None
    if target.pass_seconds < SLOW_SECONDS:
        times_steps = target.pass_seconds < SHORT_SECONDS
        loads = _loads(max_batch_size or 16, 2)
        return Scope(nodes, levels, loads, pass_nodes=pass_nodes, times_steps=times_steps)
    loads = _loads(max_batch_size or 4, 4)
    return Scope(nodes, levels, loads, 16, 4, pass_nodes, times_steps=False)


def _loads(largest: int, step: int) -> tuple[int, ...]:
    """From one request to `largest`, each load `step` times the one before, and `largest` itself."""
    loads, load = [], 1
    while load < largest:
        loads.append(load)
        load *= step
    return (*loads, largest)
