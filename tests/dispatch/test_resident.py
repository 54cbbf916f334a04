"""Meters tell the truth: large tensors are seen when they come, and when they go."""

import ctypes
import mmap
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.dispatch.resident import (
    CAllocator,
    Part,
    live_tensor_bytes,
    meter_for,
    parts_held,
)
from runs import DEVICES, MIB, tells_of_pages

LARGE = 64 * MIB
PAGE = mmap.PAGESIZE
NEARLY = 63 * MIB
"""Other threads of the process may give a little back meanwhile."""

on_devices = pytest.mark.parametrize("device", DEVICES)


def large(device: str) -> torch.Tensor:
    return torch.ones(LARGE, dtype=torch.uint8, device=device)


@on_devices
def test_a_large_tensor_is_seen_while_it_lives(device: str) -> None:
    meter = meter_for(torch.device(device))
    before = meter.used()
    tensor = large(device)
    during = meter.used()
    assert during - before >= NEARLY
    del tensor
    assert during - meter.used() >= NEARLY


@on_devices
def test_the_peak_is_remembered_until_it_is_reset(device: str) -> None:
    meter = meter_for(torch.device(device))
    meter.reset_peak()
    before = meter.used()
    large(device)  # dies at once
    assert meter.peak() - before >= NEARLY
    if device == "cuda":
        torch.cuda.empty_cache()
    meter.reset_peak()
    assert meter.peak() - meter.resident() < MIB


@on_devices
def test_a_shorter_measurement_does_not_forget_the_longer_ones_peak(device: str) -> None:
    meter = meter_for(torch.device(device))
    meter.reset_peak()
    before = meter.used()
    large(device)
    meter.restart()
    assert meter.recent_needed() - before < LARGE // 2
    assert meter.needed() - before >= NEARLY
    assert meter.peak() >= meter.needed()
    meter.reset_peak()
    assert meter.needed() - before < LARGE // 2


class Stats:
    """The counters of a caching allocator, as `torch.cuda` tells them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counters = {
            what: {"all": {"current": 0, "peak": 0}}
            for what in ("allocated_bytes", "reserved_bytes")
        }
        monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", lambda device: self.counters)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self.reset)

    def hold(self, allocated: int, reserved: int) -> None:
        told = zip(self.counters.values(), (allocated, reserved), strict=True)
        for counter, now in told:
            counter["all"]["current"] = now
            counter["all"]["peak"] = max(counter["all"]["peak"], now)

    def reset(self, _device: torch.device) -> None:
        for counter in self.counters.values():
            counter["all"]["peak"] = counter["all"]["current"]


def test_on_cuda_what_the_allocator_keeps_for_later_is_held_but_not_needed(monkeypatch) -> None:
    stats = Stats(monkeypatch)
    meter = meter_for(torch.device("cuda", 0))
    stats.hold(70, 100)
    stats.hold(30, 100)
    meter.reset_peak()
    assert (meter.resident(), meter.used()) == (100, 30)
    assert (meter.peak(), meter.needed()) == (100, 30)


def test_on_cuda_the_peak_of_a_step_outlives_the_measurement_of_each_of_its_ops(
    monkeypatch,
) -> None:
    stats = Stats(monkeypatch)
    meter = meter_for(torch.device("cuda", 0))
    meter.reset_peak()
    stats.hold(70, 120)
    stats.hold(20, 80)
    meter.restart()
    stats.hold(50, 90)
    stats.hold(10, 90)
    assert meter.recent_needed() == 50
    assert (meter.needed(), meter.peak()) == (70, 120)
    meter.reset_peak()
    assert (meter.needed(), meter.peak()) == (10, 90)


TIGHT = """
import sys, torch
from penstock.dispatch.resident import CpuMeter, CAllocator
MIB = 1 << 20
meter = CpuMeter()
torch.ones(1)
old = [torch.ones(MIB // 8, dtype=torch.uint8) for _ in range(400)]  # 50 MiB in the heap ...
keep = old[1::2]
del old                                                              # ... with holes
allocator = CAllocator()
start = meter.resident()
new = [torch.ones(MIB // 8, dtype=torch.uint8) for _ in range(400)]
grown = meter.resident() - start
del new[::2]
given_back = start + grown - meter.resident()
allocator.loosen()
allocator.loosen()
print(grown / MIB, given_back / MIB)
"""


def test_a_tight_allocator_gives_back_every_second_block() -> None:
    done = subprocess.run([sys.executable, "-c", TIGHT], capture_output=True, text=True, check=True)
    grown, given_back = map(float, done.stdout.split())
    assert 49 < grown < 54  # 50 MiB, and a page for each block's header
    assert 24 < given_back < 27


TRIMMED = """
from penstock.dispatch.resident import CpuMeter, CAllocator
MIB = 1 << 20
meter, allocator = CpuMeter(), CAllocator()
blocks = [b"x" * (MIB // 32) for _ in range(32 * 32)]  # 32 MiB in the heap
last = blocks[-1]
full = meter.resident()
del blocks
freed = full - meter.resident()
allocator.trim()
print(freed / MIB, (full - meter.resident()) / MIB)
allocator.loosen()
"""


def test_what_was_freed_below_a_block_in_use_is_given_back_when_the_heap_is_trimmed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRIMMED], capture_output=True, text=True, check=True
    )
    freed, trimmed = map(float, done.stdout.split())
    assert freed < 1
    assert trimmed > 30


HOLES = """
import torch
from penstock.dispatch.resident import CpuMeter, CAllocator
MIB = 1 << 20
torch.ones(1)
meter, allocator = CpuMeter(), CAllocator()
for _ in range(2):
    small = [b"x" * (MIB // 32) for _ in range(32 * 32)]  # 32 MiB in the heap ...
    last = small[-1]
    del small                                             # ... a hole, as planning leaves one
    allocator.plug()
    start = meter.resident()
    blocks = [torch.ones(4 * MIB, dtype=torch.uint8) for _ in range(7)]
    grown = meter.resident() - start
    del blocks
    print(grown / MIB, (meter.resident() - start) / MIB)
allocator.loosen()
"""


def test_no_large_block_comes_to_lie_in_a_hole_that_small_ones_left_meanwhile() -> None:
    """There it would stay resident when it is freed."""
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        grown, left = map(float, line.split())
        assert 27.5 < grown < 30
        assert left < 1


@on_devices
def test_living_tensors_are_counted_by_storage(device: str) -> None:
    before = live_tensor_bytes(torch.device(device))
    a = torch.zeros(1000, device=device)
    views = [a[5:], a.view(10, 100)]
    assert live_tensor_bytes(torch.device(device)) - before == 4000
    del a, views
    assert live_tensor_bytes(torch.device(device)) == before


@on_devices
def test_of_a_sparse_tensor_the_indices_and_the_values_are_counted(device: str) -> None:
    before = live_tensor_bytes(torch.device(device))
    a = torch.eye(100, device=device).to_sparse()
    assert live_tensor_bytes(torch.device(device)) - before == 100 * (8 + 8 + 4)
    del a
    assert live_tensor_bytes(torch.device(device)) == before


def written(*stretches: tuple[int, int], nbytes: int = 16 * MIB, offset: int = 0) -> list[Part]:
    """What is held of fresh memory, `offset` bytes after a page boundary, of which this was written."""
    memory = mmap.mmap(-1, offset + nbytes)
    whole = torch.frombuffer(memory, dtype=torch.uint8)[offset:]
    for begin, end in stretches:
        whole[begin:end] = 1
    device = torch.device("cpu")
    storage = torch._C._construct_storage_from_data_pointer(whole.data_ptr(), device, nbytes)
    return list(parts_held(storage))


@tells_of_pages
def test_what_nobody_wrote_is_not_held() -> None:
    assert written() == []
    assert written((0, 16 * MIB)) == [(0, 16 * MIB)]
    assert written((0, 4 * MIB)) == [(0, 4 * MIB)]
    assert written((0, 1), (8 * MIB, 16 * MIB)) == [(0, PAGE), (8 * MIB, 16 * MIB)]


@tells_of_pages
def test_whole_blocks_are_held_where_a_storage_begins_inside_a_page() -> None:
    """Its own blocks lie on two pages each."""
    assert written((8 * MIB, 9 * MIB), offset=64) == [(8 * MIB - PAGE, 9 * MIB + PAGE)]
    assert written((16 * MIB, 16 * MIB + 5), nbytes=16 * MIB + 5, offset=64) == [
        (16 * MIB - PAGE, 16 * MIB + 5)
    ]


@tells_of_pages
@settings(max_examples=30)
@given(st.lists(st.integers(0, 8 * MIB), max_size=12), st.integers(0, 4095), st.randoms())
def test_every_byte_that_was_written_is_held(edges: list[int], offset: int, random) -> None:
    nbytes = 8 * MIB - random.randrange(PAGE)
    stretches = [(b, min(e, nbytes)) for b, e in pairwise(sorted(edges)) if b < nbytes]
    held = written(*stretches[::2], nbytes=nbytes, offset=offset)
    for begin, end in stretches[::2]:
        assert begin == end or any(first <= begin and end <= last for first, last in held)


@on_devices
def test_a_small_storage_is_held_whole(device: str) -> None:
    storage = torch.empty(1000, device=device).untyped_storage()
    assert parts_held(storage) == ((0, 4000),)


def test_where_the_c_library_is_not_glibc_nothing_is_known_to_be_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    allocator = CAllocator()
    for change in (allocator.keep, allocator.tighten, allocator.loosen, allocator.trim):
        change()
        assert not allocator.keeps


KEEPING = """
import sys
if sys.argv[1] == "late":
    import threading, ctypes
    libc = ctypes.CDLL(None)  # a thread with an arena of its own, before anybody asked for one
    libc.malloc.restype = ctypes.c_void_p
    stop = threading.Event()
    threading.Thread(target=lambda: (libc.malloc(8192), stop.wait())).start()
import penstock  # asks for huge pages
import torch
from penstock.dispatch.resident import CpuMeter, CAllocator
MIB = 1 << 20
meter, allocator = CpuMeter(), CAllocator()
torch.ones(1)

def filled(less=0):
    return [torch.ones((n - less) * MIB, dtype=torch.uint8) for n in (40, 24)]

allocator.keep()
blocks = filled()
between = torch.ones(MIB // 8, dtype=torch.uint8)  # in use, so that what is freed are holes
full, grown = meter.resident(), allocator.grown() / MIB
del blocks
left = allocator.grown() / MIB
freed = full - meter.resident()
blocks = filled(1)
again = meter.resident() - full + freed
del blocks
with allocator.held_tight():
    trimmed = full - meter.resident()
    torch.ones(24 * MIB, dtype=torch.uint8)
    held_tight = full - meter.resident()
print(allocator.keeps, *(n / MIB for n in (freed, again, trimmed, held_tight)), grown, left)
if sys.argv[1] == "late":
    stop.set()
"""


def kept(when: str) -> tuple[str, list[float]]:
    done = subprocess.run(
        [sys.executable, "-c", KEEPING, when], capture_output=True, text=True, check=True
    )
    keeps, *told = done.stdout.split()
    return keeps, list(map(float, told))


def test_what_is_kept_is_taken_again_and_goes_back_when_it_is_trimmed() -> None:
    keeps, (freed, again, trimmed, held_tight, grown, left) = kept("early")
    assert keeps == "True"
    assert freed < 1
    assert again < 2
    assert trimmed > 60  # of 64
    assert held_tight > 60
    assert grown == pytest.approx(64, abs=0.3)
    assert left == pytest.approx(0, abs=0.3)


def test_where_threads_have_heaps_of_their_own_nothing_is_kept() -> None:
    keeps, (freed, *_) = kept("late")
    assert keeps == "False"
    assert freed > 60


LOOSE = """
import penstock  # asks for huge pages
import torch
from penstock.dispatch.resident import CpuMeter, CAllocator
MIB = 1 << 20
meter, allocator = CpuMeter(), CAllocator()
torch.ones(1)

between = []  # in use, so that what is freed are holes

def freed():
    blocks = []
    for _ in range(8):
        blocks.append(torch.ones(7 * MIB, dtype=torch.uint8))
        between.append(torch.ones(MIB // 32, dtype=torch.uint8))
    full = meter.resident()
    del blocks
    return (full - meter.resident()) / MIB

allocator.loosen()
kept = freed()
before = meter.resident()
allocator.tighten()
print(kept, (before - meter.resident()) / MIB, freed())
"""


def test_a_loose_allocator_keeps_what_is_freed_until_it_is_tight_again() -> None:
    done = subprocess.run([sys.executable, "-c", LOOSE], capture_output=True, text=True, check=True)
    at_once, when_tightened, at_once_again = map(float, done.stdout.split())
    assert at_once < 1
    assert when_tightened > 55
    assert at_once_again > 55
