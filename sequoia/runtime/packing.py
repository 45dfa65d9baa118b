"""Weights in the layout that the CPU's matrix library computes in, converted once and not at every pass.

Passes over few tokens are bound by reading weights; with the plain layout the library reaches a
third of the memory's bandwidth. The same products, in another order of summation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# The layout is chosen for passes over about so many tokens: a tree.
TYPICAL_TOKENS = 8


class PackedLinear(nn.Module):
    """A linear layer that holds its weight packed."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = linear.bias
        weight = linear.weight.detach()
        self.packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_TOKENS)

    def forward(self, values: Tensor) -> Tensor:
        """Values `[..., in]` to `[..., out]`."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            values, self.packed, self.bias, "none", [], ""
        )
        return product


def pack_linear_layers(model: nn.Module) -> None:
    """Replace the linear layers of a model on a CPU, where its matrix library is built in."""
    if not torch.backends.mkldnn.is_available():
        return
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            # Subclasses may compute something else, so they stay.
            if type(child) is nn.Linear:
                setattr(module, name, PackedLinear(child))
