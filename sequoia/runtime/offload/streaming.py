"""Decoder layers whose weights are there while they run, and on their way at other times."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from sequoia.runtime.offload.budget import RING_SIZE
from sequoia.runtime.offload.ring import Ring

Slot = TypeVar("Slot")


class Tier(Protocol[Slot]):
    """Where streamed layers come from, for one kind of device."""

    def new_slot(self) -> Slot:
        """A buffer for any of the layers."""

    def fill(self, layer: int, slot: Slot) -> None:
        """Bring a layer into a buffer; called on the reading thread."""

    def tensors(self, layer: int, slot: Slot) -> dict[str, Tensor]:
        """A layer's tensors by name within the layer, for what is computed from now on."""

    def release(self, slot: Slot) -> None:
        """What uses the layer has been computed, or is in the device's queue."""


def stream_layers(layers: Mapping[int, nn.Module], tier: Tier[Slot]) -> Ring[Slot]:
    """Let layers take their weights from a tier, in the order of their numbers, at every pass.

    The reading begins now, and ends with the layers' life.
    """
    order = sorted(layers)
    ring = Ring([tier.new_slot() for _ in range(RING_SIZE)], order, tier.fill)
    for number in order:
        streamed = _Streamed(number, layers[number], tier, ring)
        layers[number].register_forward_pre_hook(streamed.bind)
        layers[number].register_forward_hook(streamed.let_go, always_call=True)
    weakref.finalize(layers[order[0]], ring.close)
    return ring


class _Streamed:
    """What stands before and behind the run of one layer."""

    def __init__(self, number: int, layer: nn.Module, tier: Tier[Any], ring: Ring[Any]) -> None:
        self._number = number
        self._tier = tier
        self._ring = ring
        self._slot: Any = None
        self._absent = {name: parameter.detach() for name, parameter in layer.named_parameters()}

    def bind(self, layer: nn.Module, _arguments: Any) -> None:
        """Wait for the weights and put them in.

        Raises:
            OSError: they cannot be read.
        """
        self._slot = self._ring.take(self._number)
        put_in(layer, self._tier.tensors(self._number, self._slot))

    def let_go(self, layer: nn.Module, _arguments: Any, _output: Any) -> None:
        """Take the weights out, after a layer that failed too."""
        if self._slot is None:
            return
        put_in(layer, self._absent)
        self._tier.release(self._slot)
        self._ring.give_back(self._slot)
        self._slot = None


def put_in(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Make tensors a module's parameters or buffers, by the names that they have in it."""
    for name, tensor in tensors.items():
        owner_name, _, leaf = name.rpartition(".")
        owner = module.get_submodule(owner_name)
        is_parameter = isinstance(getattr(owner, leaf), nn.Parameter)
        value = nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor
        setattr(owner, leaf, value)
