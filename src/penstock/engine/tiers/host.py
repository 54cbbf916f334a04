"""Host memory: pinned slabs beside a CUDA device; beside a CPU, a second pool of the same memory.

On a CPU this saves nothing and serves tests: it obeys the rules of a tier without touching a disk.
On CUDA memory is pinned in few large slabs whose size is a power of two, because the pinned
allocator rounds each block up to one, and sub-allocated: host memory is a planned budget too.
"""

import time
from collections.abc import Callable, Sequence

import psutil
import torch
from torch import Tensor, UntypedStorage

from penstock.dispatch.resident import Part, whole
from penstock.dispatch.storage import byte_view, nbytes_of
from penstock.engine.extents import Extent, Extents
from penstock.engine.tiers import Cancelled, probe_bytes
from penstock.errors import TierError, mib
from penstock.ir.machine import Link
from penstock.ir.machine import Tier as TierFacts

__all__ = ["HostStore"]

_ALIGNMENT = 512
_SLAB = {"cuda": 256 << 20, "cpu": 16 << 20}


class HostStore:
    """Up to `capacity` bytes of host memory (None: what is free, less a tenth)."""

    name = "host"

    def __init__(self, device: torch.device, capacity: int | None = None) -> None:
        self._device = device
        self.before_growth: Callable[[], None] = lambda: None
        self.capacity = (
            psutil.virtual_memory().available * 9 // 10 if capacity is None else capacity
        )
        self._extents = Extents(_ALIGNMENT)
        self._slabs: list[tuple[int, Tensor]] = []  # where each begins, and its bytes

    def reserve(self, nbytes: int) -> Extent:
        extent = self._extents.allocate(nbytes)
        if extent is None:
            self._grow(nbytes)
            extent = self._extents.allocate(nbytes)
            assert extent is not None
        return extent

    def release(self, extent: Extent) -> None:
        self._extents.free(extent)

    def used(self) -> int:
        return self._extents.used

    def footprint(self) -> int:
        return 0 if self._device.type == "cuda" else self._extents.size

    def write(
        self,
        source: UntypedStorage,
        extent: Extent,
        parts: Sequence[Part],
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        if is_cancelled():
            raise Cancelled
        there, here = self._place(extent, nbytes_of(source)), byte_view(source)
        for begin, end in parts:
            there[begin:end].copy_(here[begin:end], non_blocking=True)

    def read(self, extent: Extent, target: UntypedStorage, parts: Sequence[Part]) -> None:
        there, here = self._place(extent, nbytes_of(target)), byte_view(target)
        for begin, end in parts:
            here[begin:end].copy_(there[begin:end], non_blocking=True)

    def probe(self) -> TierFacts:
        nbytes = probe_bytes(self.capacity)
        extent, block = self.reserve(nbytes), UntypedStorage(nbytes, device=self._device)
        links: list[Link] = []
        copies: tuple[Callable[[], None], ...] = (
            lambda: self.write(block, extent, whole(nbytes)),
            lambda: self.read(extent, block, whole(nbytes)),
        )
        for copy in copies:
            copy()
            self._synchronize()
            start = time.perf_counter()
            copy()
            self._synchronize()
            links.append(Link(nbytes / (time.perf_counter() - start)))
        self.release(extent)
        write, read = links
        return TierFacts(self.name, self.capacity, write, read)

    def close(self) -> None:
        self._slabs.clear()

    def _grow(self, nbytes: int) -> None:
        """Add a slab. A slab is one piece of memory, so no extent may cross into the next."""
        slab = max(_SLAB[self._device.type], 1 << (nbytes - 1).bit_length())
        size = self._extents.size
        if size + slab > self.capacity:
            slab = -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        if size + slab > self.capacity:
            raise TierError(
                f"the host tier is full: {mib(nbytes)} more do not fit into {mib(self.capacity)}, "
                f"of which {mib(self._extents.used)} are in use. Give it more with --host-budget, "
                "or add a disk with --tier disk:DIRECTORY."
            )
        pinned = self._device.type == "cuda"
        memory = torch.empty(slab, dtype=torch.uint8, pin_memory=pinned)
        if not pinned:
            self.before_growth()
            memory.fill_(0)  # so that all of it is resident, as `footprint` says
        self._slabs.append((size, memory))
        self._extents.grow(slab, seam=True)

    def _place(self, extent: Extent, nbytes: int) -> Tensor:
        start, slab = next(
            (start, slab) for start, slab in reversed(self._slabs) if start <= extent.offset
        )
        return slab[extent.offset - start : extent.offset - start + nbytes]

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
