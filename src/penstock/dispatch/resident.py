"""How much memory the device holds for this process, and how the process gives it back.

On a CPU that is the process's resident set, read from the kernel; it is a true measure only if the
C allocator returns what is freed, so `CAllocator` tells it to. On CUDA it is what the
caching allocator has reserved: what it was asked for, and what it keeps for the next request. Only the
first of these is needed, as far as free blocks fit.
"""

import ctypes
import gc
import mmap
import os
import resource
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Literal, Protocol

import numpy as np
import torch
from torch import UntypedStorage

from penstock.dispatch.storage import components_of, key_of, lies_on, nbytes_of, storage_of

__all__ = [
    "CpuMeter",
    "CudaMeter",
    "Meter",
    "Part",
    "bytes_of",
    "live_tensor_bytes",
    "meter_for",
    "parts_held",
    "whole",
]

_PAGE = os.sysconf("SC_PAGESIZE")
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4
RETURNED_FROM = 64 * 1024
"""Blocks of at least this many bytes go back to the system as soon as they are freed."""
_MAPPED_AT_MOST, _TOP_PAD = 32 << 20, 128 << 10
"""Bytes: what glibc raises its first threshold to at most (the other is then twice that), its default."""
_MAPPINGS, _NEVER = 65536, -1
"""How many blocks glibc maps at most; what turns its trimming off."""
_HOLE = 1 << 20
"""Bytes together that nobody wrote, from which they are taken notice of."""
_PRESENT_OR_SWAPPED = np.uint64(3 << 62)
"""What /proc/self/pagemap says of a page that was written to: here, or with the system's swap."""

Part = tuple[int, int]
"""Some bytes of a storage: where they begin and end."""


class Meter(Protocol):
    """Bytes that the device holds for this process, right now and at most."""

    def resident(self) -> int:
        """Bytes held now."""
        ...

    def used(self) -> int:
        """Bytes held now that cannot be given out again without evicting something."""
        ...

    def peak(self) -> int:
        """The most bytes held since `reset_peak`."""
        ...

    def needed(self) -> int:
        """The most bytes `used` since `reset_peak`."""
        ...

    def reset_peak(self) -> None: ...

    def recent_needed(self) -> int:
        """The most bytes `used` since `restart`."""
        ...

    def restart(self) -> None:
        """Begin a shorter measurement inside the one that `reset_peak` began."""
        ...


class CpuMeter:
    """The resident set of this process, from /proc. About one microsecond a reading."""

    def __init__(self) -> None:
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
        self._clear = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
        self._highest = 0  # of what `restart` cut off

    def resident(self) -> int:
        return int(os.pread(self._statm, 96, 0).split(None, 2)[1]) * _PAGE

    def used(self) -> int:
        return self.resident()

    def peak(self) -> int:
        return max(self._highest, self.recent_needed())

    def needed(self) -> int:
        return self.peak()

    def reset_peak(self) -> None:
        self._highest = 0
        os.pwrite(self._clear, b"5", 0)

    def recent_needed(self) -> int:
        status = os.pread(self._status, 8192, 0)
        at = status.index(b"VmHWM:") + 6
        return int(status[at : status.index(b"kB", at)]) * 1024

    def restart(self) -> None:
        self._highest = self.peak()
        os.pwrite(self._clear, b"5", 0)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # `os` may be gone by then
        for handle in (self._statm, self._status, self._clear):
            close(handle)


class CudaMeter:
    """What the caching allocator of one CUDA device has reserved, and of that what it was asked for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._highest = self._highest_used = 0  # of what `restart` cut off

    def resident(self) -> int:
        return self._bytes("reserved_bytes", "current")

    def used(self) -> int:
        return self._bytes("allocated_bytes", "current")

    def peak(self) -> int:
        return max(self._highest, self._bytes("reserved_bytes", "peak"))

    def needed(self) -> int:
        return max(self._highest_used, self.recent_needed())

    def reset_peak(self) -> None:
        self._highest = self._highest_used = 0
        torch.cuda.reset_peak_memory_stats(self._device)

    def recent_needed(self) -> int:
        return self._bytes("allocated_bytes", "peak")

    def restart(self) -> None:
        self._highest, self._highest_used = self.peak(), self.needed()
        torch.cuda.reset_peak_memory_stats(self._device)

    def _bytes(self, what: str, when: str) -> int:
        # Nested: `memory_stats` flattens and sorts some hundred numbers first.
        stats = torch.cuda.memory_stats_as_nested_dict(self._device)
        return int(stats[what]["all"][when]) if stats else 0  # empty before CUDA is used


def meter_for(device: torch.device) -> CpuMeter | CudaMeter:
    return CudaMeter(device) if device.type == "cuda" else CpuMeter()


class _MallocInfo(ctypes.Structure):
    """What glibc's mallinfo2 tells, in bytes."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


class CAllocator:
    """The C library's allocator. While it is tight, it returns large freed blocks to the system at once.

    Without this the resident set hardly falls when tensors die, and says nothing about them. Does
    nothing where the C library is not glibc.

    glibc maps a large block of its own only if no hole in its heap fits, and what is freed in the
    heap stays resident. So the holes that earlier allocations left are plugged: with blocks that
    nobody touches, which cost no memory.

    What was returned is taken again at the price of its page faults, up to half of a step's time. So
    it may `keep` what is freed, and be told to `trim` it where room is short.
    """

    def __init__(self) -> None:
        self._mode: Literal["tight", "keeping", "loose"] = "loose"
        self._may_keep = False
        self._handed_out = 0  # bytes, when it began to keep
        self._plugs: list[int] = []
        self._is_glibc = self._is_limited = False
        try:
            self._libc = ctypes.CDLL(None)
            self._libc.mallopt, self._libc.malloc_trim  # noqa: B018  (are they there?)
        except (OSError, AttributeError):
            return
        self._is_glibc = True
        self._libc.malloc.restype = ctypes.c_void_p
        self._libc.malloc.argtypes = [ctypes.c_size_t]
        self._libc.free.argtypes = [ctypes.c_void_p]
        self._libc.sbrk.restype = ctypes.c_void_p
        self._libc.sbrk.argtypes = [ctypes.c_ssize_t]
        self._libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self._heap = _heap()
        self._is_limited = _is_limited()
        if hasattr(self._libc, "mallinfo2") and self._heap and not self._is_limited:
            self._libc.mallinfo2.restype = _MallocInfo
            self._may_keep = self._is_only_heap()
        self.tighten()

    @property
    def keeps(self) -> bool:
        """Does it keep what is freed?"""
        return self._mode == "keeping"

    @property
    def may_keep(self) -> bool:
        """Would `keep` do anything?"""
        return self._may_keep

    def tighten(self, *, for_good: bool = False) -> None:
        """Return what is free, and from now on whatever is freed. Idempotent.

        `for_good`: it will not `keep` anything again.
        """
        self._may_keep &= not for_good
        if self._mode != "tight" and self._is_glibc:
            self._mode = "tight"
            self._return_what_is_free()

    def plug(self) -> None:
        """Trim, and plug the holes that small blocks left which were freed while it was tight.

        Takes a millisecond. No plugs where the system limits what the process holds: there one costs what
        its hole could hold. Not to be asked before every step: small blocks would go above the plugs, and
        the heap would grow and grow.
        """
        if self._mode != "tight" or self._is_limited:
            self.trim()
            return
        self._unplug()
        self._return_what_is_free()

    def keep(self) -> None:
        """Keep all that is freed for what is taken next, until `trim`. Idempotent.

        It stays tight where the system limits the process's data or addresses (also since this was made),
        and where threads have heaps of their own, of which glibc gives back but a part.
        """
        self._is_limited |= _is_limited()
        self._may_keep &= not self._is_limited
        if self._may_keep and self._mode != "keeping":
            self._begin_to_keep()
            self._handed_out = self._bytes_handed_out()

    def _begin_to_keep(self) -> None:
        self._mode = "keeping"
        self._set(mapped_from=_MAPPED_AT_MOST, trimmed_from=_NEVER, top_pad=_TOP_PAD, maps=0)
        self._unplug()

    @contextmanager
    def held_tight(self) -> Iterator[None]:
        """What is freed meanwhile goes back at once, though all else is kept."""
        self._mode = "tight"
        self._return_what_is_free()
        try:
            yield
        finally:
            if self._may_keep:  # unless the system refused memory meanwhile
                self._begin_to_keep()

    def grown(self) -> int:
        """Bytes that were handed out since it began to keep, less those that were freed."""
        return self._bytes_handed_out() - self._handed_out

    def _is_only_heap(self) -> bool:
        """Does what threads take come from the heap that `trim` gives back?"""
        others = self._libc.mallinfo2().arena - (self._libc.sbrk(0) - self._heap)
        return bool(others < RETURNED_FROM)

    def _bytes_handed_out(self) -> int:
        told = self._libc.mallinfo2()
        return int(told.uordblks + told.hblkhd)

    def _return_what_is_free(self) -> None:
        self._set(mapped_from=RETURNED_FROM, trimmed_from=RETURNED_FROM, top_pad=0)
        self.trim()
        size = 1 << 30
        while size >= RETURNED_FROM:  # large plugs first: each touches the page of its header
            block = self._libc.malloc(size)
            if block and not _is_mapped(block):
                self._plugs.append(block)
                continue
            self._libc.free(block)  # no hole of that size is left
            size //= 2

    def trim(self) -> None:
        """Give back what was freed below blocks that are still in use: that does not go by itself.

        No huge pages any more where they are not asked for again: what was given back would come back as
        such with the first byte next to it, as a plug's header is, or by the system's own doing.
        """
        if self._is_glibc:
            if self._heap:
                nbytes = self._libc.sbrk(0) - self._heap
                self._libc.madvise(self._heap, nbytes, mmap.MADV_NOHUGEPAGE)
            self._libc.malloc_trim(0)

    def loosen(self) -> None:
        """Do as glibc itself comes to do: keep most of what is freed. Idempotent."""
        if self._mode != "loose":
            self.trim()
            self._mode = "loose"
            most = _MAPPED_AT_MOST
            self._set(mapped_from=most, trimmed_from=2 * most, top_pad=_TOP_PAD)
            self._unplug()

    def _unplug(self) -> None:
        while self._plugs:
            self._libc.free(self._plugs.pop())

    def _set(
        self, *, mapped_from: int, trimmed_from: int, top_pad: int, maps: int = _MAPPINGS
    ) -> None:
        self._libc.mallopt(_M_MMAP_THRESHOLD, mapped_from)
        self._libc.mallopt(_M_TRIM_THRESHOLD, trimmed_from)
        self._libc.mallopt(_M_TOP_PAD, top_pad)
        self._libc.mallopt(_M_MMAP_MAX, maps)


def _is_limited() -> bool:
    """Does the system limit the process's data or its addresses? Holes in the heap count against both."""
    limits = (resource.RLIMIT_DATA, resource.RLIMIT_AS)
    return any(resource.getrlimit(one)[0] != resource.RLIM_INFINITY for one in limits)


def _heap() -> int:
    """Where glibc's first arena begins, which holds all that has no mapping of its own; 0: not known."""
    try:
        with open("/proc/self/maps") as maps:
            found = next((line for line in maps if line.endswith("[heap]\n")), "0-")
    except OSError:
        return 0
    return int(found.partition("-")[0], 16)


def _is_mapped(block: int) -> bool:
    """Does a block from glibc's malloc stand in a mapping of its own? A flag before it says so."""
    size_and_flags = ctypes.c_size_t.from_address(block - ctypes.sizeof(ctypes.c_size_t)).value
    return bool(size_and_flags & 2)


def live_tensor_bytes(device: torch.device) -> int:
    """Bytes of the storages of all tensors that Python can reach on `device`."""
    storages: dict[int, int] = {}
    for found in gc.get_objects():
        # Asking an arbitrary object for its class may run code of its own; `type` does not.
        if issubclass(type(found), torch.Tensor) and lies_on(found, device):
            try:
                for storage in map(storage_of, components_of(found)):
                    storages[key_of(storage)] = nbytes_of(storage)
            except (NotImplementedError, RuntimeError):
                continue  # some stand for a tensor and have no storage
    return sum(storages.values())


def whole(nbytes: int) -> tuple[Part, ...]:
    """A storage of so many bytes in one part."""
    return ((0, nbytes),)


def bytes_of(parts: Iterable[Part]) -> int:
    return sum(end - begin for begin, end in parts)


def parts_held(storage: UntypedStorage) -> tuple[Part, ...]:
    """What the device holds of a storage: on Linux all but the pages that nobody wrote to or read.

    In whole blocks of the storage, and without small holes. All of it on CUDA, and where the system will
    not tell.
    """
    nbytes = nbytes_of(storage)
    if storage.device.type != "cpu" or nbytes < _HOLE:
        return whole(nbytes)
    first, offset = divmod(storage.data_ptr(), _PAGE)
    pages = -(-(offset + nbytes) // _PAGE)
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            told = os.pread(pagemap.fileno(), 8 * pages, 8 * first)
    except OSError:
        told = b""
    if len(told) != 8 * pages:
        return whole(nbytes)
    absent = np.frombuffer(told, np.uint64) & _PRESENT_OR_SWAPPED == 0
    blocks = nbytes // _PAGE
    gone = absent[:blocks] & absent[1 : blocks + 1] if offset else absent[:blocks]
    edges = np.flatnonzero(np.diff(gone, prepend=False, append=False)) * _PAGE
    holes = [(begin, end) for begin, end in edges.reshape(-1, 2).tolist() if end - begin >= _HOLE]
    ends = [0, *chain.from_iterable(holes), nbytes]
    parts = zip(ends[::2], ends[1::2], strict=True)
    return tuple((begin, end) for begin, end in parts if begin < end)
