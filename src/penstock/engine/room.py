"""How much room a budget leaves on a device, and how what is free there is given back."""

import time
from contextlib import AbstractContextManager

import torch

from penstock.dispatch.resident import CAllocator, Meter
from penstock.engine.residency import ResidencyManager
from penstock.simulate.run import most_held

__all__ = ["Room"]

_PATIENCE = 50
"""The C library counts free pieces to tell what is in use: for one part in so many of the time at most."""


class Room:
    """The account of one device under a budget.

    `base` is what `meter` reads when no tensor lives on the device and no tier fills any of it: the
    budget counts from there.
    `allocator` may keep what is freed; it has to give it back before anything is evicted for want of
    room. On a GPU there is none: its own allocator keeps what is freed, and counts it as free.
    """

    def __init__(
        self,
        device: torch.device,
        manager: ResidencyManager,
        budget: int,
        meter: Meter,
        base: int,
        allocator: CAllocator | None = None,
    ) -> None:
        self.device = device
        self.budget, self.meter, self.base = budget, meter, base
        self._manager, self._allocator = manager, allocator
        self._spare = 0  # bytes missing, from which what is free and kept goes back; mostly below 0
        self._held_before = 0  # bytes, when the allocator began to keep
        self._grown, self._look_again = 0, 0.0  # bytes since; when to ask for them again
        self._peak = self._needed = 0  # bytes, while the tiers filled less than they do now
        for tier in manager.tiers.values():
            tier.store.before_growth = self._note_peak

    def used(self) -> int:
        """Bytes that the device holds for this session now."""
        return self.meter.used() - self.base - self.footprint()

    def footprint(self) -> int:
        """Bytes of the device's memory that its tiers fill, which are not the step's."""
        return sum(tier.store.footprint() for tier in self._manager.tiers.values())

    def in_use(self) -> int:
        """`used`, without what is free and kept: as of late, where the C library takes long to tell."""
        if self._allocator is None or not self._allocator.keeps:
            return self.used()
        if (now := time.perf_counter()) >= self._look_again:
            self._grown = self._allocator.grown()
            self._look_again = now + _PATIENCE * (time.perf_counter() - now)
        return self._held_before + self._grown

    def peak(self) -> int:
        """The most bytes that the device held for this session since `reset_peak`."""
        return max(self._peak, self.meter.peak() - self.base - self.footprint())

    def needed(self) -> int:
        """The most bytes `used` since `reset_peak`: not what a GPU's allocator could have given back."""
        return max(self._needed, self.meter.needed() - self.base - self.footprint())

    def reset_peak(self) -> None:
        self._peak = self._needed = 0
        self.meter.reset_peak()

    def _note_peak(self) -> None:
        """What the meter read so far was beside a smaller footprint."""
        self._peak, self._needed = self.peak(), self.needed()
        self.meter.reset_peak()

    def begin_here(self) -> None:
        """What is held now is no more the step's."""
        self.base = self.meter.used() - self.footprint()
        self.reset_peak()

    def lacking(self, nbytes: int) -> int:
        """How many bytes are missing, if `nbytes` more are taken and what is on its way in arrives."""
        promised = self._manager.promised() if self.device.type == "cpu" else 0  # a GPU's are taken
        return self.used() + promised + nbytes - self.budget

    def still_lacking(self, nbytes: int) -> int:
        """`lacking`, without what is free and kept."""
        lacking = self.lacking(nbytes)
        return self.lacking(nbytes) if lacking > 0 and self._reclaim() else lacking

    # -- what is free and kept ---------------------------------------------------------------

    @property
    def keeps_freed(self) -> bool:
        """May what is freed stay with the process, and count as used?"""
        return self._allocator is not None and self._allocator.keeps

    @property
    def may_keep_freed(self) -> bool:
        """Would `keep_freed` do anything?"""
        return self._allocator is not None and self._allocator.may_keep

    def keep_freed(self) -> None:
        """From now on, and as long as there is room, what is freed stays: taking it again costs time."""
        if self._allocator is not None and not self._allocator.keeps:
            self._held_before, self._look_again = self.used(), 0.0
            self._allocator.keep()

    def return_freed(self, *, for_good: bool = False) -> None:
        """What is freed goes back, and counts no more. `for_good`: `keep_freed` will do nothing."""
        if self._allocator is not None:
            self._allocator.tighten(for_good=for_good)

    def held_tight(self) -> AbstractContextManager[None]:
        """What is freed meanwhile goes back at once, though all else is kept. Only where it is kept."""
        assert self._allocator is not None
        return self._allocator.held_tight()

    def expect(self, peak: int, *, keeps_all: bool) -> None:
        """The plan that is followed was said to lead to `peak`; does it keep all values?"""
        self._spare = most_held(peak, self.budget, keeps_all=keeps_all) - self.budget

    def make_way(self, nbytes: int, scratch: int = 0) -> bool:
        """Give back what is free, if `nbytes` more might lead above what was expected.

        `scratch`: those of them that the call frees again. It may be in several pieces, one after the
        other, and all are kept: is there too little room for that, as far as anyone knows?
        """
        if not self.keeps_freed or self._above(nbytes + scratch) <= 0:
            return False
        self._reclaim()
        return bool(scratch) and self._above(nbytes + scratch) > 0

    def _above(self, nbytes: int) -> int:
        """Bytes above what was expected, with `nbytes` more and what is on its way in."""
        return self.lacking(nbytes) + self._manager.arriving() - self._spare

    def make_way_in_lane(self, nbytes: int) -> None:
        """The same, on the lane's thread, before a copy in takes its memory: what it awaited is free."""
        if self.keeps_freed and self.used() + nbytes - self.budget > self._spare:
            self._reclaim()

    def _reclaim(self) -> bool:
        """Give back what is free now; was there perhaps anything?"""
        if self._allocator is None or not self._allocator.keeps:
            return False
        self._allocator.trim()
        return True
