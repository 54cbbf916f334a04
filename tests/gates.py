"""Tiers whose copies wait for the test: so that what happens in mid-copy can be seen, not timed."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import UntypedStorage

from penstock.dispatch.resident import Part
from penstock.engine.extents import Extent
from penstock.engine.lanes import Copy, ThreadLane
from penstock.engine.residency import MountedTier, ResidencyManager
from penstock.engine.tiers import Cancelled
from penstock.engine.tiers.host import HostStore
from penstock.errors import TierError
from runs import MIB

__all__ = ["GatedStore", "managing"]


class GatedStore(HostStore):
    """A host tier with a gate in each direction, open at first, and room for errors."""

    def __init__(self, device: torch.device, capacity: int = 300 * MIB) -> None:
        super().__init__(device, capacity)
        self.writes, self.reads = threading.Event(), threading.Event()
        self.writes.set()
        self.reads.set()
        self.entered: list[str] = []
        self.fails = 0  # so many copies will

    def write(
        self,
        source: UntypedStorage,
        extent: Extent,
        parts: Sequence[Part],
        is_cancelled: Callable[[], bool],
    ) -> None:
        self._pass("write", self.writes, is_cancelled)
        super().write(source, extent, parts, is_cancelled)

    def read(self, extent: Extent, target: UntypedStorage, parts: Sequence[Part]) -> None:
        self._pass("read", self.reads, lambda: False)
        super().read(extent, target, parts)

    def _pass(self, verb: str, gate: threading.Event, is_cancelled: Callable[[], bool]) -> None:
        self.entered.append(verb)
        while not gate.wait(0.001):
            if is_cancelled():
                raise Cancelled
        if self.fails:
            self.fails -= 1
            raise TierError(f"this {verb} was made to fail")


@contextmanager
def managing(
    device: torch.device, *, capacity: int = 300 * MIB, verify: bool = False
) -> Iterator[tuple[ResidencyManager, GatedStore]]:
    store = GatedStore(device, capacity)
    tier = MountedTier(store, ThreadLane("out", store, device), ThreadLane("back", store, device))
    manager = ResidencyManager([tier], verify=verify)
    try:
        yield manager, store
    finally:
        store.writes.set()
        store.reads.set()
        manager.close()


def carried(lane: ThreadLane, copy: Copy) -> Copy:
    """The copy, put on the lane and ended."""
    lane.put(copy)
    copy.wait()
    return copy
