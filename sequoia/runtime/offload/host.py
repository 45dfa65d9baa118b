"""Memory of the host from which a GPU copies."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from sequoia.runtime.offload.disk import Pages


class HostMemoryError(MemoryError):
    """The host cannot pin so much memory."""


def host_pages(byte_count: int, device: torch.device) -> Pages:
    """Memory of the host for copies to a device; for a GPU, pinned, so that they need no thread's help.

    The pages are registered with the driver as they are: torch's own allocator of pinned memory rounds
    up to powers of two, which for one layer may be nearly twice its bytes.

    Raises:
        HostMemoryError: they cannot be pinned.
    """
    pages = Pages(byte_count)
    if device.type == "cuda":
        runtime: Any = torch.cuda.cudart()
        address = pages.bytes.data_ptr()
        if code := int(runtime.cudaHostRegister(address, pages.bytes.numel(), 0)):
            raise HostMemoryError(f"{byte_count} bytes cannot be pinned: CUDA error {code}")
        # At the process's end the driver lets go by itself.
        weakref.finalize(pages, runtime.cudaHostUnregister, address).atexit = False
    return pages
