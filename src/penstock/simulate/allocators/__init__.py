"""What an allocator holds for a step: its requests replayed through models of CUDA's and of the CPU's.

The tensors of a step are one number of bytes, what the allocator has reserved for them is another:
sizes are rounded, blocks are cut from larger segments, and what is free may fit no request.
"""

from penstock.simulate.allocators.caching import CudaSettings, cuda, least_reserved
from penstock.simulate.allocators.glibc import cpu
from penstock.simulate.allocators.requests import (
    Free,
    Malloc,
    Replay,
    Request,
    Usage,
    allocations,
)

__all__ = [
    "CudaSettings",
    "Free",
    "Malloc",
    "Replay",
    "Request",
    "Usage",
    "allocations",
    "cpu",
    "cuda",
    "least_reserved",
]
