"""Disk: one preallocated file without a name, read and written past the page cache.

**Guarantees.** The file is unlinked before its first byte is written: whatever ends the process, no
file stays behind. Space is allocated before it is used, so a full disk is met when space is
reserved, not in the middle of a copy. A short or failed transfer raises; nothing is ever silently
cut.

Where a tensor's memory is page aligned (see `dispatch.resident`), bytes go straight between it and
the device; otherwise through aligned bounce buffers, one a thread, reused.
"""

import ctypes
import errno
import mmap
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import UntypedStorage

from penstock.dispatch.resident import Part, whole
from penstock.dispatch.storage import address_of, byte_view
from penstock.engine.extents import Extent, Extents
from penstock.engine.tiers import Cancelled, probe_bytes
from penstock.errors import TierError, UsageError, mib
from penstock.ir.machine import Link
from penstock.ir.machine import Tier as TierFacts

__all__ = ["DiskStore", "free_bytes"]

_BLOCK = 4096
_CHUNK = 8 << 20
"""One system call moves at most this much: large enough for bandwidth, small enough to cancel."""
_BOUNCE = 1 << 20
"""Bytes of a bounce buffer: few, since they are part of what the process holds."""
_GROWTH = 256 << 20


def free_bytes(directory: str) -> int:
    """Bytes that may be used under `directory`, less a reserve for everyone else."""
    free = shutil.disk_usage(directory).free
    return max(0, free - max(1 << 30, free // 20))


class DiskStore:
    """A file under `directory` that holds up to `capacity` bytes (None: what is free there)."""

    name = "disk"

    def __init__(self, directory: str | None = None, capacity: int | None = None) -> None:
        self.directory = directory or tempfile.gettempdir()
        if not os.path.isdir(self.directory):
            raise UsageError(f"disk tier: {self.directory} is not a directory; create it first")
        self.capacity = free_bytes(self.directory) if capacity is None else capacity
        self._file, self.is_direct = _open_nameless(self.directory)
        self._extents = Extents(_BLOCK)
        self.before_growth: Callable[[], None] = lambda: None  # of a footprint that is always 0
        # One for each lane and one for the probe, resident from the start: before the budget counts.
        self._bounces = [_resident_block(_BOUNCE) for _ in range(3)]
        self._local = threading.local()

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
        return 0

    def write(
        self,
        source: UntypedStorage,
        extent: Extent,
        parts: Sequence[Part],
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        for offset, nbytes in _chunks(source, parts):
            if is_cancelled():
                raise Cancelled
            with _Window(self._bounce(), source, offset, nbytes) as window:
                window.fetch()
                self._transfer(os.pwritev, window.memory, extent.offset + offset, "write")

    def read(self, extent: Extent, target: UntypedStorage, parts: Sequence[Part]) -> None:
        for offset, nbytes in _chunks(target, parts):
            with _Window(self._bounce(), target, offset, nbytes) as window:
                self._transfer(os.preadv, window.memory, extent.offset + offset, "read")
                window.deliver()

    def probe(self) -> TierFacts:
        nbytes = probe_bytes(self.capacity)
        extent, block = self.reserve(nbytes), UntypedStorage(nbytes)
        byte_view(block).fill_(1)
        parts = whole(nbytes)
        self.write(block, extent, parts)  # the first write of new blocks is the slowest
        begin = time.perf_counter()
        self.write(block, extent, parts)
        written = time.perf_counter()
        self.read(extent, block, parts)
        read = time.perf_counter()
        self.release(extent)
        links = Link(nbytes / (written - begin)), Link(nbytes / (read - written))
        return TierFacts(self.name, self.capacity, *links)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _grow(self, nbytes: int) -> None:
        size = self._extents.size
        missing = self._extents.missing(nbytes)
        if size + missing > self.capacity:
            raise TierError(
                f"the disk tier under {self.directory} is full: {mib(nbytes)} more do not fit "
                f"into {mib(self.capacity)}, of which {mib(self._extents.used)} are in use. "
                "Give it more with --disk-budget, or name another directory with --tier."
            )
        growth = min(max(missing, _GROWTH), self.capacity - size)
        growth -= growth % _BLOCK
        growth = max(growth, missing)
        try:
            os.posix_fallocate(self._file, size, growth)
        except OSError as error:
            raise self._failed(error, f"cannot reserve {mib(growth)}") from None
        self._extents.grow(growth)

    def _bounce(self) -> mmap.mmap:
        if not hasattr(self._local, "buffer"):
            # A thread takes one for good; a forked child's may need more.
            self._local.buffer = self._bounces.pop() if self._bounces else _resident_block(_BOUNCE)
        buffer: mmap.mmap = self._local.buffer
        return buffer

    def _transfer(
        self,
        call: Callable[[int, list[memoryview], int], int],
        memory: memoryview,
        at: int,
        verb: str,
    ) -> None:
        done, before = 0, -1
        while done < len(memory):
            try:
                moved = call(self._file, [memory[done:]], at + done)
            except OSError as error:
                raise self._failed(error, f"cannot {verb} {mib(len(memory))}") from None
            if moved <= 0 or done == before:
                raise TierError(
                    f"the disk tier under {self.directory} ended after {done} of {len(memory)} "
                    f"bytes of a {verb}; the file system is damaged or the disk was removed"
                )
            before = done
            done += moved
            if self.is_direct and done < len(memory):
                done -= done % _BLOCK  # direct transfers start at block boundaries

    def _failed(self, error: OSError, what: str) -> TierError:
        advice = {
            errno.ENOSPC: "the disk is full; free some space, or name another directory with --tier",
            errno.EDQUOT: "your quota is used up; name another directory with --tier",
            errno.EIO: "the disk reports a hardware error",
        }.get(error.errno or 0, "name another directory with --tier")
        return TierError(
            f"the disk tier under {self.directory} {what}: {os.strerror(error.errno or 0)} ({advice})"
        )


def _resident_block(nbytes: int) -> mmap.mmap:
    block = mmap.mmap(-1, nbytes)
    block.write(bytes(nbytes))
    return block


def _open_nameless(directory: str) -> tuple[int, bool]:
    """A file that no directory lists, and whether it bypasses the page cache."""
    flags = os.O_RDWR | os.O_CLOEXEC
    direct = getattr(os, "O_DIRECT", 0)
    for extra in (direct, 0) if direct else (0,):
        try:
            file = os.open(directory, flags | extra | os.O_TMPFILE, 0o600)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
                opened = _open_and_unlink(directory, flags | extra)
                if opened is None:
                    continue
                file = opened
            else:
                reason = os.strerror(error.errno or 0)
                raise UsageError(
                    f"disk tier: cannot create a file in {directory}: {reason}"
                ) from None
        if not extra or _takes_direct_writes(file):
            return file, bool(extra)
        os.close(file)
    raise UsageError(f"disk tier: no file can be created in {directory}")


def _open_and_unlink(directory: str, flags: int) -> int | None:
    name = os.path.join(directory, f".penstock-{os.getpid()}-{time.monotonic_ns()}")
    try:
        file = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        if error.errno == errno.EINVAL:  # no direct access on this file system
            return None
        reason = os.strerror(error.errno or 0)
        raise UsageError(f"disk tier: cannot create a file in {directory}: {reason}") from None
    os.unlink(name)
    return file


def _takes_direct_writes(file: int) -> bool:
    with mmap.mmap(-1, _BLOCK) as block:
        try:
            return os.pwritev(file, [block], 0) == _BLOCK
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            return True  # a full disk is reported where space is reserved


def _chunks(storage: UntypedStorage, parts: Iterable[Part]) -> Iterator[tuple[int, int]]:
    """Offsets and sizes, each moved by one system call: whole blocks in place, the rest bounces."""
    for begin, end in parts:
        bounced = begin
        if _is_aligned(storage, begin):
            bounced = end - (end - begin) % _BLOCK
            for offset in range(begin, bounced, _CHUNK):
                yield offset, min(_CHUNK, bounced - offset)
        for offset in range(bounced, end, _BOUNCE):
            yield offset, min(_BOUNCE, end - offset)


def _is_aligned(storage: UntypedStorage, offset: int) -> bool:
    return storage.device.type == "cpu" and (storage.data_ptr() + offset) % _BLOCK == 0


class _Window:
    """Some bytes of a storage as memory that may be transferred: in place, or in a bounce buffer.

    In place needs page-aligned memory and whole blocks; whatever is not that, or lies on another
    device, bounces. `fetch` fills the bounce buffer from the storage, `deliver` empties it there.
    """

    def __init__(
        self, bounce: mmap.mmap, storage: UntypedStorage, offset: int, nbytes: int
    ) -> None:
        self._storage, self._offset, self._nbytes = storage, offset, nbytes
        self._bytes = byte_view(storage)[offset : offset + nbytes]
        address = address_of(self._bytes)
        self._in_place = _is_aligned(storage, offset) and nbytes % _BLOCK == 0
        whole_blocks = -(-nbytes // _BLOCK) * _BLOCK
        if self._in_place:
            self.memory = memoryview((ctypes.c_char * nbytes).from_address(address)).cast("B")
        else:
            self.memory = memoryview(bounce)[:whole_blocks]

    def __enter__(self) -> "_Window":
        return self

    def __exit__(self, *_: object) -> None:
        self.memory.release()

    def fetch(self) -> None:
        if self._in_place:
            return
        if self._bytes.device.type == "cpu":
            # On one thread and without the interpreter lock, unlike torch's own copy.
            ctypes.memmove(_address(self.memory), address_of(self._bytes), self._nbytes)
        else:
            self._staged().copy_(self._bytes)

    def deliver(self) -> None:
        if self._in_place:
            return
        if self._bytes.device.type == "cpu":
            ctypes.memmove(address_of(self._bytes), _address(self.memory), self._nbytes)
        else:
            self._bytes.copy_(self._staged())

    def _staged(self) -> torch.Tensor:
        return torch.frombuffer(self.memory, dtype=torch.uint8, count=self._nbytes)


def _address(memory: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
