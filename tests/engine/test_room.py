"""Room that a plan did not foresee: who has to go."""

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import UntypedStorage

from gates import GatedStore, managing
from penstock.dispatch.resident import CAllocator, CpuMeter
from penstock.engine.engine import Engine
from penstock.engine.lanes import ThreadLane
from penstock.engine.program import Program, compile_program
from penstock.engine.residency import MountedTier, Place
from penstock.engine.room import Room
from penstock.ir.machine import Device, Machine
from penstock.ir.plan import Plan
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.ir.trace import ValueId
from penstock.solve.best import outcome
from runs import MIB

CPU = torch.device("cpu")
BUDGET = 10 * MIB

TWO_VALUES = parse("""
    f a  x:I1K -> p:A1M  1ms    # value 1
    f b  x     -> q:A1M  1ms    # value 2
    f c  p     -> r:A1K  1ms
    f d  q     -> s:A1K  1ms
""")


class Reading:
    """A meter that says what the test wants; at first, that the step holds all of the budget."""

    def __init__(self, store: GatedStore) -> None:
        self.store = store  # whose bytes are not the step's
        self.held: Callable[[], int] = lambda: BUDGET

    def resident(self) -> int:
        return self.held() + self.store.footprint()

    used = peak = needed = recent_needed = resident

    def reset_peak(self) -> None:
        pass

    restart = reset_peak


@pytest.fixture
def store() -> GatedStore:
    return GatedStore(CPU)


@pytest.fixture
def meter(store: GatedStore) -> Reading:
    return Reading(store)


@pytest.fixture
def engine(store: GatedStore, meter: Reading) -> Iterator[Engine]:
    tier = MountedTier(store, ThreadLane("out", store, CPU), ThreadLane("back", store, CPU))
    made = Engine(CPU, [tier], BUDGET, meter, 0)
    yield made
    store.reads.set()
    store.writes.set()
    made.close()


def program() -> Program:
    found = outcome(Problem(TWO_VALUES, Machine(Device("cpu", 1 << 40)), 1 << 40), Plan())
    calls = [torch.ops.aten.relu.default] * len(TWO_VALUES.ops)
    return compile_program(calls, found.plan, found.schedule, found.timeline, {})


@pytest.mark.parametrize("is_known", [True, False])
def test_what_is_fetched_unplanned_sends_away_what_is_used_last_if_that_is_known(
    engine: Engine, meter: Reading, *, is_known: bool
) -> None:
    """Of p and q, p was touched first, and op 2, which is to run, reads it."""
    meter.held = lambda: BUDGET - MIB * len(engine.manager.absent)
    if is_known:
        engine._enter(program(), 3)  # `follow` counts an op when it begins to prepare it
    p, q = UntypedStorage(MIB), UntypedStorage(MIB)
    for tick, value, storage in ((1, 1, p), (2, 2, q)):
        engine._tick = tick
        engine._bind(ValueId(value), storage)
    engine._tick = 3
    engine._room_for_fetch(MIB)
    away = [storage for storage in (p, q) if engine.manager.meet(storage).place is not Place.HERE]
    assert away == [q if is_known else p]


@pytest.mark.parametrize(("stays", "away"), [(0, 1), (MIB, 2)])
def test_where_the_heap_keeps_what_left_more_is_sent_away(
    engine: Engine, meter: Reading, stays: int, away: int
) -> None:
    values = [UntypedStorage(MIB) for _ in range(4)]
    for storage in values:
        engine._touch(storage)
    engine._tick += 1
    meter.held = lambda: BUDGET - max(0, MIB * len(engine.manager.absent) - stays)
    engine._make_room(MIB, "an op", engine._oldest)
    assert len(engine.manager.absent) == away


def test_what_nobody_planned_leaves_no_room_to_fetch_ahead_unless_it_is_leaving(
    engine: Engine, store: GatedStore, meter: Reading
) -> None:
    assert engine._is_crowded(MIB)
    meter.held = lambda: BUDGET - MIB
    assert not engine._is_crowded(MIB)
    meter.held = lambda: BUDGET
    store.writes.clear()
    leaving = UntypedStorage(MIB)
    engine.manager.evict(engine.manager.meet(leaving), "host")
    assert not engine._is_crowded(MIB)


def test_what_is_on_its_way_in_has_its_room_already(
    engine: Engine, store: GatedStore, meter: Reading
) -> None:
    """Of a and b, which come back, a is being read: only the meter knows how far. b is to come."""
    coming = [UntypedStorage(MIB), UntypedStorage(MIB)]
    kept = UntypedStorage(MIB)
    engine._touch(kept)
    for storage in coming:
        resident = engine.manager.meet(storage)
        engine.manager.settle(engine.manager.evict(resident, "host"))
    meter.held = lambda: BUDGET - 2 * MIB
    store.reads.clear()
    first, second = [engine.manager.prefetch(engine.manager.meet(one)) for one in coming]
    while not first.has_begun():
        time.sleep(0.001)
    assert not second.has_begun()
    assert engine.room.lacking(MIB) == 0
    assert engine.room.lacking(2 * MIB) == MIB
    engine._tick += 1
    engine._make_room(2 * MIB, "an op", engine._oldest)
    assert engine.manager.meet(kept).place is not Place.HERE


def test_a_copy_in_that_waits_for_copies_out_takes_no_more_than_they_free(
    engine: Engine, store: GatedStore
) -> None:
    going, coming = UntypedStorage(MIB), UntypedStorage(3 * MIB)
    returning = engine.manager.meet(coming)
    engine.manager.settle(engine.manager.evict(returning, "host"))
    store.writes.clear()
    out = engine.manager.evict(engine.manager.meet(going), "host")
    engine.manager.prefetch(returning, [out])
    assert engine.manager.promised() == 2 * MIB


def test_before_anything_else_is_evicted_what_is_leaving_has_left(
    engine: Engine, store: GatedStore, meter: Reading
) -> None:
    going, kept = UntypedStorage(MIB), UntypedStorage(MIB)
    engine._touch(kept)
    store.writes.clear()
    copy = engine.manager.evict(engine.manager.meet(going), "host")
    meter.held = lambda: BUDGET - MIB if copy.holder is None else BUDGET
    threading.Timer(0.05, store.writes.set).start()
    engine._tick += 1
    engine._make_room(MIB, "an op", engine._oldest)
    assert copy.has_gone()
    assert engine.manager.meet(kept).place is Place.HERE


def keeping(engine: Engine) -> list[int]:
    """Let the engine's allocator keep what is freed; what it gives back, a MiB each time."""
    given_back: list[int] = []
    allocator = SimpleNamespace(keeps=True, trim=lambda: given_back.append(MIB))
    engine.room._allocator = cast("CAllocator", allocator)
    return given_back


def test_before_an_op_that_might_lead_above_the_plan_what_is_free_is_given_back(
    engine: Engine, meter: Reading
) -> None:
    given_back = keeping(engine)
    engine.room._spare = -3 * MIB  # the plan was said to take that much less than the budget
    meter.held = lambda: 5 * MIB - 2 * sum(given_back)
    assert not engine.room.make_way(2 * MIB)
    assert given_back == []
    assert not engine.room.make_way(2 * MIB, scratch=MIB)
    assert given_back == [MIB]  # for the scratch twice there was no room; now there is
    assert not engine.room.make_way(3 * MIB, scratch=MIB)
    assert engine.room.make_way(4 * MIB, scratch=3 * MIB)
    assert given_back == [MIB, MIB]


def test_a_copy_that_is_under_way_takes_its_room_although_it_does_not_hold_it_yet(
    engine: Engine, store: GatedStore, meter: Reading
) -> None:
    given_back = keeping(engine)
    storage = UntypedStorage(3 * MIB)
    coming = engine.manager.meet(storage)
    engine.manager.settle(engine.manager.evict(coming, "host"))
    engine.room._spare = -3 * MIB
    meter.held = lambda: 4 * MIB
    assert not engine.room.make_way(2 * MIB)
    store.reads.clear()
    copy = engine.manager.prefetch(coming)
    assert copy is not None
    while not copy.has_begun():
        time.sleep(0.001)
    assert engine.manager.arriving() == 3 * MIB
    engine.room.make_way(2 * MIB)
    assert given_back == [MIB]
    store.reads.set()
    copy.wait()
    assert engine.manager.arriving() == 0


def test_what_a_copy_in_waited_for_is_given_back_before_it_takes_its_memory(
    engine: Engine, store: GatedStore, meter: Reading
) -> None:
    going, returning = UntypedStorage(3 * MIB), UntypedStorage(2 * MIB)
    coming = engine.manager.meet(returning)
    engine.manager.settle(engine.manager.evict(coming, "host"))
    given_back = keeping(engine)
    store.writes.clear()
    out = engine.manager.evict(engine.manager.meet(going), "host")
    copy = engine.manager.prefetch(coming, [out])
    assert copy is not None
    meter.held = lambda: BUDGET - MIB  # as if what has left were kept
    assert given_back == []
    store.writes.set()
    copy.wait()
    assert given_back == [MIB]


def test_before_anything_is_evicted_what_is_held_and_free_is_given_back(
    engine: Engine, meter: Reading
) -> None:
    kept, given_back = UntypedStorage(MIB), keeping(engine)
    engine._touch(kept)
    meter.held = lambda: BUDGET - sum(given_back)
    engine._tick += 1
    engine._make_room(MIB, "an op", engine._oldest)
    assert given_back == [MIB]
    assert engine.manager.meet(kept).place is Place.HERE


def test_what_a_tier_fills_is_not_the_steps(engine: Engine, store: GatedStore) -> None:
    store.reserve(MIB)
    engine.room.begin_here()
    assert engine.room.used() == engine.room.peak() == 0
    store.reserve(store.footprint())
    assert engine.room.used() == engine.room.peak() == 0


def test_a_peak_stands_when_a_tier_fills_more_after_it() -> None:
    with managing(CPU) as (manager, store):
        room = Room(CPU, manager, BUDGET, CpuMeter(), 0)
        room.begin_here()
        torch.ones(64 * MIB, dtype=torch.uint8)  # and gone
        store.reserve(128 * MIB)
        assert room.used() < MIB
        for most in (room.peak(), room.needed()):
            assert 63 * MIB < most < 65 * MIB
        room.reset_peak()
        assert room.peak() < MIB


def test_where_it_takes_long_to_tell_what_is_in_use_few_ops_wait_for_it() -> None:
    """A C library that counts thousands of free pieces after each op took twice the step's time."""
    asked: list[float] = []

    def grown() -> int:
        asked.append(time.perf_counter())
        time.sleep(0.002)
        return len(asked)

    slow = cast("CAllocator", SimpleNamespace(keeps=False, keep=lambda: None, grown=grown))
    with managing(CPU) as (manager, _):
        room = Room(CPU, manager, BUDGET, CpuMeter(), 0, slow)
        room.keep_freed()
        slow.keeps = True
        readings = [room.in_use() for _ in range(100)]
        assert len(set(readings)) == len(asked) < 10  # the first is not of before it kept
        time.sleep(0.2)
        assert room.in_use() == max(readings) + 1
