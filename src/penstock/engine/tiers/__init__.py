"""The tiers below the device: where bytes go, and how."""

from collections.abc import Callable
from typing import Protocol

from torch import UntypedStorage

from penstock.engine.extents import Extent
from penstock.ir.machine import Tier as TierFacts

__all__ = ["Cancelled", "TierStore"]


class Cancelled(Exception):
    """A copy out was called back before it ended. Not an error: the bytes are where they were."""


class TierStore(Protocol):
    """One tier. `reserve` and `release` are called by one thread, copies by the tier's lanes."""

    name: str

    def reserve(self, nbytes: int) -> Extent:
        """Space for `nbytes`. Raises `TierError` if the tier is full."""
        ...

    def release(self, extent: Extent) -> None: ...

    def write(
        self, source: UntypedStorage, extent: Extent, is_cancelled: Callable[[], bool]
    ) -> None:
        """Copy out. Raises `Cancelled` soon after `is_cancelled` says so, `TierError` on failure."""
        ...

    def read(self, extent: Extent, target: UntypedStorage) -> None:
        """Copy back the first bytes of `extent`, as many as `target` holds."""
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
