"""Does a model really attend over trees? Asked of every model before it serves.

Not every decoder takes an arbitrary mask and arbitrary positions: recurrent ones cannot, and some
read positions off the mask. A wrong answer would be silent, so a small tree is compared with the
plain sequences that it stands for, as transformers runs them. Attention that looks different only
far from the start (chunks, windows that a model masks by itself) is refused by name.
"""

from __future__ import annotations

import numpy as np
import torch

from sequoia.runtime.cache import KVCache
from sequoia.runtime.catalogue import ModelError
from sequoia.runtime.forward import Segment, TreeModel
from sequoia.tree import Topology

KNOWN_LAYERS = frozenset({"full_attention", "sliding_attention", "global"})
PREFIX_LENGTH = 12
TREE = Topology((-1, 0, 0, 1, 2, 2))
# Largest difference of log probabilities, by the precision of the arithmetic. A model that ignores
# the mask is off by far more.
TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 0.5}


def check_tree_attention(model: TreeModel) -> None:
    """Compare a small tree with the sequences along its paths.

    Raises:
        ModelError: the model cannot run a tree, or says something else on it.
    """
    if unknown := model.layer_types - KNOWN_LAYERS:
        raise ModelError(
            f"this model cannot be run over a token tree: layers of {', '.join(sorted(unknown))}"
        )
    try:
        deviation = tree_deviation(model)
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


def tree_deviation(model: TreeModel) -> float:
    """Largest difference of log probabilities between a tree and the sequences in it."""
    generator = np.random.default_rng(7)
    tokens = generator.integers(0, model.embedding_size, PREFIX_LENGTH + TREE.node_count).tolist()
    prefix, nodes = tokens[:PREFIX_LENGTH], tuple(tokens[PREFIX_LENGTH:])
    cache = KVCache()
    model.prefill(cache, prefix)
    (over_tree,) = model.forward([Segment.tree(cache, TREE, nodes)])
    deviation = 0.0
    for node in range(TREE.node_count):
        path = [nodes[0], *(nodes[index] for index in TREE.path(node))]
        plain = model.plain([*prefix, *path]).logits[-1]
        difference = torch.log_softmax(over_tree.logits[node], -1) - torch.log_softmax(plain, -1)
        deviation = max(deviation, float(difference.abs().max()))
    return deviation
