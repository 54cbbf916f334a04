"""How much memory the device holds for this process, and how the process gives it back.

On a CPU that is the process's resident set, read from the kernel; it is a true measure only if the
C allocator returns what is freed, so `return_freed_blocks` tells it to. On CUDA it is what the
caching allocator has reserved.
"""

import ctypes
import gc
import os
from typing import Protocol

import torch

__all__ = [
    "CpuMeter",
    "CudaMeter",
    "Meter",
    "live_tensor_bytes",
    "meter_for",
    "return_freed_blocks",
]

_PAGE = os.sysconf("SC_PAGESIZE")
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
RETURNED_FROM = 256 * 1024
"""Blocks of at least this many bytes go back to the system as soon as they are freed."""


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

    def reset_peak(self) -> None: ...


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
        return max(self._highest, self.recent_peak())

    def reset_peak(self) -> None:
        self._highest = 0
        os.pwrite(self._clear, b"5", 0)

    def recent_peak(self) -> int:
        """The most bytes held since `restart`."""
        status = os.pread(self._status, 8192, 0)
        at = status.index(b"VmHWM:") + 6
        return int(status[at : status.index(b"kB", at)]) * 1024

    def restart(self) -> None:
        """Begin a shorter measurement inside the one that `reset_peak` began."""
        self._highest = max(self._highest, self.recent_peak())
        os.pwrite(self._clear, b"5", 0)

    def __del__(self) -> None:
        for handle in (self._statm, self._status, self._clear):
            os.close(handle)


class CudaMeter:
    """What the caching allocator of one CUDA device has reserved."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def resident(self) -> int:
        return torch.cuda.memory_reserved(self._device)

    def used(self) -> int:
        return torch.cuda.memory_allocated(self._device)

    def peak(self) -> int:
        return torch.cuda.max_memory_reserved(self._device)

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)


def meter_for(device: torch.device) -> CpuMeter | CudaMeter:
    return CudaMeter(device) if device.type == "cuda" else CpuMeter()


def return_freed_blocks() -> bool:
    """Make the C allocator return freed blocks to the system at once; False if it is not glibc.

    Without this the resident set hardly falls when tensors die, and says nothing about them.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt = libc.mallopt
    except (OSError, AttributeError):
        return False
    mallopt(_M_MMAP_THRESHOLD, RETURNED_FROM)
    mallopt(_M_TRIM_THRESHOLD, RETURNED_FROM)
    mallopt(_M_TOP_PAD, 0)
    # One arena: threads would otherwise each keep free blocks of their own.
    mallopt(_M_ARENA_MAX, 1)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    return True


def live_tensor_bytes(device: torch.device) -> int:
    """Bytes of the storages of all tensors that Python can reach on `device`."""
    storages: dict[int, int] = {}
    for found in gc.get_objects():
        # Asking an arbitrary object for its class may run code of its own; `type` does not.
        if issubclass(type(found), torch.Tensor) and found.device.type == device.type:
            try:
                storage = found.untyped_storage()
                storages[storage._cdata] = storage.nbytes()
            except (NotImplementedError, RuntimeError):
                continue  # sparse tensors and the like have no storage of their own
    return sum(storages.values())
