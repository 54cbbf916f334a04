"""The host tier: slabs that hold every byte, inside a capacity."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import UntypedStorage

from penstock.dispatch.resident import whole
from penstock.dispatch.storage import byte_view
from penstock.engine.extents import Extent
from penstock.engine.tiers import Cancelled
from penstock.engine.tiers.host import HostStore
from penstock.errors import TierError
from runs import DEVICES, MIB

CPU = torch.device("cpu")


def noise(nbytes: int, device: str = "cpu") -> UntypedStorage:
    made = UntypedStorage(nbytes, device=device)
    byte_view(made).random_(0, 256)
    return made


def write(store: HostStore, source: UntypedStorage) -> Extent:
    extent = store.reserve(source.nbytes())
    store.write(source, extent, whole(source.nbytes()))
    return extent


def assert_holds(store: HostStore, extent: Extent, source: UntypedStorage) -> None:
    target = UntypedStorage(source.nbytes(), device=source.device)
    store.read(extent, target, whole(target.nbytes()))
    store._synchronize()
    assert torch.equal(byte_view(target), byte_view(source))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("nbytes", [1, 511, 512, 513, 4097, MIB + 1, 16 * MIB, 17 * MIB + 3])
def test_every_size_comes_back(device: str, nbytes: int) -> None:
    store = HostStore(torch.device(device), 600 * MIB)
    source = noise(nbytes, device)
    assert_holds(store, write(store, source), source)
    store.close()


@settings(max_examples=30)
@given(st.lists(st.integers(1, 6 * MIB), min_size=1, max_size=12), st.randoms())
def test_what_comes_and_goes_in_any_order_comes_back(sizes: list[int], random) -> None:
    store = HostStore(CPU, 128 * MIB)
    held: list[tuple[Extent, UntypedStorage]] = []
    for nbytes in sizes:
        source = UntypedStorage(nbytes)
        byte_view(source).fill_(len(held) * 37 % 256)
        held.append((write(store, source), source))
        if random.random() < 0.4:
            extent, _ = held.pop(random.randrange(len(held)))
            store.release(extent)
    for extent, source in held:
        assert_holds(store, extent, source)
    store.close()


def test_no_slab_reaches_beyond_the_capacity() -> None:
    store = HostStore(CPU, 20 * MIB)
    kept = noise(10 * MIB)
    extent = write(store, kept)
    store.reserve(6 * MIB)  # fills the first slab of 16 MiB
    store.reserve(4 * MIB)  # a slab of the usual size would be too much
    assert store.used() == store.footprint() == store.capacity
    with pytest.raises(TierError, match=r"full.*--host-budget"):
        store.reserve(1)
    assert_holds(store, extent, kept)


def test_freed_space_is_used_again() -> None:
    store = HostStore(CPU, 64 * MIB)
    for _ in range(20):
        store.release(write(store, noise(10 * MIB)))
    assert store.used() == 0
    assert store.footprint() == 16 * MIB  # one slab served all


@pytest.mark.parametrize("device", DEVICES)
def test_only_beside_a_cpu_the_slabs_fill_the_devices_memory(device: str) -> None:
    store = HostStore(torch.device(device), 600 * MIB)
    store.reserve(MIB)
    assert store.footprint() == (16 * MIB if device == "cpu" else 0)
    assert store.used() == MIB
    store.close()


def test_a_cancelled_write_says_so() -> None:
    store = HostStore(CPU, 64 * MIB)
    with pytest.raises(Cancelled):
        store.write(noise(100), store.reserve(100), whole(100), lambda: True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("capacity", [5000, 20 * MIB, 600 * MIB])
def test_a_probe_leaves_nothing_in_use(device: str, capacity: int) -> None:
    store = HostStore(torch.device(device), capacity)
    facts = store.probe()
    assert facts.capacity == capacity
    assert facts.write.bandwidth > 0
    assert facts.read.bandwidth > 0
    assert store.used() == 0
    store.close()
    store.close()  # again is no harm
