"""What is asked of an allocator, and what it held after each request."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from penstock.errors import TraceError
from penstock.ir.trace import StorageId, Trace

__all__ = [
    "Allocator",
    "Free",
    "Malloc",
    "Replay",
    "Request",
    "Usage",
    "allocations",
    "replay",
    "up",
]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Malloc:
    """A request for `nbytes`, known as `block` until it is freed."""

    block: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Free:
    block: int


Request: TypeAlias = Malloc | Free


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes at one moment: asked for by tensors, given to them, held for them."""

    live: int
    allocated: int
    reserved: int

    @property
    def fragmentation(self) -> int:
        """Bytes that are held and serve nobody."""
        return self.reserved - self.allocated


@dataclass(frozen=True)
class Replay:
    """What an allocator held after each request."""

    live: NDArray[np.int64]
    allocated: NDArray[np.int64]
    reserved: NDArray[np.int64]
    segments: NDArray[np.int64]
    failed: int | None = None  # the request that found no room, the last one that was replayed
    retries: int = 0  # how often all cached segments were given back to meet a request

    @property
    def live_peak(self) -> int:
        return int(self.live.max(initial=0))

    @property
    def allocated_peak(self) -> int:
        return int(self.allocated.max(initial=0))

    @property
    def reserved_peak(self) -> int:
        return int(self.reserved.max(initial=0))

    @property
    def at_peak(self) -> Usage:
        """When most was reserved, for the first time.

        Then a new segment was needed: what was free fitted no request, so it is fragmentation.
        """
        if not len(self.reserved):
            return Usage(0, 0, 0)
        at = int(self.reserved.argmax())
        return Usage(int(self.live[at]), int(self.allocated[at]), int(self.reserved[at]))

    @property
    def segments_at_peak(self) -> int:
        return int(self.segments[self.reserved.argmax()]) if len(self.reserved) else 0


def allocations(trace: Trace, *, steps: int = 1) -> Iterator[Request]:
    """The requests of a step in op order: what is alive before it, and then for each op its outputs,
    its workspace, and what dies with it. In the first step, blocks are storage ids, and op `i`'s
    workspace is block `-1-i`.

    With `steps`, the same step again and again: what outlives a step (a new gradient) is there when
    the next begins, in the place of a storage of its size that died (the gradient before).
    """
    values = trace.values
    outlives = {value.storage for value in values if value.freed is None}
    initial = [values[value].storage for value in trace.initial]
    size = {value.storage: value.nbytes for value in values}
    born = [s for s in dict.fromkeys(v.storage for v in values) if s not in set(initial)]
    heirs: dict[int, list[StorageId]] = {}
    for storage in born:
        if storage in outlives:
            heirs.setdefault(size[storage], []).append(storage)
    heir = {
        storage: storage if storage in outlives else heirs[size[storage]].pop(0)
        for storage in initial
        if storage in outlives or heirs.get(size[storage])
    }
    orphans = [storage for left in heirs.values() for storage in left]  # nobody's place: dropped

    block: dict[StorageId, int] = {}
    for step in range(steps):
        offset = step * len(values)
        block = {storage: block[one] for storage, one in heir.items() if one in block}
        for storage in initial:
            if storage not in block:
                block[storage] = offset + storage
                yield Malloc(block[storage], size[storage])
        for op, made, gone in zip(trace.ops, trace.fresh, trace.freed_after, strict=True):
            for value in made:
                block[values[value].storage] = offset + values[value].storage
                yield Malloc(block[values[value].storage], values[value].nbytes)
            if op.workspace:
                yield Malloc(-1 - op.index, op.workspace)
                yield Free(-1 - op.index)
            for value in gone:
                yield Free(block.pop(values[value].storage))
        if step < steps - 1:
            yield from (Free(block.pop(storage)) for storage in orphans)


class Allocator(Protocol[_T]):
    @property
    def reserved(self) -> int: ...
    @property
    def segments(self) -> int: ...
    @property
    def retries(self) -> int: ...
    def malloc(self, nbytes: int) -> _T | None: ...
    def free(self, block: _T) -> None: ...
    def size_of(self, block: _T) -> int: ...


def replay(requests: Iterable[Request], allocator: Allocator[_T]) -> Replay:
    held: dict[int, tuple[int, _T | None]] = {}  # bytes asked for, and the block given (none for 0)
    live = allocated = 0
    history: list[tuple[int, int, int, int]] = []
    failed = None
    for position, request in enumerate(requests):
        match request:
            case Malloc(block=name, nbytes=nbytes):
                if name in held or nbytes < 0:
                    what = "is asked for twice" if name in held else f"has {nbytes} bytes"
                    raise TraceError(f"request {position}: block {name} {what}")
                given = allocator.malloc(nbytes) if nbytes else None
                if nbytes and given is None:
                    failed = position
                else:
                    held[name] = nbytes, given
                    live += nbytes
                    allocated += 0 if given is None else allocator.size_of(given)
            case Free(block=name):
                if name not in held:
                    raise TraceError(f"request {position} frees block {name}, which is not held")
                nbytes, given = held.pop(name)
                live -= nbytes
                if given is not None:
                    allocated -= allocator.size_of(given)
                    allocator.free(given)
        history.append((live, allocated, allocator.reserved, allocator.segments))
        if failed is not None:
            break
    columns = np.array(history, np.int64).reshape(-1, 4)
    return Replay(
        live=columns[:, 0],
        allocated=columns[:, 1],
        reserved=columns[:, 2],
        segments=columns[:, 3],
        failed=failed,
        retries=allocator.retries,
    )


def up(number: int, step: int) -> int:
    """The least multiple of `step` that is not below `number`."""
    return -(-number // step) * step
