"""What allocators hold: worked examples from their sources, laws, and the real ones."""

import json
import subprocess
import sys
from bisect import insort
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penstock.dispatch.resident import RETURNED_FROM
from penstock.errors import TraceError, UsageError
from penstock.ir.text import parse
from penstock.simulate.allocators import (
    CudaSettings,
    Free,
    Malloc,
    allocations,
    cpu,
    cuda,
    least_reserved,
)
from penstock.simulate.allocators.caching import Caching
from strategies import traces

KIB, MIB, GIB = 2**10, 2**20, 2**30
EXPANDABLE = CudaSettings(expandable_segments=True)


def mallocs(*sizes):
    return [Malloc(block, nbytes) for block, nbytes in enumerate(sizes)]


def reserved(*requests, settings=None):
    return cuda(requests, settings).reserved.tolist()


# -- CUDA: sizes (constants of c10/core/AllocatorConfig.h) -------------------------------------------


@pytest.mark.parametrize(
    ("asked", "given"), [(1, 512), (512, 512), (513, 1024), (MIB, MIB), (MIB + 1, MIB + 512)]
)
def test_sizes_are_rounded_to_512_bytes(asked, given):
    # round_size. The segment is split, except where so little is left that it is not worth it.
    assert cuda(mallocs(asked)).allocated.tolist() == [given]


@pytest.mark.parametrize(
    ("nbytes", "blocks", "segments", "total"),
    [
        # The cases of test_cuda.py, test_graph_memory_stats: three blocks are alive at once.
        (512, 3, 1, 2 * MIB),
        (MIB, 3, 2, 4 * MIB),
        (MIB + 512, 3, 1, 20 * MIB),
        (10 * MIB - 512, 3, 2, 40 * MIB),
        (10 * MIB + 512, 3, 3, 36 * MIB),
    ],
)
def test_small_blocks_share_segments_of_2_mib_and_middle_ones_of_20(
    nbytes, blocks, segments, total
):
    replay = cuda(mallocs(*[nbytes] * blocks))
    assert (replay.segments_at_peak, replay.reserved_peak) == (segments, total)


def test_a_segment_of_its_own_is_rounded_to_2_mib_and_its_rest_goes_to_no_other_pool():
    # get_allocation_size; should_split leaves a rest of 1 MiB or less with the block.
    replay = cuda([*mallocs(11 * MIB, 11 * MIB + 512), Malloc(2, 512 * KIB)])
    assert replay.reserved.tolist() == [12 * MIB, 24 * MIB, 26 * MIB]
    assert replay.allocated.tolist() == [12 * MIB, 24 * MIB, 24 * MIB + 512 * KIB]
    assert replay.live.tolist() == [11 * MIB, 22 * MIB + 512, 22 * MIB + 512 + 512 * KIB]


def test_a_rest_of_more_than_1_mib_is_split_off():
    replay = cuda(mallocs(18 * MIB - 512, 9 * MIB, 9 * MIB))
    assert replay.reserved.tolist() == [18 * MIB, 38 * MIB, 38 * MIB]


def test_a_rest_of_512_bytes_of_a_small_segment_is_split_off():
    assert reserved(*mallocs(MIB, MIB - 512, 512)) == [2 * MIB] * 3


def test_nothing_is_reserved_for_no_bytes():
    assert reserved(Malloc(0, 0), Free(0)) == [0, 0]


@pytest.mark.parametrize(
    ("divisions", "asked", "given"),
    [
        # test_cuda.py, test_allocator_settings: 84 MiB in steps of 64 MiB / 4.
        (4, 84 * MIB, 96 * MIB),
        (8, 84 * MIB, 88 * MIB),
        (4, 64 * MIB, 64 * MIB),
        (0, 84 * MIB, 84 * MIB),
        (1, 84 * MIB, 84 * MIB),
        (4, 2048, 2048),  # not above 512 x divisions: as ever
        (4, 2049, 2560),
    ],
)
def test_roundup_power2_divisions_round_to_a_part_of_the_power_of_two_below(
    divisions, asked, given
):
    settings = CudaSettings(roundup_power2_divisions=divisions)
    assert cuda(mallocs(asked), settings).allocated.tolist() == [given]


# -- CUDA: reuse -------------------------------------------------------------------------------------


def test_what_is_free_is_kept_and_the_smallest_that_fits_is_taken():
    # get_free_block: of 12 and 16 MiB, 12 fits 11 best; 16 then serves 15.
    replay = cuda(
        [
            *mallocs(12 * MIB, 16 * MIB),
            Free(0),
            Free(1),
            *(Malloc(2, 11 * MIB), Malloc(3, 15 * MIB)),
        ]
    )
    assert replay.reserved.tolist() == [12 * MIB] + [28 * MIB] * 5
    assert replay.allocated.tolist()[-2:] == [12 * MIB, 28 * MIB]


def test_free_neighbours_become_one_block():
    # free_block, try_merge_blocks: 5 + 5 MiB of one segment of 20 serve 9.
    start = mallocs(5 * MIB, 5 * MIB, 10 * MIB - 512)
    assert reserved(*start, Free(0), Free(1), Malloc(3, 9 * MIB))[-1] == 20 * MIB
    assert reserved(*start, Free(0), Malloc(3, 9 * MIB))[-1] == 40 * MIB


def test_at_the_peak_what_is_free_but_fits_nothing_is_told_apart():
    # Two segments of 20 MiB, each with a hole of 8: no room for 16.
    halves = mallocs(6 * MIB, 8 * MIB, 6 * MIB, 6 * MIB, 8 * MIB, 6 * MIB)
    replay = cuda([*halves, Free(1), Free(4), Malloc(6, 16 * MIB)])
    assert replay.reserved_peak == 56 * MIB
    assert replay.at_peak.allocated == replay.at_peak.live == 40 * MIB
    assert replay.at_peak.fragmentation == 16 * MIB


def test_the_lowest_of_equal_blocks_is_taken_where_the_segments_are_known():
    requests = [*mallocs(12 * MIB, 12 * MIB), Free(0), Free(1), Malloc(2, 10 * MIB), Free(2)]
    # 10 MiB are split off the lower segment, 2 MiB are left there; merged again when freed.
    for addresses in [(100 * MIB, 200 * MIB), (200 * MIB, 100 * MIB)]:
        replay = cuda(requests, addresses=addresses)
        assert replay.reserved_peak == 24 * MIB
        allocator = Caching(CudaSettings(), addresses)
        held = [allocator.malloc(12 * MIB) for _ in range(2)]
        for block in held:
            allocator.free(block)
        assert allocator.malloc(12 * MIB).address == 100 * MIB


def test_oversize_blocks_are_not_split_and_serve_only_requests_of_about_their_size():
    settings = CudaSettings(max_split_size=32 * MIB)
    start = [Malloc(0, 64 * MIB), Free(0)]
    assert reserved(*start, Malloc(1, 16 * MIB), settings=settings)[-1] == 80 * MIB
    assert reserved(*start, Malloc(1, 40 * MIB), settings=settings)[-1] == 104 * MIB
    replay = cuda([*start, Malloc(1, 44 * MIB + 512)], settings)
    assert (replay.reserved_peak, replay.allocated_peak) == (64 * MIB, 64 * MIB)


# -- CUDA: at the limit ------------------------------------------------------------------------------


def test_at_the_limit_all_free_segments_are_given_back_and_the_request_is_tried_again():
    settings = CudaSettings(limit=40 * MIB)
    replay = cuda(
        [*mallocs(12 * MIB, 12 * MIB, 12 * MIB), Free(0), Free(1), Malloc(3, 28 * MIB)], settings
    )
    assert replay.reserved.tolist()[-1] == 40 * MIB
    assert (replay.retries, replay.failed) == (1, None)


def test_the_least_that_must_be_reserved_counts_no_segment_that_can_be_given_back():
    whole = [*mallocs(30 * MIB), Free(0), Malloc(1, 40 * MIB)]
    assert cuda(whole).reserved_peak == 70 * MIB
    assert least_reserved(whole) == 40 * MIB
    in_use = [*mallocs(2 * MIB, 18 * MIB), Free(1), Malloc(2, 40 * MIB)]
    assert least_reserved(in_use) == 60 * MIB


def test_a_segment_of_which_a_part_is_used_is_not_given_back():
    settings = CudaSettings(limit=40 * MIB)
    requests = [*mallocs(2 * MIB, 18 * MIB, 16 * MIB), Free(1), Free(2), Malloc(3, 22 * MIB)]
    replay = cuda(requests, settings)
    assert replay.failed == 5
    assert replay.reserved.tolist() == [20 * MIB, 20 * MIB, 36 * MIB, 36 * MIB, 36 * MIB, 20 * MIB]
    assert len(replay.live) == 6


def test_with_a_split_limit_one_oversize_block_is_given_back_first():
    # release_available_cached_blocks: 64 MiB make room for 48; the 12 that are free stay cached.
    settings = CudaSettings(max_split_size=32 * MIB, limit=100 * MIB)
    replay = cuda([*mallocs(64 * MIB, 12 * MIB), Free(0), Free(1), Malloc(2, 40 * MIB)], settings)
    assert replay.reserved.tolist()[-1] == 52 * MIB
    assert replay.retries == 0


def test_where_oversize_blocks_are_too_few_everything_is_given_back():
    # 64 MiB are less than 80, so the free 12 go too; with a try in between, 116 would be reserved.
    settings = CudaSettings(max_split_size=32 * MIB, limit=120 * MIB)
    start = mallocs(64 * MIB, 12 * MIB, 24 * MIB)
    replay = cuda([*start, Free(0), Free(1), Malloc(3, 80 * MIB)], settings)
    assert replay.reserved.tolist()[-1] == 104 * MIB
    assert replay.retries == 1


# -- CUDA: expandable segments -----------------------------------------------------------------------


def test_an_expandable_segment_grows_by_pages_of_2_and_of_20_mib():
    assert reserved(*mallocs(MIB, MIB, 512), settings=EXPANDABLE) == [2 * MIB, 2 * MIB, 4 * MIB]
    assert reserved(*mallocs(11 * MIB, 11 * MIB), settings=EXPANDABLE) == [20 * MIB, 40 * MIB]


def test_an_expandable_segment_joins_what_is_free_at_its_end_with_new_pages():
    # A plain segment of 36 MiB is no use for 60; 40 mapped ones and a page of 20 are.
    requests = [Malloc(0, 36 * MIB), Free(0), Malloc(1, 60 * MIB)]
    assert reserved(*requests, settings=EXPANDABLE) == [40 * MIB, 40 * MIB, 60 * MIB]
    assert reserved(*requests) == [36 * MIB, 36 * MIB, 96 * MIB]


def test_what_can_grow_is_left_alone_while_another_block_fits():
    # After the second is freed, 10 MiB inside and 10 MiB at the growing end are free; 8 goes inside.
    allocator = Caching(EXPANDABLE, ())
    first, second, third = (allocator.malloc(size * MIB) for size in (10, 12, 10))
    inside = second.address
    allocator.free(second)
    assert allocator.malloc(8 * MIB).address == inside
    assert first.address < inside < third.address


def test_pages_that_are_wholly_free_are_given_back_at_the_limit():
    settings = CudaSettings(expandable_segments=True, limit=80 * MIB)
    requests = [*mallocs(30 * MIB, 30 * MIB), Free(0), Malloc(2, 40 * MIB)]
    replay = cuda(requests, settings)
    # 0 to 30 is free: its first page is given back. 30 MiB are too few for 40, so two new pages
    # stand behind the second block.
    assert replay.reserved.tolist() == [40 * MIB, 60 * MIB, 60 * MIB, 80 * MIB]
    assert replay.retries == 1


def test_of_a_page_that_is_partly_used_the_rest_stays_and_is_joined_with_new_pages():
    # 6 to 60 is free: the pages from 20 on are given back. Then 6 to 20 and four new pages serve 90.
    settings = CudaSettings(expandable_segments=True, limit=120 * MIB)
    replay = cuda([*mallocs(6 * MIB, 40 * MIB), Free(1), Malloc(2, 90 * MIB)], settings)
    assert replay.reserved.tolist() == [20 * MIB, 60 * MIB, 60 * MIB, 100 * MIB]
    assert replay.retries == 1


# -- CUDA: laws --------------------------------------------------------------------------------------

SIZES = st.one_of(
    st.integers(0, 4 * KIB),
    st.integers(1, 3 * MIB),
    st.integers(MIB, 64 * MIB),
    st.sampled_from([512, MIB, MIB + 1, 2 * MIB, 10 * MIB - 512, 10 * MIB, 20 * MIB, 21 * MIB]),
)
SETTINGS = st.builds(
    CudaSettings,
    expandable_segments=st.booleans(),
    roundup_power2_divisions=st.sampled_from([0, 2, 8]),
    max_split_size=st.sampled_from([None, None, 21 * MIB, 40 * MIB]),
    limit=st.sampled_from([None, None, 60 * MIB, 200 * MIB]),
)


@st.composite
def sequences(draw):
    held, requests = [], []
    for block, nbytes in enumerate(draw(st.lists(SIZES, max_size=30))):
        while held and draw(st.booleans()):
            requests.append(Free(held.pop(draw(st.integers(0, len(held) - 1)))))
        requests.append(Malloc(block, nbytes))
        held.append(block)
    return requests


@given(sequences(), SETTINGS)
def test_reserved_is_never_below_allocated_nor_that_below_live(requests, settings):
    for replay in (cuda(requests, settings), cpu(requests)):
        assert (replay.reserved >= replay.allocated).all()
        assert (replay.allocated >= replay.live).all()
        assert (replay.live >= 0).all()
    replay = cuda(requests, settings)
    if settings.limit is not None and not settings.expandable_segments:
        assert replay.reserved_peak <= settings.limit
    if settings.limit is None:
        assert replay.failed is None
        assert (np.diff(replay.reserved) >= 0).all()  # nothing is given back without need


@given(sequences())
def test_the_least_that_must_be_reserved_is_enough(requests):
    least = least_reserved(requests)
    found = cuda(requests, CudaSettings(limit=least))
    assert found.failed is None
    assert found.allocated_peak <= found.reserved_peak <= least
    assert least <= cuda(requests).reserved_peak


@given(sequences(), SETTINGS)
def test_blocks_in_use_never_overlap_and_parts_make_up_their_segment(requests, settings):
    allocator = Caching(settings, ())
    held = {}
    for request in requests:
        if isinstance(request, Free):
            if request.block in held:
                allocator.free(held.pop(request.block))
        elif request.nbytes:
            block = allocator.malloc(request.nbytes)
            if block is None:
                break
            held[request.block] = block
        places = sorted((block.address, block.address + block.size) for block in held.values())
        assert all(stop <= start for (_, stop), (start, _) in pairwise(places))
        blocks = blocks_of(allocator, held.values())
        assert sum(block.size for block in blocks if block.is_mapped) == allocator.reserved
        for block in blocks:
            following = block.after
            if following is not None:
                assert following.address == block.address + block.size
                is_one = block.is_free and following.is_free
                assert not (is_one and block.is_mapped == following.is_mapped)


def blocks_of(allocator, used):
    """Every part of every segment, from those in use and those in the pools."""
    pools = (allocator._small, allocator._large)
    found = {id(block): block for block in used}
    for pool in pools:
        found |= {id(block): block for block in (*pool.at.values(), *pool.unmapped.values())}
    neighbours = [b for block in found.values() for b in (block.before, block.after) if b]
    assert all(id(block) in found for block in neighbours)
    return list(found.values())


class Plain:
    """Best fit over all free blocks, in lists: slow, and written from the comment at the head of
    CUDACachingAllocator.cpp."""

    def __init__(self):
        self.segments = []  # lists of [address, size, is_free]
        self.top = 0

    def malloc(self, nbytes):
        size = max(512, (nbytes + 511) // 512 * 512)
        small = size <= MIB
        fits = []
        for kind, segment in self.segments:
            for block in segment:
                if kind == small and block[2] and block[1] >= size:
                    insort(fits, (block[1], block[0]))
        if not fits:
            total = (
                2 * MIB
                if small
                else 20 * MIB
                if size < 10 * MIB
                else -(-size // (2 * MIB)) * 2 * MIB
            )
            self.segments.append((small, [[self.top, total, True]]))
            fits = [(total, self.top)]
            self.top += total
        for _, segment in self.segments:
            for at, block in enumerate(segment):
                if block[0] == fits[0][1]:
                    rest = block[1] - size
                    if rest >= 512 if small else rest > MIB:
                        segment.insert(at + 1, [block[0] + size, rest, True])
                        block[1] = size
                    block[2] = False
                    return block
        raise AssertionError

    def free(self, block):
        block[2] = True
        for _, segment in self.segments:
            at = 0
            while at + 1 < len(segment):
                if segment[at][2] and segment[at + 1][2]:
                    segment[at][1] += segment.pop(at + 1)[1]
                else:
                    at += 1

    def reserved(self):
        return sum(block[1] for _, segment in self.segments for block in segment)


@given(sequences())
def test_the_fast_model_and_a_plain_one_reserve_the_same(requests):
    plain, held, history = Plain(), {}, []
    for request in requests:
        if isinstance(request, Free):
            if (block := held.pop(request.block)) is not None:
                plain.free(block)
        else:
            held[request.block] = plain.malloc(request.nbytes) if request.nbytes else None
        history.append(plain.reserved())
    assert reserved(*requests) == history


def test_a_replay_of_nothing_holds_nothing():
    replay = cuda([])
    assert (replay.live_peak, replay.reserved_peak, replay.segments_at_peak) == (0, 0, 0)
    assert replay.at_peak.fragmentation == 0


@pytest.mark.parametrize(
    ("requests", "says"),
    [
        ([Free(3)], "request 0 frees block 3, which is not held"),
        ([Malloc(0, 1), Free(0), Free(0)], "request 2 frees block 0, which is not held"),
        ([Malloc(0, 1), Malloc(0, 1)], "request 1: block 0 is asked for twice"),
        ([Malloc(0, -1)], "request 0: block 0 has -1 bytes"),
    ],
)
def test_requests_that_make_no_sense_are_refused_by_name(requests, says):
    for replay in (cuda, cpu):
        with pytest.raises(TraceError, match=says):
            replay(requests)


@pytest.mark.parametrize(
    "wrong",
    [
        {"roundup_power2_divisions": 3},
        {"roundup_power2_divisions": -1},
        {"max_split_size": 20 * MIB},
        {"large_segment": MIB},
        {"limit": -1},
    ],
)
def test_settings_that_torch_would_refuse_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        CudaSettings(**wrong)


# -- a step's requests -------------------------------------------------------------------------------


def test_an_op_takes_its_outputs_and_its_workspace_and_gives_back_what_dies_with_it():
    trace = parse("""
        f a  x:I1M -> h:A8M!  1ms +2M
        f b  h     -> ~h      1ms
        b a' h     -> g:G2M   1ms
    """)
    x, h = trace.values[0].storage, trace.values[1].storage
    g = trace.values[3].storage
    got = list(allocations(trace))
    assert got[:4] == [Malloc(x, MIB), Malloc(h, 8 * MIB), Malloc(-1, 2 * MIB), Free(-1)]
    assert Malloc(g, 2 * MIB) in got
    assert sum(isinstance(request, Malloc) for request in got) == 4  # the new version is no block


@given(traces())
def test_live_bytes_of_the_requests_peak_where_the_trace_does(trace):
    assert cuda(allocations(trace)).live_peak == trace.peak
    assert cpu(allocations(trace)).live_peak == trace.peak


def test_what_outlives_a_step_stands_in_the_next_for_what_died_there():
    # g is the gradient of the step before, n the new one; the loss l is held until the step ends.
    trace = parse("""
        f a  x:I1M w:P2M g:G2M -> h:A4M! l:A1K  1ms
        b a' h w               -> n:G2M         1ms
        keep n l
    """)
    h, l, n = (trace.values[i].storage for i in (3, 4, 5))
    g = trace.values[2].storage
    first, both = list(allocations(trace)), list(allocations(trace, steps=2))
    assert both[: len(first)] == first
    later = 6  # blocks of the second step: ids of its storages and the number of values
    assert both[len(first) :] == [
        Free(l),
        *(Malloc(later + h, 4 * MIB), Malloc(later + l, KIB)),
        Free(n),  # is what g was in the first step
        *(Malloc(later + n, 2 * MIB), Free(later + h)),
    ]
    assert Free(g) in first


@given(traces(), st.integers(1, 3))
def test_every_step_asks_for_as_much_as_the_first(trace, steps):
    one = cuda(allocations(trace))
    several = cuda(allocations(trace, steps=steps))
    assert several.live_peak == one.live_peak == trace.peak
    assert several.live[-1] == one.live[-1]
    assert several.reserved_peak >= one.reserved_peak


# -- CPU ---------------------------------------------------------------------------------------------


def test_large_blocks_are_mapped_alone_and_small_ones_share_a_heap_that_stays():
    replay = cpu([Malloc(0, 100 * KIB), Malloc(1, 1000), Free(0), Free(1)])
    # 64 bytes before the first aligned place and 100 KiB: 26 pages. 1,000 + 8 bytes: one page.
    assert replay.reserved.tolist() == [26 * 4096, 27 * 4096, 4096, 4096]
    assert replay.segments.tolist() == [1, 1, 0, 0]


def test_blocks_are_mapped_from_the_size_that_the_engine_sets():
    assert cpu(mallocs(RETURNED_FROM)).segments.tolist() == [1]
    # What glibc compares holds its header and room to find an aligned place in.
    assert cpu(mallocs(RETURNED_FROM - 100)).segments.tolist() == [1]
    assert cpu(mallocs(RETURNED_FROM - 200)).segments.tolist() == [0]


MEASURED = """
import json, sys
import penstock, torch
from penstock.dispatch.resident import CpuMeter, CAllocator

torch.set_num_threads(1)
meter, tight = CpuMeter(), CAllocator()
found = []
for nbytes in json.loads(sys.argv[1]):
    torch.empty(nbytes, dtype=torch.uint8).fill_(1)
    tries = []
    for _ in range(3):  # Python may touch a page of its own, once
        before = meter.resident()
        block = torch.empty(nbytes, dtype=torch.uint8).fill_(1)
        with_it = meter.resident()
        del block
        tries.append((with_it - before, meter.resident() - before))
    found.append(min(tries))
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_kernel_counts_what_the_model_says():
    page = 4096
    sizes = [RETURNED_FROM, 100_000, MIB, 2 * MIB - 1, 2 * MIB, 2 * MIB + 1, 50_000_000]
    sizes += [500 * page - 64, 500 * page - 63, 1000 * page - 64]
    command = [sys.executable, "-c", MEASURED, json.dumps(sizes)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    for nbytes, (taken, left) in zip(sizes, json.loads(ended.stdout), strict=True):
        assert (nbytes, taken) == (nbytes, cpu(mallocs(nbytes)).reserved_peak)
        assert left == 0


# -- CUDA: the real one ------------------------------------------------------------------------------

RECORDED = """
import json
import torch
from torch import nn

torch.cuda.init()
torch.cuda.memory._record_memory_history(max_entries=1_000_000, context=None, stacks="python")
model = nn.Sequential(
    nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
    nn.Conv2d(32, 64, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
    nn.Linear(1024, 4096), nn.Dropout(), nn.Linear(4096, 10),
).cuda()
optimizer = torch.optim.AdamW(model.parameters())
for size in (64, 96, 48, 64):
    loss = model(torch.randn(32, 3, size, size, device="cuda")).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
(events,) = torch.cuda.memory._snapshot()["device_traces"][:1]
rows = [(event["action"], event["addr"], event["size"]) for event in events]
print(json.dumps([rows, torch.cuda.max_memory_reserved(), torch.cuda.max_memory_allocated()]))
"""


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("expandable", [False, True])
def test_torch_reserves_what_the_model_says(expandable, monkeypatch):
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", f"expandable_segments:{expandable}")
    command = [sys.executable, "-c", RECORDED]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    events, reserved_peak, allocated_peak = json.loads(ended.stdout)

    requests, addresses, held, real = [], [], 0, []
    for action, address, nbytes in events:
        match action:
            case "alloc":
                requests.append(Malloc(address, nbytes))
                real.append(held)
            case "free_completed":
                requests.append(Free(address))
                real.append(held)
            case "segment_alloc":
                addresses.append(address)
                held += nbytes
            case "segment_map":
                held += nbytes
            case "segment_free" | "segment_unmap":
                held -= nbytes
    replay = cuda(requests, CudaSettings(expandable_segments=expandable), addresses)
    assert replay.reserved.tolist() == real
    assert replay.reserved_peak == reserved_peak
    assert replay.allocated_peak == allocated_peak
