"""A model of CUDA's caching allocator: c10/cuda/CUDACachingAllocator.cpp as torch 2.11 to 2.13 have it,
on one stream and without private pools (graphs).

The functions there that each rule comes from are named beside it. Not in the source, because the
driver decides it: where a new segment stands. That matters only between free blocks of one size, of
which the lowest is taken; here each new segment stands above all before, or where `addresses` says.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from penstock.errors import UsageError
from penstock.simulate.allocators.requests import Replay, Request, replay, up

__all__ = ["CudaSettings", "cuda", "least_reserved"]

_MIB = 2**20
# c10/core/AllocatorConfig.h
_MIN_BLOCK = 512  # all sizes are rounded to a multiple of this
_SMALL = 1 * _MIB  # requests up to this come from the small pool ...
_SMALL_SEGMENT = 2 * _MIB  # ... whose segments have this size
_MIN_LARGE = 10 * _MIB  # from here on a request gets a segment of its own size ...
_ROUND_LARGE = 2 * _MIB  # ... rounded up to this
# An expandable segment reserves address space for 9/8 of the device; here for more than any has, so
# that there is one segment a pool.
_ADDRESS_SPACE = 2**46


@dataclass(frozen=True, slots=True)
class CudaSettings:
    """What PYTORCH_ALLOC_CONF sets, in bytes; defaults are torch's.

    `limit` is what the allocator may reserve (the device's free memory, or the share that
    `set_per_process_memory_fraction` allows); None: no limit.
    """

    expandable_segments: bool = False
    roundup_power2_divisions: int = 0  # 0 or 1: off
    max_split_size: int | None = None  # blocks of this size or more are not split
    max_non_split_rounding: int = 20 * _MIB  # how much larger such a block may be than its request
    large_segment: int = 20 * _MIB  # the segment for requests between 1 and 10 MiB
    limit: int | None = None

    def __post_init__(self) -> None:
        divisions = self.roundup_power2_divisions
        if divisions < 0 or divisions & (divisions - 1):
            raise UsageError(
                f"roundup_power2_divisions is {divisions}; it must be 0 or a power of two"
            )
        if self.max_split_size is not None and self.max_split_size <= 20 * _MIB:
            raise UsageError(
                f"max_split_size is {self.max_split_size} bytes; torch takes more than 20 MiB"
            )
        if self.large_segment < 20 * _MIB or self.large_segment % _ROUND_LARGE:
            raise UsageError(
                f"large_segment is {self.large_segment} bytes; it must be 20 MiB or more, in steps of 2"
            )
        if self.limit is not None and self.limit < 0:
            raise UsageError(f"limit is {self.limit} bytes; it must be 0 or more")


def cuda(
    requests: Iterable[Request],
    settings: CudaSettings | None = None,
    addresses: Sequence[int] = (),
) -> Replay:
    """Replay `requests` through CUDA's caching allocator.

    `addresses` are those of the segments in the order in which they are reserved, as far as they are
    known. Raises `TraceError` if a block is freed that is not held, or asked for twice.
    """
    allocator = Caching(settings or CudaSettings(), addresses)
    return replay(requests, allocator)


def least_reserved(requests: Iterable[Request], settings: CudaSettings | None = None) -> int:
    """The least that CUDA's caching allocator must be allowed to reserve to serve `requests`.

    Where nothing limits it, it keeps what is free; under a limit it gives that back before it fails,
    and only what is free inside segments in use is lost. Found to within 1 %.
    """
    asked, plain = tuple(requests), settings or CudaSettings()
    free = cuda(asked, replace(plain, limit=None))
    most, least = free.reserved_peak, free.allocated_peak
    while most - least > max(_ROUND_LARGE, most // 100):
        middle = (most + least) // 2
        found = cuda(asked, replace(plain, limit=middle))
        if found.failed is None:
            most = found.reserved_peak
        else:
            least = middle
    return most


class _Block:
    """A part of a segment; `before` and `after` are its neighbours there."""

    __slots__ = ("address", "after", "before", "is_free", "is_mapped", "pool", "size")

    def __init__(self, address: int, size: int, pool: "_Pool", *, is_mapped: bool = True) -> None:
        self.address = address
        self.size = size
        self.pool = pool
        self.is_mapped = is_mapped  # has memory behind it; what has not is in no segment yet
        self.is_free = True
        self.before: _Block | None = None
        self.after: _Block | None = None

    @property
    def is_split(self) -> bool:
        return self.before is not None or self.after is not None


class _Pool:
    """Free blocks by size and then address, so that the first that fits is the best fit."""

    def __init__(self, page: int, *, is_small: bool) -> None:
        self.is_small = is_small
        self.page = page  # what an expandable segment grows by
        self.sizes: list[tuple[int, int]] = []
        self.at: dict[int, _Block] = {}  # free blocks by address
        self.unmapped: dict[int, _Block] = {}

    def add(self, block: _Block) -> None:
        if block.is_mapped:
            insort(self.sizes, (block.size, block.address))
            self.at[block.address] = block
        else:
            self.unmapped[block.address] = block

    def remove(self, block: _Block) -> None:
        if block.is_mapped:
            del self.sizes[bisect_left(self.sizes, (block.size, block.address))]
            del self.at[block.address]
        else:
            del self.unmapped[block.address]


class Caching:
    """DeviceCachingAllocator, reduced to its decisions."""

    def __init__(self, settings: CudaSettings, addresses: Sequence[int]) -> None:
        self.settings = settings
        self.reserved = self.segments = self.retries = 0
        self._small = _Pool(_SMALL_SEGMENT, is_small=True)
        self._large = _Pool(settings.large_segment, is_small=False)
        self._addresses = iter(addresses)
        self._next_address = max(addresses, default=0) + 2**46
        self._never_split = settings.max_split_size or 2**62

    def malloc(self, nbytes: int) -> _Block | None:
        size = self._rounded(nbytes)
        pool = self._small if size <= _SMALL else self._large
        block = self._cached(pool, size) or self._reserve(pool, size)
        if block is None and self._release_one(pool, size):
            block = self._reserve(pool, size)
        if block is None:
            self._release_all()
            self.retries += 1
            block = self._reserve(pool, size)
        if block is None:
            return None
        if self._splits(block, size):
            rest = _Block(block.address + size, block.size - size, pool)
            block.size = size
            _link(block, rest, block.after)
            pool.add(rest)
        block.is_free = False
        return block

    def free(self, block: _Block) -> None:
        """`free_block`: merged with its free neighbours and cached."""
        block.is_free = True
        self._merge(block)
        block.pool.add(block)

    def size_of(self, block: _Block) -> int:
        return block.size

    def _rounded(self, nbytes: int) -> int:
        """`round_size`, `roundup_power2_next_division`."""
        divisions = self.settings.roundup_power2_divisions
        if divisions > 1 and nbytes > _MIN_BLOCK * divisions:
            step = (1 << (nbytes.bit_length() - 1)) // divisions
            return up(nbytes, step)
        return up(nbytes, _MIN_BLOCK)

    def _segment_size(self, size: int) -> int:
        """`get_allocation_size`."""
        if size <= _SMALL:
            return _SMALL_SEGMENT
        return self.settings.large_segment if size < _MIN_LARGE else up(size, _ROUND_LARGE)

    def _splits(self, block: _Block, size: int) -> bool:
        """`should_split`."""
        rest = block.size - size
        if block.pool.is_small or self.settings.expandable_segments:
            return rest >= _MIN_BLOCK
        return size < self._never_split and rest > _SMALL

    def _cached(self, pool: _Pool, size: int) -> _Block | None:
        """`get_free_block`: the smallest free block that is large enough."""
        at = bisect_left(pool.sizes, (size, 0))
        if at == len(pool.sizes):
            return None
        block = pool.at[pool.sizes[at][1]]
        if self.settings.expandable_segments:
            # What can grow counts as large as it can grow, so that it is left alone if possible.
            for _, address in islice(pool.sizes, at + 1, None):
                following = pool.at[address]
                if _growable(following) >= _growable(block):
                    break
                block = following
        if size < self._never_split <= block.size:
            return None
        if size >= self._never_split and block.size >= size + self.settings.max_non_split_rounding:
            return None
        pool.remove(block)
        return block

    def _reserve(self, pool: _Pool, size: int) -> _Block | None:
        """`alloc_block`: a new segment, or more of an expandable one; None if the limit forbids it."""
        nbytes = self._segment_size(size)
        limit = self.settings.limit
        if limit is not None and self.reserved + nbytes > limit:
            return None
        if self.settings.expandable_segments:
            return self._expand(pool, size)
        address = next(self._addresses, None)
        if address is None:
            address, self._next_address = self._next_address, self._next_address + nbytes
        self.reserved += nbytes
        self.segments += 1
        return _Block(address, nbytes, pool)

    def _release_one(self, pool: _Pool, size: int) -> bool:
        """`release_available_cached_blocks`: oversize blocks, if there are any, until enough is free."""
        if self.settings.max_split_size is None or self.settings.expandable_segments:
            return False
        wanted = max(size, self._never_split)
        at = bisect_left(pool.sizes, (wanted, 0))
        if at < len(pool.sizes):
            self._release(pool.at[pool.sizes[at][1]])
            return True
        released = 0
        while released < wanted and pool.sizes and pool.sizes[-1][0] >= self._never_split:
            released += pool.sizes[-1][0]
            self._release(pool.at[pool.sizes[-1][1]])
        return released >= wanted

    def _release_all(self) -> None:
        """`release_cached_blocks`: every segment that is wholly free, every page of expandable ones."""
        for pool in (self._large, self._small):
            for block in [pool.at[address] for _, address in pool.sizes]:
                if self.settings.expandable_segments:
                    self._unmap(block)
                elif not block.is_split:
                    self._release(block)

    def _release(self, block: _Block) -> None:
        block.pool.remove(block)
        self.reserved -= block.size
        self.segments -= 1

    def _merge(self, block: _Block) -> None:
        """`try_merge_blocks`, with both neighbours. `block` itself is in no pool yet."""
        before, after = block.before, block.after
        if before is not None and before.is_free and before.is_mapped == block.is_mapped:
            block.pool.remove(before)
            block.address = before.address
            block.size += before.size
            block.before = before.before
            if block.before is not None:
                block.before.after = block
        if after is not None and after.is_free and after.is_mapped == block.is_mapped:
            block.pool.remove(after)
            block.size += after.size
            block.after = after.after
            if block.after is not None:
                block.after.before = block

    # Expandable segments: one range of addresses, of which pages are mapped where they are needed.

    def _expand(self, pool: _Pool, size: int) -> _Block:
        """`try_allocate_expandable_block`: the lowest place that has room when it is mapped."""
        block = self._growing(pool, size)
        if not block.is_mapped:
            self._map(block, min(block.size, size))
        while block.size < size:
            following = block.after
            assert following is not None, "there is always address space behind"
            self._map(following, min(size - block.size, following.size))
            block = following  # it has taken the block before it in
        pool.remove(block)
        return block

    def _growing(self, pool: _Pool, size: int) -> _Block:
        """`find_expandable_block`."""
        for address in sorted(pool.unmapped):
            block = pool.unmapped[address]
            if block.before is not None and block.before.is_free:
                block = block.before
            room = 0
            reached: _Block | None = block
            while room < size and reached is not None and reached.is_free:
                room += reached.size
                reached = reached.after
            if room >= size:
                return block
        # Pages are told apart by address, so a segment begins at a multiple of its page.
        start = up(self._next_address, pool.page)
        nbytes = _ADDRESS_SPACE // pool.page * pool.page
        self._next_address = start + nbytes
        block = _Block(start, nbytes, pool, is_mapped=False)
        pool.add(block)
        self.segments += 1
        return block

    def _map(self, block: _Block, size: int) -> None:
        """`map_block`: memory for the first `size` bytes of an unmapped block, in whole pages."""
        pool = block.pool
        mapped = up(size, pool.page)
        pool.remove(block)
        block.is_mapped = True
        if mapped < block.size:
            rest = _Block(block.address + mapped, block.size - mapped, pool, is_mapped=False)
            block.size = mapped
            _link(block, rest, block.after)
            pool.add(rest)
        self._merge(block)
        pool.add(block)
        self.reserved += mapped

    def _unmap(self, block: _Block) -> None:
        """`unmap_block`: gives back the pages that lie wholly in a free block."""
        pool = block.pool
        start = up(block.address, pool.page)
        stop = (block.address + block.size) // pool.page * pool.page
        if start >= stop:
            return
        pool.remove(block)
        if head := start - block.address:
            kept = _Block(block.address, head, pool)
            _link(block.before, kept, block)
            pool.add(kept)
        if tail := block.address + block.size - stop:
            kept = _Block(stop, tail, pool)
            _link(block, kept, block.after)
            pool.add(kept)
        block.address, block.size, block.is_mapped = start, stop - start, False
        self.reserved -= block.size
        self._merge(block)
        if block.is_split:
            pool.add(block)
        else:  # nothing of the segment is mapped any more
            self.segments -= 1


def _growable(block: _Block) -> int:
    after = block.after
    return block.size + (after.size if after is not None and not after.is_mapped else 0)


def _link(before: _Block | None, block: _Block, after: _Block | None) -> None:
    """Put `block` between two neighbours."""
    block.before, block.after = before, after
    if before is not None:
        before.after = block
    if after is not None:
        after.before = block
