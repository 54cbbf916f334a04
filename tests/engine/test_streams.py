"""What the engine asks of a GPU's streams and events: of which device, in which order, what it times."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import UntypedStorage

from gates import GatedStore, managing
from logs import MACHINE, logged
from penstock.dispatch.storage import byte_view, lies_on
from penstock.engine import engine as engines
from penstock.engine.engine import Engine
from penstock.engine.lanes import Copy, StreamLane
from penstock.engine.log import Log
from penstock.engine.residency import Place
from penstock.errors import TierError
from penstock.ir.schedule import Cause
from streams import Current, Event, pretend

CPU = torch.device("cpu")
GPU = torch.device("cuda", 1)
MIB = 1 << 20


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> Current:
    return pretend(monkeypatch)


def block(nbytes: int = MIB) -> UntypedStorage:
    storage = UntypedStorage(nbytes)
    byte_view(storage).fill_(7)
    return storage


# -- copies -----------------------------------------------------------------------------------------


def test_a_copy_waits_for_the_streams_of_its_own_device_and_they_for_it(current) -> None:
    """A host thread may have chosen another device: `cuda:1` in a script that calls no set_device."""
    store = GatedStore(CPU)
    out, back = (StreamLane(name, store, CPU) for name in ("out", "back"))
    going = Copy(MIB, store.reserve(MIB), block(), inward=False)
    out.put(going)
    coming = Copy(MIB, going.extent, None, inward=True, after=[going])
    back.put(coming)
    coming.wait()
    mine = current(CPU)
    assert going.ready.stream is coming.ready.stream is mine
    assert out._stream.waits == [going.ready]
    assert back._stream.waits == [coming.ready]
    assert mine.waits == [going.finished, coming.finished]  # before memory is reused, and read
    assert current(None).waits == []
    assert going.ready.at < going.begun.at < going.finished.at < coming.ready.at
    assert going.holder is None  # what it carried out is free
    assert bool((byte_view(coming.holder) == 7).all())


def test_a_copy_in_that_finds_no_memory_has_ended_and_says_why(current, monkeypatch) -> None:
    """Else whoever waits for it waits for ever."""

    def short(copy: Copy, device: torch.device) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    monkeypatch.setattr(Copy, "take_memory", short)
    store = GatedStore(CPU)
    lane = StreamLane("back", store, CPU)
    coming = Copy(MIB, store.reserve(MIB), None, inward=True)
    lane.put(coming)
    coming.wait()
    assert coming.is_done()
    assert isinstance(coming.error, torch.OutOfMemoryError)


def test_a_person_who_interrupts_a_copy_is_heard_and_nobody_waits_for_it(
    current, monkeypatch
) -> None:
    def interrupted(copy: Copy, device: torch.device) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Copy, "take_memory", interrupted)
    store = GatedStore(CPU)
    coming = Copy(MIB, store.reserve(MIB), None, inward=True)
    with pytest.raises(KeyboardInterrupt):
        StreamLane("back", store, CPU).put(coming)
    assert coming.is_done()


def test_what_was_not_carried_out_is_not_freed_for_what_comes_after_it(current) -> None:
    store = GatedStore(CPU)
    store.fails = 1
    lost = Copy(MIB, store.reserve(MIB), block(), inward=False)
    StreamLane("out", store, CPU).put(lost)
    assert lost.error is not None
    coming = Copy(MIB, store.reserve(MIB), None, inward=True, after=[lost])
    StreamLane("back", store, CPU).put(coming)
    assert bool((byte_view(lost.holder) == 7).all())


NO_ROOM = torch.OutOfMemoryError("no room")


@pytest.mark.parametrize("errors", [[NO_ROOM], [KeyboardInterrupt()], [NO_ROOM] * 3])
def test_a_value_comes_back_at_a_later_attempt(errors: list[BaseException], monkeypatch) -> None:
    """There was no memory: room is made, also where the budget sees no need. Or it was interrupted."""
    short = [MIB for error in errors if error is NO_ROOM]
    found, is_back = coming_back(errors, monkeypatch, more=[True] * 3)
    assert found == short
    assert is_back


def test_where_no_more_room_can_be_made_a_copy_fails_with_its_reason(monkeypatch) -> None:
    with pytest.raises(TierError, match="a copy failed: no room"):
        coming_back([NO_ROOM] * 3, monkeypatch, more=[False, True])


def coming_back(
    errors: list[BaseException], monkeypatch: pytest.MonkeyPatch, more: list[bool]
) -> tuple[list[int], bool]:
    """A value comes back while copies meet `errors`: what was asked for, and is it the same?

    `more`: is there more room after having asked? The last answer comes first.
    """
    take, failures = Copy.take_memory, errors.copy()
    asked: list[int] = []

    def sometimes(copy: Copy, device: torch.device) -> None:
        if failures:
            raise failures.pop()
        take(copy, device)

    def when_short(nbytes: int) -> bool:
        asked.append(nbytes)
        return more.pop()

    with managing(CPU) as (manager, _):
        manager.when_short = when_short
        a = torch.arange(MIB // 4, dtype=torch.float32)
        bits = a.clone()
        resident = manager.meet(a.untyped_storage())
        manager.settle(manager.evict(resident, "host"))
        monkeypatch.setattr(Copy, "take_memory", sometimes)
        try:
            manager.bring_back(resident, lambda nbytes: None)
        finally:
            monkeypatch.setattr(Copy, "take_memory", take)
            if resident.place is not Place.HERE:
                manager.bring_back(resident, lambda nbytes: None)
        return asked, resident.place is Place.HERE and torch.equal(a, bits)


# -- times --------------------------------------------------------------------------------------------


def test_on_a_gpu_an_op_took_what_its_events_say_and_not_what_asking_for_it_took(current) -> None:
    log = logged(GPU)
    for op in range(4):
        log.ran(op, log.now(), 0)
    seconds = log.seconds()
    assert seconds == pytest.approx(0.001 * torch.ones(4, 2).numpy(), abs=1e-9)
    chart = log.chart(1.0, log.stalls())
    assert chart.seconds == 1.0


def test_on_a_gpu_a_stall_is_the_devices(current) -> None:
    log = logged(GPU)
    begun = log.now()
    next(Event.times), next(Event.times)
    log.waited(3, begun, Cause.INPUT)
    assert log.stalls()[Cause.INPUT] == pytest.approx(0.003)
    assert sum(log.stalls().values()) == log.stalls()[Cause.INPUT]


def test_on_a_gpu_a_link_is_as_fast_as_its_stream_and_not_as_a_request(current) -> None:
    log = logged(GPU)
    store = GatedStore(CPU)
    lane = StreamLane("out", store, CPU)
    copy = Copy(64 * MIB, store.reserve(64 * MIB), block(64 * MIB), inward=False)
    lane.put(copy)
    rows = [row for row, inward in evictions(log) if not inward]
    log.copies[rows[0]] = copy
    (tier,) = log.rates(MACHINE).tiers
    assert tier.write.bandwidth == pytest.approx(64 * MIB / 0.001)
    assert tier.read.bandwidth == 1e9  # nothing is known of it


def evictions(log: Log) -> Iterator[tuple[int, bool]]:
    """Rows of the schedule that begin a copy, and whether it is one in."""
    for around in log.schedule.around:
        for row, action in (*around.before, *around.after):
            if type(action).__name__ in ("Evict", "Prefetch"):
                yield row, log.schedule.transfers[action.transfer].inward


# -- devices and threads ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "device", "lies"),
    [
        ("cuda:0", "cuda:0", True),
        ("cuda:1", "cuda:0", False),
        ("cuda:1", "cuda", True),
        ("cpu", "cpu", True),
        ("cpu", "cpu:0", True),
        ("cpu", "cuda:0", False),
    ],
)
def test_what_lies_on_another_gpu_is_not_ours(there: str, device: str, lies: bool) -> None:
    assert lies_on(SimpleNamespace(device=torch.device(there)), torch.device(device)) is lies


def engine_of(device: torch.device) -> Engine:
    meter = SimpleNamespace(used=lambda: 0)
    return Engine(device, (), 1 << 40, meter, 0)


def called_from(thread_of_its_own: bool, engine: Engine) -> None:
    def call() -> None:
        x = torch.ones(3)
        engine.serve(torch.ops.aten.add.Tensor, (x, x), {})

    if thread_of_its_own:
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    else:
        call()


@pytest.mark.parametrize(
    ("passes", "overlap"),
    [([1, 1], True), ([1, 2], False), ([-1, 1], False), ([-1, -1], False)],
    ids=["one backward", "two after each other", "forward and backward", "forward"],
)
def test_threads_of_one_backward_pass_take_turns(monkeypatch, passes, overlap) -> None:
    """On GPUs each device has one, and the CPU: they would meet inside the engine."""
    engine = engine_of(CPU)
    for number, backward in enumerate(passes):
        monkeypatch.setattr(engines, "in_backward", lambda backward=backward: backward)
        called_from(bool(number), engine)
    assert engine._is_shared is overlap


def test_while_a_step_of_a_gpu_is_recorded_its_threads_take_turns() -> None:
    for device, turns in ((CPU, False), (GPU, True)):
        engine = engine_of(device)
        engine.clock = SimpleNamespace(handler=None, shorten=lambda shortcut: None)
        engine.handler = engine.serve
        assert (engine.clock.handler == engine._alone) is turns
        engine.handler = engine.follow
        assert engine.clock.handler == engine.follow


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("CUDA out of memory. Tried to allocate 512 bytes. GPU 0 has a total", 512),
        ("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total", 20 * MIB),
        ("CUDA out of memory. Tried to allocate 1.50 GiB (GPU 0; 15.90 GiB total)", 1536 * MIB),
        ("CUDA out of memory.", 1 * MIB),
    ],
)
def test_a_failed_allocation_says_how_much_it_wanted(text: str, nbytes: int) -> None:
    found = engines._bytes_wanted(torch.OutOfMemoryError(text))
    assert nbytes <= found < nbytes * 1.02
    assert engines._bytes_wanted(RuntimeError("Tried to allocate 1.50 GiB")) is None
