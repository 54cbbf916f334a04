"""A model of glibc's malloc as `CAllocator` sets it (dispatch/resident.py), below torch's
c10/core/impl/alloc_cpu.cpp.

Assumes that every byte of a block is touched. Huge pages then change nothing: the kernel maps one
only where all of it lies in the block.
"""

from collections.abc import Iterable

from penstock.simulate.allocators.requests import Replay, Request, replay, up

__all__ = ["cpu"]

_PAGE = 4096
_LINE = 64  # torch's gAlignment
_HEADER = 8  # glibc keeps a chunk's size before it
_SMALLEST = 32  # glibc's MINSIZE
_HUGE = 2 * 2**20  # torch's gAlloc_threshold_thp


def cpu(
    requests: Iterable[Request], *, mapped_from: int = 64 * 1024, huge_pages: bool = True
) -> Replay:
    """Replay `requests` through glibc's malloc: what is reserved is what is resident.

    A chunk of `mapped_from` bytes or more is a mapping of its own, given back when it is freed.
    Smaller ones share a heap, which is taken to reuse its holes perfectly and to give nothing back;
    `segments` counts the mappings. `huge_pages` is torch's THP_MEM_ALLOC_ENABLE, which `import
    penstock` sets; it aligns blocks of 2 MiB or more to pages.
    """
    return replay(requests, _Glibc(mapped_from, _HUGE if huge_pages else 2**62))


class _Glibc:
    """A chunk is its bytes: negative in the heap, where the sign tells the two apart."""

    retries = 0

    def __init__(self, mapped_from: int, huge_from: int) -> None:
        self._mapped_from = mapped_from
        self._huge_from = huge_from
        self._mapped = self._heap = self._heap_peak = 0
        self.segments = 0

    @property
    def reserved(self) -> int:
        return self._mapped + up(self._heap_peak, _PAGE)

    def malloc(self, nbytes: int) -> int:
        # `_int_memalign` asks for enough to find an aligned place in it.
        alignment = _PAGE if nbytes >= self._huge_from else _LINE
        chunk = up(up(nbytes + _HEADER, 16) + alignment + _SMALLEST + _HEADER, 16)
        if chunk < self._mapped_from:
            footprint = up(nbytes + _HEADER, _LINE)  # chunk after chunk, each on a line
            self._heap += footprint
            self._heap_peak = max(self._heap_peak, self._heap)
            return -footprint
        # The header stands before the first aligned place; what is behind the block stays untouched.
        resident = up(alignment + nbytes, _PAGE)
        self._mapped += resident
        self.segments += 1
        return resident

    def free(self, chunk: int) -> None:
        if chunk < 0:
            self._heap += chunk
        else:
            self._mapped -= chunk
            self.segments -= 1

    def size_of(self, chunk: int) -> int:
        return abs(chunk)
