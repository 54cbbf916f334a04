"""The tiers below the device: where bytes go, and how."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import UntypedStorage

from penstock.dispatch.resident import Part
from penstock.engine.extents import Extent
from penstock.ir.machine import Tier as TierFacts

__all__ = ["Cancelled", "TierStore", "probe_bytes"]

_PROBE = 64 << 20
_PAGE = 4096


def probe_bytes(capacity: int) -> int:
    """With how many bytes a tier of `capacity` is measured."""
    return max(_PAGE, min(_PROBE, capacity // _PAGE * _PAGE))


class Cancelled(Exception):
    """A copy out was called back before it ended. Not an error: the bytes are where they were."""


class TierStore(Protocol):
    """One tier. `reserve` and `release` are called by one thread, copies by the tier's lanes."""

    name: str
    before_growth: Callable[[], None]
    """Called before `footprint` grows."""

    def reserve(self, nbytes: int) -> Extent:
        """Space for `nbytes`. Raises `TierError` if the tier is full."""
        ...

    def release(self, extent: Extent) -> None: ...

    def write(
        self,
        source: UntypedStorage,
        extent: Extent,
        parts: Sequence[Part],
        is_cancelled: Callable[[], bool],
    ) -> None:
        """Copy parts of a storage out, each to the same place in `extent`.

        They begin where a block does. Raises `Cancelled` soon after `is_cancelled` says so, `TierError`
        on failure.
        """
        ...

    def read(self, extent: Extent, target: UntypedStorage, parts: Sequence[Part]) -> None:
        """Copy parts back; of what lies between them nobody wants the bytes."""
        ...

    def used(self) -> int:
        """Bytes in use."""
        ...

    def footprint(self) -> int:
        """Bytes of the device's own memory that the tier fills: a host tier beside a CPU."""
        ...

    def probe(self) -> TierFacts:
        """Measure this tier: capacity, bandwidth of each direction."""
        ...

    def close(self) -> None:
        """Give everything back. Idempotent."""
        ...
