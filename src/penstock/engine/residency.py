"""Where the bytes of each storage are: the one state machine of the engine.

    HERE ──evict──▶ LEAVING ──▶ AWAY ──prefetch──▶ ARRIVING ──▶ HERE
      │                └──────── bring_back ─────────▲
      └──drop──▶ DROPPED ──────── bring_back ────────▲

A copy out may begin ahead of its eviction, while ops still read the bytes: the storage is HERE until
`evict` goes on with that copy. Whoever may write to the bytes meanwhile calls the copy off.

**Invariants.** A storage's bytes are in exactly one place: in the storage (HERE), in the holder of
a copy (LEAVING, ARRIVING), in a tier (AWAY), or nowhere and remakeable (DROPPED). Each transition
leaves them in one of these if it is interrupted: the exchange of bytes is one call into torch, and
whoever looks trusts the storage before the label. What dies while it is away gives its space back.

Storages are known by weak reference, so nothing lives longer because it is managed.
"""

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import UntypedStorage

from penstock.dispatch.resident import Part, bytes_of, parts_held, whole
from penstock.dispatch.storage import (
    CAN_SWAP,
    StorageRef,
    byte_view,
    give_bytes,
    has_bytes,
    key_of,
    nbytes_of,
    take_bytes,
)
from penstock.engine.extents import Extent
from penstock.engine.lanes import Copy, DirectLane, Lane
from penstock.engine.tiers import TierStore
from penstock.errors import InternalError, PenstockError, TierError

__all__ = ["MountedTier", "Place", "Remake", "ResidencyManager", "Resident", "Statistics"]


class Place(Enum):
    HERE = "here"
    LEAVING = "leaving"
    AWAY = "away"
    ARRIVING = "arriving"
    DROPPED = "dropped"


Remake = Callable[[], UntypedStorage]
"""Runs a dropped value's lineage and returns a storage that holds its bytes."""


@dataclass(slots=True, eq=False)
class Resident:
    """One storage that the engine manages."""

    ref: StorageRef
    nbytes: int
    parts: Sequence[Part]  # of it: what the device held when it last left, else all
    is_sparse: bool = False  # are those to be asked for when it leaves?
    place: Place = Place.HERE
    copy: Copy | None = None  # while it is HERE: one that began ahead
    tier: "MountedTier | None" = None
    extent: Extent | None = None
    remake: Remake | None = None
    touched: int = 0  # the engine's tick when an op last used it
    value: int | None = None  # the value of the followed trace that it holds now
    exposed: int = 0  # not to be moved before this tick: someone may hold its address
    visitors: int = 0  # calls of other threads that use it now
    checksum: int | None = None

    @property
    def held(self) -> int:
        """Bytes that the device holds for it when it is here."""
        return bytes_of(self.parts)


@dataclass(frozen=True, slots=True)
class MountedTier:
    """A tier with its two lanes."""

    store: TierStore
    out: Lane
    back: Lane

    def close(self) -> None:
        self.out.close()
        self.back.close()
        self.store.close()


@dataclass(slots=True)
class Statistics:
    """Counts since the manager was made."""

    evictions: int = 0
    fetches: int = 0  # brought back because an op needed them at once
    prefetches: int = 0
    drops: int = 0
    remakes: int = 0
    recalled: int = 0  # needed again before they had left
    traffic: dict[str, int] = field(default_factory=dict)  # bytes by lane


class ResidencyManager:
    """Moves storages between the device and its tiers.

    `verify`: compare a checksum of what comes back with one of what left (slow; for tests).
    """

    def __init__(self, tiers: Sequence[MountedTier], *, verify: bool = False) -> None:
        self.tiers = {tier.store.name: tier for tier in tiers}
        self.known: dict[int, Resident] = {}  # by storage key
        self.absent: dict[int, Resident] = {}  # those of `known` that are not HERE
        self.ahead: dict[int, Resident] = {}  # those that are HERE and being copied out
        self.statistics = Statistics()
        # Told how many bytes an allocation did not find for which there should have been room; says
        # whether there is more now.
        self.when_short: Callable[[int], bool] = lambda nbytes: False
        # Told how many bytes a copy in takes next, on the thread that carries it.
        self.make_way: Callable[[int], None] = lambda nbytes: None
        self._verify = verify
        self._incoming: deque[Copy] = deque()  # copies in; those that have ended go in time
        self._orphans: deque[tuple[Copy, MountedTier]] = deque()  # copies whose storage died
        self._vacated: deque[tuple[Extent, MountedTier]] = deque()  # space of storages that died

    # -- knowing -----------------------------------------------------------------------------

    def meet(self, storage: UntypedStorage) -> Resident:
        """The record of a living storage, made if it is new."""
        known = self.known.get(key_of(storage))
        if known is None:
            ref = StorageRef(storage, self._died)
            nbytes = nbytes_of(storage)
            known = self.known[ref.key] = Resident(ref, nbytes, whole(nbytes))
        return known

    def is_movable(self, resident: Resident, tick: int) -> bool:
        storage = resident.ref()
        return (
            resident.place is Place.HERE
            and resident.exposed <= tick
            and not resident.visitors
            and storage is not None
            and storage.resizable()  # not shared with numpy or another process
            and nbytes_of(storage) == resident.nbytes
        )

    # -- leaving -----------------------------------------------------------------------------

    def copy_ahead(self, resident: Resident, tier: str) -> Copy | None:
        """Start to copy a storage out while its bytes are in use; None if it died.

        `evict` goes on with this copy. Raises `TierError` if the tier is full.
        """
        storage = resident.ref()
        if storage is None:
            return None
        if resident.ref.key not in self.ahead:
            copy = self._copy_out(resident, storage, tier, lender=storage)
            self.ahead[resident.ref.key] = resident
            self.tiers[tier].out.put(copy)
        return resident.copy

    def call_off(self, resident: Resident) -> None:
        """Somebody may write to a storage: a copy that began ahead is worth nothing."""
        if self.ahead.pop(resident.ref.key, None) is not None:
            self._abandon(resident)

    def evict(self, resident: Resident, tier: str) -> Copy | None:
        """Start to copy a storage out; None if it died. Raises `TierError` if the tier is full."""
        storage = resident.ref()
        if storage is None:
            return None
        begun = self._begun(resident, tier)
        copy = begun or self._copy_out(resident, storage, tier)
        if self._verify:
            resident.checksum = _checksum(storage)
        resident.place = Place.LEAVING
        self.absent[resident.ref.key] = resident
        copy.take_over(take_bytes(storage) if CAN_SWAP else storage)
        self.ahead.pop(resident.ref.key, None)
        if begun is None:
            self.tiers[tier].out.put(copy)
        self.statistics.evictions += 1
        return copy

    def _copy_out(
        self,
        resident: Resident,
        storage: UntypedStorage,
        tier: str,
        lender: UntypedStorage | None = None,
    ) -> Copy:
        """A copy out that is on no lane yet, with space for it."""
        mounted = self.tiers[tier]
        self._tidy()
        extent = mounted.store.reserve(resident.nbytes)
        resident.parts = parts_held(storage) if resident.is_sparse else whole(resident.nbytes)
        copy = Copy(
            resident.nbytes, extent, None, inward=False, parts=resident.parts, lender=lender
        )
        resident.tier, resident.extent, resident.copy = mounted, extent, copy
        self._count(mounted.out, copy.moved)
        return copy

    def _begun(self, resident: Resident, tier: str) -> Copy | None:
        """The copy to `tier` that began ahead, if it can be gone on with."""
        if resident.ref.key not in self.ahead:
            return None
        copy, mounted = resident.copy, resident.tier
        if copy is not None and copy.error is None and mounted is self.tiers[tier]:
            return copy
        self.call_off(resident)
        return None

    def drop(self, resident: Resident, remake: Remake) -> None:
        """Free a storage's bytes; `remake` brings them back."""
        storage = resident.ref()
        if storage is None:
            return
        self.call_off(resident)
        if self._verify:
            resident.checksum = _checksum(storage)
        resident.remake, resident.place = remake, Place.DROPPED
        self.absent[resident.ref.key] = resident
        if CAN_SWAP:
            take_bytes(storage).resize_(0)
        else:
            storage.resize_(0)
        self.statistics.drops += 1

    def settle(self, copy: Copy) -> None:
        """Wait until a copy out has ended, and free its bytes. Raises the error of a failed one."""
        copy.drain()
        if copy.error is not None:
            raise _told(copy.error)

    # -- coming back -------------------------------------------------------------------------

    def prefetch(self, resident: Resident, after: Iterable[Copy] = ()) -> Copy | None:
        """Start to copy a storage back; None if there is nothing to do."""
        storage = resident.ref()
        if storage is None or resident.place not in (Place.LEAVING, Place.AWAY):
            return None
        if resident.place is Place.LEAVING:
            assert resident.copy is not None
            if not resident.copy.is_done():
                resident.copy.call_back()  # it is wanted back before it has gone
                return None
            if not resident.copy.has_gone():
                return None
            resident.copy.free()
        assert resident.tier is not None and resident.extent is not None
        copy = Copy(
            resident.nbytes,
            resident.extent,
            None if CAN_SWAP else storage,
            inward=True,
            parts=resident.parts,
            after=tuple(after),
            make_way=self.make_way,
        )
        resident.copy, resident.place = copy, Place.ARRIVING
        self._forget_ended()
        self._incoming.append(copy)
        resident.tier.back.put(copy)
        self.statistics.prefetches += 1
        self._count(resident.tier.back, copy.moved)
        return copy

    def promised(self) -> int:
        """Bytes that copies in will take when they begin, beyond those that they wait to be freed."""
        self._forget_ended()
        coming = [copy for copy in self._incoming if not copy.has_begun()]
        freed = {id(out): out.moved for copy in coming for out in copy.after if not out.is_done()}
        return max(0, sum(copy.moved for copy in coming) - sum(freed.values()))

    def arriving(self) -> int:
        """Bytes of copies in that have begun and not ended: nobody knows how many have memory by now."""
        self._forget_ended()
        begun = (copy for copy in self._incoming if copy.has_begun() and not copy.is_done())
        return sum(copy.moved for copy in begun)

    def _forget_ended(self) -> None:
        while self._incoming and self._incoming[0].is_done():
            self._incoming.popleft()

    def leaving(self) -> list[Copy]:
        """Copies out that are under way, oldest first: when they have ended, their bytes are free."""
        found = (one.copy for one in self.absent.values() if one.place is Place.LEAVING)
        return [copy for copy in found if copy is not None and not copy.is_done()]

    def rest(self) -> None:
        """Wait until no copy is under way."""
        copies = [resident.copy for resident in list(self.absent.values())]
        for copy in (*copies, *(orphan for orphan, _ in list(self._orphans))):
            if copy is not None:
                copy.wait()

    def bring_back(self, resident: Resident, make_room: Callable[[int], None]) -> None:
        """Have a storage's bytes there when this returns.

        `make_room(nbytes)` is called before bytes are taken that nobody has made room for.
        Raises `TierError` if the tier failed.
        """
        storage = resident.ref()
        if storage is None:
            return
        if resident.place is not Place.HERE and CAN_SWAP and has_bytes(storage):
            # A transition was interrupted, before or after its exchange of bytes.
            if resident.extent is not None:
                self._abandon(resident)
            self._arrived(resident)
        match resident.place:
            case Place.HERE:
                return
            case Place.LEAVING:
                self._recall(resident, storage, make_room)
            case Place.AWAY:
                self._fetch(resident, storage, make_room)
            case Place.ARRIVING:
                self._receive(resident, storage, make_room)
            case Place.DROPPED:
                assert resident.remake is not None
                self.deliver(resident, resident.remake())

    def deliver(self, resident: Resident, holder: UntypedStorage) -> None:
        """A dropped storage was remade: `holder` has its bytes."""
        storage = resident.ref()
        if storage is not None and resident.place is Place.DROPPED:
            give_bytes(storage, holder)
            self.statistics.remakes += 1
            self._arrived(resident)

    def _recall(
        self, resident: Resident, storage: UntypedStorage, make_room: Callable[[int], None]
    ) -> None:
        copy = resident.copy
        assert copy is not None
        if copy.is_queued:
            copy.call_back()
            copy.wait()
        if copy.holder is None:
            resident.place = Place.AWAY
            self._fetch(resident, storage, make_room)
            return
        give_bytes(storage, copy.holder)  # it never left, or its bytes are not freed yet
        copy.holder = None
        self._release(resident)
        self._arrived(resident)
        self.statistics.recalled += 1
        if copy.error is not None:
            raise _told(copy.error)

    def _fetch(
        self, resident: Resident, storage: UntypedStorage, make_room: Callable[[int], None]
    ) -> None:
        make_room(resident.held)
        self.statistics.fetches += 1
        if self.prefetch(resident) is not None:
            self.statistics.prefetches -= 1
        self._receive(resident, storage, make_room)

    def _receive(
        self, resident: Resident, storage: UntypedStorage, make_room: Callable[[int], None]
    ) -> None:
        copy = resident.copy
        assert copy is not None
        copy.wait()
        while copy.error is not None:
            resident.place = Place.AWAY
            if _is_out_of_memory(copy.error):
                make_room(resident.held)
                if not self.when_short(resident.held):
                    raise _told(copy.error)
            elif isinstance(copy.error, Exception):  # else it was interrupted
                raise _told(copy.error)
            self.prefetch(resident)
            copy = resident.copy
            assert copy is not None
            copy.wait()
        if copy.holder is not None:  # else they were read into the storage itself
            give_bytes(storage, copy.holder)
        self._release(resident)
        self._arrived(resident)

    def _arrived(self, resident: Resident) -> None:
        resident.place = Place.HERE
        resident.copy = resident.remake = None
        self.absent.pop(resident.ref.key, None)
        self.ahead.pop(resident.ref.key, None)
        if self._verify and resident.checksum is not None:
            storage = resident.ref()
            if storage is not None and _checksum(storage) != resident.checksum:
                raise InternalError(
                    f"a storage of {resident.nbytes} bytes came back with other bytes than it had"
                )
            resident.checksum = None

    # -- the end -----------------------------------------------------------------------------

    def _died(self, ref: StorageRef) -> None:
        # May run anywhere, even inside one of the methods above: it only appends and pops.
        resident = self.known.get(ref.key)
        if resident is None or resident.ref is not ref:
            return
        del self.known[ref.key]
        self.absent.pop(ref.key, None)
        self.ahead.pop(ref.key, None)
        resident.remake = None
        if resident.extent is None or resident.tier is None:
            return
        if resident.copy is not None and not resident.copy.is_done():
            resident.copy.abandon()
            self._orphans.append((resident.copy, resident.tier))
        else:
            if resident.copy is not None:
                resident.copy.holder = None
            self._vacated.append((resident.extent, resident.tier))

    def _tidy(self) -> None:
        """Take back the space of storages that died."""
        for _ in range(len(self._orphans)):
            copy, tier = self._orphans.popleft()
            if copy.is_done():
                copy.holder = None
                self._vacated.append((copy.extent, tier))
            else:
                self._orphans.append((copy, tier))
        while self._vacated:
            extent, tier = self._vacated.popleft()
            tier.store.release(extent)

    def _release(self, resident: Resident) -> None:
        assert resident.extent is not None and resident.tier is not None
        self._vacated.append((resident.extent, resident.tier))
        resident.extent = resident.tier = None

    def _abandon(self, resident: Resident) -> None:
        """Give the space of a copy that nobody wants back, as soon as it has stopped."""
        copy = resident.copy
        if copy is None or copy.is_done() or not copy.is_queued:
            self._release(resident)
        else:
            assert resident.tier is not None
            copy.call_back()
            self._orphans.append((copy, resident.tier))
            resident.extent = resident.tier = None
        resident.copy = None

    def _count(self, lane: Lane, nbytes: int) -> None:
        traffic = self.statistics.traffic
        traffic[lane.name] = traffic.get(lane.name, 0) + nbytes

    def resident_bytes_away(self) -> int:
        """Bytes of living storages that the device does not hold, or is just giving back."""
        return sum(resident.held for resident in list(self.absent.values()))

    def become_child(self) -> None:
        """After a fork, in the child: what was on its way has stopped, and no lane has a thread."""
        for resident in self.absent.values():
            if resident.place is Place.ARRIVING:
                resident.place = Place.AWAY
            if resident.copy is not None and not resident.copy.is_done():
                resident.copy.was_called_back = True
                resident.copy.end()
        for name, tier in self.tiers.items():
            back = DirectLane(tier.back.name, tier.store)
            self.tiers[name] = replaced = MountedTier(tier.store, tier.out, back)
            for resident in self.absent.values():
                if resident.tier is tier:
                    resident.tier = replaced

    def close(self) -> None:
        """End the lanes and give the tiers back. What is still away is lost: bring it back first."""
        for tier in self.tiers.values():
            tier.close()


def _checksum(storage: UntypedStorage) -> int:
    # A copy, because numpy would mark the storage itself as shared.
    copied = byte_view(storage).to("cpu", copy=True)
    return zlib.crc32(torch._C.TensorBase.numpy(copied).data)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def _told(error: BaseException) -> BaseException:
    if isinstance(error, PenstockError):
        return error
    return TierError(f"a copy failed: {error}")
