"""Lanes: copies in order, bytes that always have an owner, threads that end."""

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import UntypedStorage

from gates import GatedStore, carried
from penstock.dispatch.storage import byte_view
from penstock.engine.lanes import Copy, DirectLane, StreamLane, ThreadLane
from penstock.errors import TierError
from runs import DEVICES

NBYTES = 100_003


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def store(device: torch.device) -> Iterator[GatedStore]:
    made = GatedStore(device)
    yield made
    made.close()


@pytest.fixture
def lane(store: GatedStore, device: torch.device) -> Iterator[ThreadLane]:
    made = ThreadLane("lane", store, device)
    yield made
    store.writes.set()
    store.reads.set()
    made.close()


def noise(device: torch.device) -> UntypedStorage:
    made = UntypedStorage(NBYTES, device=device)
    byte_view(made).random_(0, 256)
    return made


def copy_of(storage: UntypedStorage) -> torch.Tensor:
    return byte_view(storage).clone()


def outward(store: GatedStore, holder: UntypedStorage) -> Copy:
    return Copy(NBYTES, store.reserve(NBYTES), holder, inward=False)


def test_a_copy_out_frees_its_bytes_and_a_copy_in_brings_them(store, lane, device) -> None:
    holder = noise(device)
    bits = copy_of(holder)
    out = carried(lane, outward(store, holder))
    assert out.is_done()
    assert out.holder is None
    assert holder.nbytes() == 0
    back = carried(lane, Copy(NBYTES, out.extent, None, inward=True))
    assert back.error is None
    assert torch.equal(byte_view(back.holder), bits)
    assert 0 < out.started <= out.ended <= back.started <= back.ended


def test_copies_are_carried_in_the_order_in_which_they_were_put(store, lane, device) -> None:
    store.writes.clear()
    copies = [outward(store, noise(device)) for _ in range(5)]
    for copy in copies:
        lane.put(copy)
    assert not any(copy.is_done() for copy in copies)
    store.writes.set()
    for copy in copies:
        copy.wait()
    times = [time for copy in copies for time in (copy.started, copy.ended)]
    assert times == sorted(times)


def test_a_failed_copy_out_still_owns_its_bytes(store, lane, device) -> None:
    store.fails = 1
    holder = noise(device)
    bits = copy_of(holder)
    out = carried(lane, outward(store, holder))
    assert isinstance(out.error, TierError)
    assert torch.equal(byte_view(out.holder), bits)
    assert carried(lane, outward(store, noise(device))).error is None  # the lane goes on


def test_a_copy_called_back_still_owns_its_bytes(store, lane, device) -> None:
    store.writes.clear()
    holder = noise(device)
    bits = copy_of(holder)
    out = outward(store, holder)
    lane.put(out)
    out.call_back()
    out.wait()
    assert out.was_called_back
    assert out.error is None
    assert torch.equal(byte_view(out.holder), bits)


def test_a_copy_called_back_before_its_turn_is_never_written(store, lane, device) -> None:
    store.writes.clear()
    first, second = outward(store, noise(device)), outward(store, noise(device))
    lane.put(first)
    lane.put(second)
    second.call_back()
    store.writes.set()
    second.wait()
    assert not first.was_called_back
    assert second.was_called_back


class Watched(threading.Event):
    """An event that tells when somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.awaited = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.awaited.set()
        return super().wait(timeout)


@pytest.mark.parametrize("device", ["cpu"], indirect=True)
def test_a_copy_in_starts_after_those_that_make_its_room(store, lane, device) -> None:
    """On the host: on CUDA it is `put` that waits, because it takes the memory."""
    away = carried(lane, outward(store, noise(device)))
    going = outward(store, noise(device))
    going._done = Watched()
    coming = Copy(NBYTES, away.extent, None, inward=True, after=[going])
    lane.put(coming)
    assert going._done.awaited.wait(10)  # the lane has come to it
    assert "read" not in store.entered
    assert coming.holder is None  # no memory is taken before there is room
    going.end()
    coming.wait()
    assert coming.started >= going.ended


def test_close_carries_what_was_put_and_ends_the_thread(store, device) -> None:
    lane = ThreadLane("closing", store, device)
    copies = [outward(store, noise(device)) for _ in range(3)]
    for copy in copies:
        lane.put(copy)
    lane.close()
    assert all(copy.is_done() and copy.error is None for copy in copies)
    assert "penstock closing" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("device", ["cpu"], indirect=True)
def test_a_direct_lane_brings_bytes_without_a_thread(store, lane, device) -> None:
    holder = noise(device)
    bits = copy_of(holder)
    out = carried(lane, outward(store, holder))
    direct = DirectLane("direct", store)
    back = carried(direct, Copy(NBYTES, out.extent, None, inward=True))
    assert torch.equal(byte_view(back.holder), bits)
    store.fails = 1
    failed = carried(direct, Copy(NBYTES, out.extent, None, inward=True))
    assert isinstance(failed.error, TierError)
    direct.close()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_a_stream_lane_copies_what_the_device_had_made_by_then() -> None:
    device = torch.device("cuda")
    store = GatedStore(device)
    out_lane, back_lane = (StreamLane(name, store, device) for name in ("out", "back"))
    a = torch.randn(2048, 2048, device=device)
    for _ in range(20):
        a = (a @ a).clamp_(-1, 1)  # still running when the copy is asked for
    bits = a.clone()
    storage = a.untyped_storage()
    out = Copy(storage.nbytes(), store.reserve(storage.nbytes()), storage, inward=False)
    out_lane.put(out)
    out.wait()
    out.free()
    back = Copy(bits.nbytes, out.extent, None, inward=True, after=[out])
    back_lane.put(back)
    back.wait()
    assert torch.equal(byte_view(back.holder), byte_view(bits.untyped_storage()))
    out_lane.close()
    back_lane.close()
