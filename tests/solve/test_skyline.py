"""The search under a height: what it packs holds, what it calls impossible is, and why it goes back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packings import GAP, lowest
from penstock.solve.offsets import _lowest, assign, check
from penstock.solve.skyline import Buffer, _luby, pack, parts

BUFFERS = st.lists(
    st.builds(
        lambda start, length, nbytes: Buffer(start, start + length, nbytes),
        st.integers(0, 6),
        st.integers(1, 5),
        st.integers(1, 4),
    ),
    min_size=1,
    max_size=6,
)


def height(wanted, offsets):
    return max(low + b.nbytes for low, b in zip(offsets, wanted, strict=True))


@settings(max_examples=100, deadline=None)
@given(BUFFERS, st.integers(0, 2))
def test_it_packs_whatever_can_be_packed_and_calls_impossible_what_cannot(wanted, more):
    capacity = assign(wanted).floor + more
    found = pack(wanted, capacity, seconds=60)
    if lowest(wanted) <= capacity:
        assert check(wanted, found) == []
        assert height(wanted, found) <= capacity
    else:
        assert found == "impossible"


@st.composite
def like_the_gap(draw):
    """GAP with one buffer changed a little, once or twice in time, and a few small ones."""
    at, start, stop, nbytes = (
        draw(st.integers(*one)) for one in ((0, 7), (-1, 1), (-1, 1), (-1, 1))
    )
    one = GAP[at]
    changed = Buffer(max(0, one.start + start), one.stop + stop, max(1, one.nbytes + nbytes))
    first = [*GAP[:at], changed, *GAP[at + 1 :]] if changed.start < changed.stop else GAP
    again = [Buffer(b.start + 8, b.stop + 8, b.nbytes) for b in GAP] if draw(st.booleans()) else []
    return draw(st.permutations([*first, *again, *draw(BUFFERS.map(lambda few: few[:3]))]))


@settings(max_examples=60, deadline=None)
@given(like_the_gap())
def test_what_it_calls_impossible_is_so_for_cp_sat_too(wanted):
    start = assign(wanted)
    found = pack(wanted, start.floor, seconds=60)
    if found == "impossible":
        assert _lowest(wanted, start, 1, 60, 1).height > start.floor
    else:
        assert check(wanted, found) == []
        assert height(wanted, found) == start.floor


def pieces(random, count, start, stop, low, high):
    """Up to `count` buffers that fill a box of time and bytes without a hole."""
    if count == 1 or (stop - start == 1 and high - low == 1):
        return [Buffer(start, stop, high - low)]
    share = int(random.integers(1, count))
    if high - low == 1 or (stop - start > 1 and random.random() < 0.5):
        at = int(random.integers(start + 1, stop))
        boxes = (start, at, low, high), (at, stop, low, high)
    else:
        at = int(random.integers(low + 1, high))
        boxes = (start, stop, low, at), (start, stop, at, high)
    counts = (share, count - share)
    return [b for n, box in zip(counts, boxes, strict=True) for b in pieces(random, n, *box)]


@pytest.mark.parametrize("seed", range(6))
def test_pieces_of_a_box_are_put_together_again_without_a_hole(seed):
    random = np.random.default_rng(seed)
    wanted = [b for at in (0, 1000) for b in pieces(random, 30, at, at + 1000, 0, 1000)]
    wanted = [wanted[i] for i in random.permutation(len(wanted))]
    assert assign(wanted).floor == 1000
    found = pack(wanted, 1000, seconds=60)
    assert check(wanted, found) == []
    assert height(wanted, found) == 1000


def test_the_same_buffers_are_packed_in_the_same_way():
    wanted = pieces(np.random.default_rng(7), 25, 0, 1000, 0, 1000)
    assert pack(wanted, 1000, seconds=60) == pack(wanted, 1000, seconds=60)


def test_one_part_that_cannot_be_packed_is_enough_whatever_the_others_take():
    apart = [Buffer(b.start + 100, b.stop + 100, b.nbytes) for b in GAP]
    easy = [Buffer(200 + i, 202 + i, 2) for i in range(50)]
    assert pack([*easy, *apart], 5, seconds=60) == "impossible"
    assert isinstance(pack([*easy, *apart], 6, seconds=60), tuple)


def test_a_failure_is_not_met_again_for_each_way_to_pack_what_has_nothing_to_do_with_it():
    # What joins makes one part of all. A search that goes back one decision at a time would come to
    # the failure in GAP, which needs 6 bytes and has 5, by each of the many packings of the blocks.
    blocks = [Buffer(at, at + 9, 1) for at in range(20, 200, 10) for _ in range(3)]
    shifted = [Buffer(b.start + 1, b.stop, 2) for b in blocks[::3]]
    joining = Buffer(0, 300, 1)
    wanted = [*GAP, *blocks, *shifted, joining]
    assert len(list(parts(wanted))) == 1
    assert pack(wanted, 6, seconds=60) == "impossible"
    assert isinstance(pack(wanted, 7, seconds=60), tuple)


def test_without_time_nothing_is_claimed():
    assert pack(GAP, 6, seconds=0) == "unknown"


def test_parts_share_no_time_and_leave_out_what_needs_no_bytes():
    wanted = [Buffer(4, 9, 1), Buffer(0, 4, 2), Buffer(5, 6, 0), Buffer(9, 9, 3), Buffer(8, 12, 1)]
    assert list(parts(wanted)) == [[1], [0, 4]]
    assert list(parts([])) == []


def test_runs_grow_as_lubys_series():
    assert [_luby(run) for run in range(1, 16)] == [1, 1, 2, 1, 1, 2, 4, 1, 1, 2, 1, 1, 2, 4, 8]
