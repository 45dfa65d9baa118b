"""Does a model really attend over trees? Asked of every model before it serves.

Not every decoder takes an arbitrary mask and arbitrary positions: recurrent ones cannot, and some
read positions off the mask. A wrong answer would be silent, so a small tree is compared with the
plain sequences that it stands for, as transformers runs them. Attention that looks different only
far from the start (chunks, windows that a model masks by itself) is refused by name.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sequoia.runtime.cache import KVCache
from sequoia.runtime.catalogue import ModelError
from sequoia.runtime.forward import TreeModel
from sequoia.runtime.segment import Segment
from sequoia.tree import Topology

KNOWN_LAYERS = frozenset({"full_attention", "sliding_attention", "global"})
PREFIX_LENGTH = 140  # every part of an engine must come into play, those for longer texts too
LONG_PASS_SECONDS = 2.0
TREE = Topology((-1, 0, 0, 1, 2, 2))
# Mean difference of log probabilities at the worst node, by the precision of the arithmetic. The
# built-in target has 1e-5 and 0.1; where the mask is ignored it has 1.6.
TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 0.4}


def check_tree_attention(model: TreeModel, prepare: Callable[[], None] = lambda: None) -> float:
    """Compare a small tree with the sequences along its paths.

    Args:
        model: as transformers loaded it.
        prepare: brings the model into the form that it serves in. Called between the sequences and the
            tree, so that this form is checked against transformers'.

    Returns:
        Seconds that the pass over the tree took.

    Raises:
        ModelError: the model cannot run a tree, or says something else on it.
    """
    if unknown := model.layer_types - KNOWN_LAYERS:
        raise ModelError(
            f"this model cannot be run over a token tree: layers of {', '.join(sorted(unknown))}"
        )
    try:
        expected = _along_paths(model)
        prepare()
        deviation, seconds = _tree_deviation(model, expected)
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError, IndexError) as error:
        raise ModelError(
            f"this model cannot be run over a token tree: {type(error).__name__}: {error}"
        ) from error
    limit = TOLERANCE[model.dtype]
    if not deviation <= limit:
        raise ModelError(
            f"this model does not follow a tree mask: log probabilities differ by {deviation:.3g} "
            f"from those of plain sequences (limit {limit:g})"
        )
    return seconds


def _tokens(model: TreeModel) -> tuple[list[int], tuple[int, ...]]:
    """A prefix, and the tokens of the tree behind it."""
    generator = np.random.default_rng(7)
    prefix = min(PREFIX_LENGTH, model.context_length - TREE.node_count)
    tokens = generator.integers(0, model.embedding_size, prefix + TREE.node_count).tolist()
    return tokens[:prefix], tuple(tokens[prefix:])


def _along_paths(model: TreeModel) -> Tensor:
    """Log probabilities at every node, `[nodes, output rows]`, each from a sequence of its own."""
    prefix, nodes = _tokens(model)
    paths = [[nodes[0], *(nodes[i] for i in TREE.path(n))] for n in range(TREE.node_count)]
    logits = model.plain_ends([[*prefix, *path] for path in paths])
    return torch.log_softmax(logits, -1)


def _tree_deviation(model: TreeModel, expected: Tensor) -> tuple[float, float]:
    """Difference of log probabilities between the tree and what is expected, at the worst node.

    And the seconds of the pass over the tree: of a short one the less of two, since the machine may have
    been busy for a moment, and a model that is taken for slow is planned for otherwise.
    """
    prefix, nodes = _tokens(model)
    cache = KVCache()
    model.prefill(cache, prefix)
    output, seconds = _timed_tree(model, cache, nodes)
    if seconds < LONG_PASS_SECONDS:
        cache.keep(len(prefix), [])
        seconds = min(seconds, _timed_tree(model, cache, nodes)[1])
    difference = (torch.log_softmax(output, -1) - expected.cpu()).abs().mean(-1)
    return float(difference.max()), seconds


def _timed_tree(model: TreeModel, cache: KVCache, nodes: tuple[int, ...]) -> tuple[Tensor, float]:
    """Logits of a pass over the tree, `[nodes, output rows]`, and its seconds."""
    started = time.perf_counter()
    (over_tree,) = model.forward([Segment.tree(cache, TREE, nodes)])
    logits = over_tree.logits.cpu()  # when they are here the pass is over
    return logits, time.perf_counter() - started
