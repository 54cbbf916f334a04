"""One storage leaves and comes back, in every way and at every moment: the bits are the same."""

import gc
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, UntypedStorage

from gates import GatedStore, managing
from penstock.dispatch.resident import CAllocator, meter_for
from penstock.dispatch.storage import StorageRef, has_bytes
from penstock.engine.residency import Place, ResidencyManager
from penstock.errors import InternalError, TierError
from runs import DEVICES, MIB, tells_of_pages

NOTHING: Callable[[int], None] = lambda nbytes: None  # noqa: E731


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def mounted(device: torch.device, exchange: str) -> Iterator[tuple[ResidencyManager, GatedStore]]:
    with managing(device) as both:
        yield both


@pytest.fixture
def manager(mounted: tuple[ResidencyManager, GatedStore]) -> ResidencyManager:
    return mounted[0]


@pytest.fixture
def store(mounted: tuple[ResidencyManager, GatedStore]) -> GatedStore:
    return mounted[1]


def noise(device: torch.device, numel: int = 50_001) -> Tensor:
    return torch.randn(numel, device=device)


def leave(manager: ResidencyManager, tensor: Tensor):
    """Evict the tensor's storage, all the way; returns its record."""
    resident = manager.meet(tensor.untyped_storage())
    copy = manager.evict(resident, "host")
    manager.settle(copy)
    return resident


def in_use(manager: ResidencyManager, store: GatedStore) -> int:
    manager._tidy()
    return store.used()


def assert_here(manager: ResidencyManager, tensor: Tensor, bits: Tensor) -> None:
    assert torch.equal(tensor, bits)
    resident = manager.known.get(tensor.untyped_storage()._cdata)
    assert resident is not None
    assert resident.place is Place.HERE
    assert not manager.absent
    assert manager.resident_bytes_away() == 0


# -- there and back -------------------------------------------------------------------------------


@pytest.mark.parametrize("numel", [1, 127, 1024, 4097, 1 << 20])
def test_bytes_leave_and_come_back(manager, store, device, numel: int) -> None:
    a = noise(device, numel)
    bits = a.clone()
    resident = leave(manager, a)
    assert not has_bytes(a.untyped_storage())
    assert manager.resident_bytes_away() == 4 * numel
    manager.bring_back(resident, NOTHING)
    assert_here(manager, a, bits)
    assert in_use(manager, store) == 0


def test_aliases_and_views_see_the_bytes_again(manager, device, exchange) -> None:
    a = noise(device, 6000)
    views = [a.view(60, 100).t(), a[17:400:3], a.view(torch.int32), a.detach()]
    bits = [view.clone() for view in views]
    resident = leave(manager, a)
    # A view made while the bytes are away; without an exchange the engine brings them back first.
    late = a[5:50] if exchange == "swaps" else None
    manager.bring_back(resident, NOTHING)
    assert all(torch.equal(view, was) for view, was in zip(views, bits, strict=True))
    assert late is None or torch.equal(late, a[5:50])
    views[0][3, 4] = 7.0
    assert a[4 * 100 + 3] == 7.0  # they still share


def test_moving_is_no_write(manager, device) -> None:
    """The version counter stays, so autograd's check for in-place changes is not set off."""
    w = noise(device).requires_grad_()
    h = w * 2
    loss = (h * h).sum()  # saves h
    version = h._version
    manager.bring_back(leave(manager, h), NOTHING)
    assert h._version == version
    loss.backward()
    assert torch.equal(w.grad, 8 * w.detach())


def test_a_storage_goes_there_and_back_many_times(manager, store, device) -> None:
    a = noise(device)
    bits = a.clone()
    for _ in range(10):
        manager.bring_back(leave(manager, a), NOTHING)
    assert_here(manager, a, bits)
    assert in_use(manager, store) == 0
    assert manager.statistics.evictions == manager.statistics.fetches == 10
    assert manager.statistics.traffic == {"out": 10 * a.nbytes, "back": 10 * a.nbytes}


def test_room_is_made_before_bytes_are_fetched(manager, device) -> None:
    a = noise(device)
    asked: list[int] = []
    manager.bring_back(leave(manager, a), asked.append)
    assert asked == [a.nbytes]
    manager.bring_back(manager.meet(a.untyped_storage()), asked.append)  # it is there
    assert asked == [a.nbytes]


def test_a_prefetched_storage_only_waits_for_its_copy(manager, store, device) -> None:
    a = noise(device)
    bits = a.clone()
    resident = leave(manager, a)
    store.reads.clear()
    assert manager.prefetch(resident) is not None
    assert resident.place is Place.ARRIVING
    assert manager.prefetch(resident) is None  # it is on its way
    store.reads.set()
    asked: list[int] = []
    manager.bring_back(resident, asked.append)
    assert_here(manager, a, bits)
    assert asked == []
    assert manager.statistics.fetches == 0
    assert manager.statistics.prefetches == 1


def test_what_is_shared_with_numpy_stays(manager) -> None:
    a = torch.randn(100)
    shared = a.numpy()
    assert not manager.is_movable(manager.meet(a.untyped_storage()), 0)
    assert shared[0] == a[0]


def test_a_storage_that_changed_its_size_stays(manager, device) -> None:
    a = noise(device)
    resident = manager.meet(a.untyped_storage())
    assert manager.is_movable(resident, 0)
    a.untyped_storage().resize_(2 * a.nbytes)
    assert not manager.is_movable(resident, 0)


# -- in mid-copy ----------------------------------------------------------------------------------


def test_a_copy_in_flight_is_called_back(manager, store, device) -> None:
    a = noise(device)
    bits = a.clone()
    store.writes.clear()
    resident = manager.meet(a.untyped_storage())
    manager.evict(resident, "host")
    assert resident.place is Place.LEAVING
    manager.bring_back(resident, NOTHING)
    assert_here(manager, a, bits)
    assert manager.statistics.recalled == 1
    assert manager.statistics.fetches == 0
    assert "read" not in store.entered
    assert in_use(manager, store) == 0


def test_a_prefetch_calls_a_copy_in_flight_back(manager, store, device) -> None:
    a = noise(device)
    bits = a.clone()
    store.writes.clear()
    resident = manager.meet(a.untyped_storage())
    copy = manager.evict(resident, "host")
    assert manager.prefetch(resident) is None
    copy.wait()
    assert copy.was_called_back
    manager.bring_back(resident, NOTHING)
    assert_here(manager, a, bits)


def test_a_copy_that_ended_before_it_was_called_back_is_fetched(manager, store, device) -> None:
    a = noise(device)
    bits = a.clone()
    resident = manager.meet(a.untyped_storage())
    manager.evict(resident, "host").wait()  # ended, and nobody settled it
    manager.bring_back(resident, NOTHING)
    assert_here(manager, a, bits)
    assert in_use(manager, store) == 0


@pytest.mark.parametrize("when", ["away", "leaving", "arriving"])
def test_what_dies_gives_its_space_back(manager, store, device, when: str) -> None:
    a = noise(device)
    resident = manager.meet(a.untyped_storage())
    if when == "leaving":
        store.writes.clear()
    copy = manager.evict(resident, "host")
    if when != "leaving":
        manager.settle(copy)
    if when == "arriving":
        store.reads.clear()
        copy = manager.prefetch(resident)
    del a
    store.writes.set()
    store.reads.set()
    copy.wait()
    gc.collect()
    assert copy.holder is None  # at once: it may be long until the next copy tidies up
    assert resident.ref() is None
    assert not manager.known
    assert not manager.absent
    assert in_use(manager, store) == 0
    assert manager.evict(resident, "host") is None  # and nothing more can happen to it
    assert manager.prefetch(resident) is None
    manager.bring_back(resident, NOTHING)


def test_an_address_used_again_is_another_storage(manager, device) -> None:
    """Keys are addresses, and a new storage may get the address of one that died."""
    seen = set()
    for _ in range(50):
        a = noise(device, 16)
        resident = manager.meet(a.untyped_storage())
        assert resident.ref() is a.untyped_storage()
        seen.add(resident.ref.key)
        del a
    assert len(seen) < 50  # it did happen
    assert not manager.known


def test_a_late_notice_of_the_former_owners_death_harms_nobody(manager, device) -> None:
    a = noise(device)
    resident = manager.meet(a.untyped_storage())
    late = StorageRef(a.untyped_storage())  # the same key, another reference
    manager._died(late)
    assert manager.known[resident.ref.key] is resident


# -- ahead of the eviction --------------------------------------------------------------------------


def begun(manager: ResidencyManager, tensor: Tensor):
    """A copy out of the tensor's storage has begun; its bytes are in use."""
    resident = manager.meet(tensor.untyped_storage())
    return resident, manager.copy_ahead(resident, "host")


@pytest.mark.parametrize("ends", ["before it leaves", "after it left"])
def test_a_copy_that_began_ahead_frees_the_bytes_when_they_have_left(
    manager, store, device, ends: str
) -> None:
    a = noise(device)
    bits = a.clone()
    if ends == "after it left":
        store.writes.clear()
    resident, copy = begun(manager, a)
    if ends == "before it leaves":
        copy.wait()
    assert torch.equal(a, bits)  # it is still there to be read
    assert resident.place is Place.HERE
    assert manager.resident_bytes_away() == 0
    assert manager.evict(resident, "host") is copy
    assert not has_bytes(a.untyped_storage()) or ends == "after it left"
    store.writes.set()
    manager.settle(copy)
    assert copy.holder is None
    assert manager.resident_bytes_away() == a.nbytes
    assert store.entered.count("write") == 1
    manager.bring_back(resident, NOTHING)
    assert_here(manager, a, bits)
    assert in_use(manager, store) == 0


def test_a_write_calls_off_a_copy_that_began_ahead(manager, store, device) -> None:
    a = noise(device)
    store.writes.clear()
    resident, copy = begun(manager, a)
    manager.call_off(resident)
    a.fill_(3.0)
    store.writes.set()
    copy.wait()
    assert manager.evict(resident, "host") is not copy
    manager.settle(resident.copy)
    manager.bring_back(resident, NOTHING)
    assert_here(manager, a, torch.full_like(a, 3.0))
    assert in_use(manager, store) == 0


def test_a_copy_that_began_ahead_is_called_back_like_any_other(manager, store, device) -> None:
    a = noise(device)
    bits = a.clone()
    store.writes.clear()
    resident, _ = begun(manager, a)
    manager.evict(resident, "host")
    manager.bring_back(resident, NOTHING)
    assert_here(manager, a, bits)
    assert "read" not in store.entered
    assert in_use(manager, store) == 0


def test_what_dies_while_it_is_copied_ahead_lives_until_the_copy_has_ended(
    manager, store, device
) -> None:
    a = noise(device)
    store.writes.clear()
    resident, copy = begun(manager, a)
    del a
    assert resident.ref() is not None
    store.writes.set()
    copy.wait()
    manager.close()  # the lane has let go of it
    gc.collect()
    assert resident.ref() is None
    assert not manager.known
    assert not manager.ahead
    assert in_use(manager, store) == 0


def test_a_copy_ahead_that_failed_is_made_again(manager, store, device) -> None:
    a = noise(device)
    bits = a.clone()
    store.fails = 1
    resident, copy = begun(manager, a)
    copy.wait()
    manager.settle(manager.evict(resident, "host"))
    manager.bring_back(resident, NOTHING)
    assert_here(manager, a, bits)
    assert in_use(manager, store) == 0


# -- dropping -------------------------------------------------------------------------------------


def test_a_dropped_value_is_remade_once(manager, device) -> None:
    a = noise(device)
    bits = a.clone()
    calls = []

    def remake() -> UntypedStorage:
        calls.append(1)
        return bits.clone().untyped_storage()

    resident = manager.meet(a.untyped_storage())
    manager.drop(resident, remake)
    assert not has_bytes(a.untyped_storage())
    assert resident.place is Place.DROPPED
    assert manager.resident_bytes_away() == a.nbytes
    manager.bring_back(resident, NOTHING)
    manager.bring_back(resident, NOTHING)
    assert_here(manager, a, bits)
    assert len(calls) == 1
    assert (manager.statistics.drops, manager.statistics.remakes) == (1, 1)


def test_a_remade_value_may_be_delivered_unasked(manager, device) -> None:
    a = noise(device)
    bits = a.clone()
    resident = manager.meet(a.untyped_storage())
    manager.drop(resident, lambda: pytest.fail("it was delivered"))
    manager.deliver(resident, bits.clone().untyped_storage())
    manager.bring_back(resident, NOTHING)
    assert_here(manager, a, bits)
    manager.deliver(resident, torch.zeros_like(bits).untyped_storage())  # too late: ignored
    assert_here(manager, a, bits)


def test_a_dropped_value_that_dies_lets_its_lineage_go(manager, device) -> None:
    class Lineage:
        def __call__(self) -> UntypedStorage:
            raise AssertionError

    a, remake = noise(device), Lineage()
    watched = weakref.ref(remake)
    manager.drop(manager.meet(a.untyped_storage()), remake)
    del remake
    assert watched() is not None
    del a
    gc.collect()
    assert watched() is None
    assert not manager.absent


# -- failures -------------------------------------------------------------------------------------


def test_a_failed_copy_out_is_told_and_loses_nothing(manager, store, device) -> None:
    a = noise(device)
    bits = a.clone()
    store.fails = 1
    resident = manager.meet(a.untyped_storage())
    copy = manager.evict(resident, "host")
    with pytest.raises(TierError, match="made to fail"):
        manager.settle(copy)
    with pytest.raises(TierError, match="made to fail"):
        manager.bring_back(resident, NOTHING)
    assert_here(manager, a, bits)
    assert in_use(manager, store) == 0


def test_a_failed_copy_in_is_told_and_may_be_tried_again(manager, store, device) -> None:
    a = noise(device)
    bits = a.clone()
    resident = leave(manager, a)
    store.fails = 1
    with pytest.raises(TierError, match="made to fail"):
        manager.bring_back(resident, NOTHING)
    assert resident.place is Place.AWAY
    manager.bring_back(resident, NOTHING)
    assert_here(manager, a, bits)


def test_a_full_tier_leaves_the_storage_as_it_is(device, exchange) -> None:
    with managing(device, capacity=16 * MIB) as (manager, store):
        store.reserve(16 * MIB)
        a = noise(device)
        bits = a.clone()
        resident = manager.meet(a.untyped_storage())
        with pytest.raises(TierError, match="full"):
            manager.evict(resident, "host")
        assert_here(manager, a, bits)


def test_an_interrupted_eviction_loses_nothing(
    manager, store, device, exchange, monkeypatch
) -> None:
    if exchange == "copies":
        pytest.skip("without an exchange of bytes there is no moment between")

    def interrupted(_: UntypedStorage) -> UntypedStorage:
        raise KeyboardInterrupt

    a = noise(device)
    bits = a.clone()
    resident = manager.meet(a.untyped_storage())
    with monkeypatch.context() as patch:
        patch.setattr("penstock.engine.residency.take_bytes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            manager.evict(resident, "host")
    manager.bring_back(resident, NOTHING)
    assert_here(manager, a, bits)
    assert in_use(manager, store) == 0
    manager.bring_back(leave(manager, a), NOTHING)
    assert_here(manager, a, bits)
    assert in_use(manager, store) == 0


def test_verifying_finds_bytes_that_changed_while_they_were_away(device, exchange) -> None:
    with managing(device, verify=True) as (manager, store):
        a, b = noise(device), noise(device)
        bits = b.clone()
        manager.bring_back(leave(manager, b), NOTHING)
        assert_here(manager, b, bits)
        resident = leave(manager, a)
        store._place(resident.extent, 5)[3] += 1
        with pytest.raises(InternalError, match="other bytes"):
            manager.bring_back(resident, NOTHING)


def test_what_other_threads_use_stays_until_the_last_has_left(device: str, exchange: str) -> None:
    tensor = torch.randn(100_000, device=device)
    with managing(torch.device(device)) as (manager, _):
        resident = manager.meet(tensor.untyped_storage())
        seen = []
        for visitors in (2, 1, 0):
            resident.visitors = visitors
            seen.append(manager.is_movable(resident, 1))
    assert seen == [False, False, True]


@tells_of_pages
def test_what_nobody_wrote_stays_unwritten(manager, store, device, exchange) -> None:
    if device.type == "cuda" or exchange == "copies":
        pytest.skip("there all of a storage has memory")
    CAllocator().loosen()  # what was freed before is given back: a hole in the heap has no pages
    a = torch.empty(48 * MIB, dtype=torch.uint8)
    a[4 * MIB : 8 * MIB] = 7
    meter = meter_for(device)
    resident = manager.meet(a.untyped_storage())
    resident.is_sparse = True
    before = meter.used()
    manager.settle(manager.evict(resident, "host"))
    assert 4 * MIB <= resident.held <= 9 * MIB  # its pages may be huge ones
    assert manager.resident_bytes_away() == resident.held
    manager.bring_back(resident, NOTHING)
    assert (a[4 * MIB : 8 * MIB] == 7).all()
    assert manager.statistics.traffic == {"out": resident.held, "back": resident.held}
    assert meter.used() - before - store.footprint() < 8 * MIB
    resident.is_sparse = False  # another program, which knows nothing of it
    a.fill_(9)
    leave(manager, a)
    manager.bring_back(resident, NOTHING)
    assert (a == 9).all()
