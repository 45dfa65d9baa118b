from __future__ import annotations

import pytest
import torch
from torch import nn

from sequoia.runtime.packing import PackedLinear, pack_linear_layers
from tests.tiny import tiny_llama


@pytest.mark.parametrize("tokens", [1, 2, 8, 33])
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_layer_gives_the_same_products(tokens: int, bias: bool) -> None:
    """Packed and plain products are equal to rounding, with and without a bias."""
    torch.manual_seed(0)
    linear = nn.Linear(96, 160, bias=bias)
    values = torch.randn(2, tokens, 96)

    with torch.inference_mode():
        assert torch.allclose(PackedLinear(linear)(values), linear(values), atol=1e-5)


def test_a_packed_model_gives_the_same_logits() -> None:
    """All linear layers of a model are packed, and its logits stay."""
    model = tiny_llama(64, seed=5)
    tokens = torch.arange(12)[None]
    with torch.inference_mode():
        plain = model(tokens).logits
        pack_linear_layers(model)
        packed = model(tokens).logits

    assert not any(type(module) is nn.Linear for module in model.modules())
    assert torch.allclose(packed, plain, atol=1e-4)
