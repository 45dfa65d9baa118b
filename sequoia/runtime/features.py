"""Features between the device and the wire, where they travel as bfloat16."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sequoia.messages import Features


def pack_features(features: Tensor) -> Features:
    """The bits of `[positions, hidden]` in bfloat16."""
    bits: Features = features.to("cpu", torch.bfloat16).contiguous().view(torch.uint16).numpy()
    return bits


def unpack_features(bits: Features, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The numbers behind the bits, `[positions, hidden]`."""
    # A copy, since what came off the wire is not writable and torch insists.
    return torch.from_numpy(np.array(bits)).view(torch.bfloat16).to(device, dtype)
