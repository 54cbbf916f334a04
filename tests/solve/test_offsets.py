"""Offsets in one arena: packings that hold, true bounds, and the exact ones against brute force."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from external import external
from packings import GAP, lowest
from penstock.errors import NeedError, UsageError
from penstock.interop.minimalloc import read_minimalloc
from penstock.ir.text import parse
from penstock.solve.offsets import Buffer, Packing, assign, best_fit, buffers, check, exact
from strategies import traces

# The toy of google/minimalloc (Apache-2.0), benchmarks/examples/input.12.csv: it fits in 12.
TOY = [Buffer(0, 3, 4), Buffer(3, 9, 4), Buffer(0, 9, 4), Buffer(9, 21, 4), Buffer(0, 21, 4)]

BUFFERS = st.lists(
    st.builds(
        lambda start, length, nbytes: Buffer(start, start + length, nbytes),
        st.integers(0, 6),
        st.integers(0, 5),
        st.integers(0, 9),
    ),
    max_size=12,
)


def test_buffers_that_never_meet_share_their_place():
    packing = assign([Buffer(0, 2, 7), Buffer(2, 4, 7)])
    assert packing == Packing((0, 0), 7, 7)
    assert packing.proven


def test_the_smallest_gap_that_has_room_is_taken():
    # Gaps of 5 (0 to 5) and of 3 (7 to 10) beside a buffer of 3.
    wanted = [Buffer(0, 1, 5), Buffer(0, 9, 2), Buffer(0, 1, 3), Buffer(0, 9, 2), Buffer(3, 5, 3)]
    assert best_fit(wanted, range(5)) == (0, 5, 7, 10, 7)


def test_without_a_gap_a_buffer_goes_on_top_of_what_is_alive():
    wanted = [Buffer(0, 9, 4), Buffer(0, 1, 6), Buffer(3, 5, 3)]
    assert best_fit(wanted, range(3)) == (0, 4, 4)


def test_the_toy_of_minimalloc_fits_in_12():
    packing = assign(TOY)
    assert (packing.height, packing.proven) == (12, True)
    assert check(TOY, packing.offsets) == []


@given(BUFFERS, st.sampled_from([1, 4]))
def test_a_packing_has_no_overlap_and_is_no_lower_than_what_is_alive_at_once(wanted, alignment):
    packing = assign(wanted, alignment=alignment)
    assert check(wanted, packing.offsets, alignment=alignment) == []
    live = max(
        (sum(b.nbytes for b in wanted if b.start <= at < b.stop) for at in range(12)), default=0
    )
    assert live <= packing.floor <= packing.height
    tops = [low + b.nbytes for low, b in zip(packing.offsets, wanted, strict=True)]
    assert max((t for t, b in zip(tops, wanted, strict=True) if b.stop > b.start), default=0) <= (
        packing.height
    )


@settings(max_examples=40)
@given(BUFFERS.map(lambda wanted: wanted[:5]))
def test_the_exact_packing_is_the_lowest_of_all(wanted):
    packing = exact(wanted)
    assert check(wanted, packing.offsets) == []
    assert packing.proven
    assert packing.height == lowest([b for b in wanted if b.stop > b.start])


# 9 bytes are alive at once, and 9 are enough; best fit needs 10 in each of its orders.
HARD = [Buffer(5, 9, 4), Buffer(3, 7, 3), Buffer(3, 5, 3), Buffer(2, 5, 3)]


def test_the_exact_packing_is_lower_than_the_greedy_one_where_that_errs():
    assert (assign(HARD).height, assign(HARD).proven) == (10, False)
    packing = exact(HARD)
    assert (packing.height, packing.proven) == (9, True)
    assert check(HARD, packing.offsets) == []
    assert exact(HARD, capacity=9).height == 9
    assert exact(HARD, capacity=10) == assign(HARD)  # low enough


def test_where_the_lowest_packing_is_above_what_is_alive_that_is_proved_too():
    assert assign(GAP).floor == 5
    packing = exact(GAP)
    assert (packing.height, packing.floor, packing.proven) == (6, 6, True)
    assert lowest(GAP) == 6
    refused = exact(GAP, capacity=5)
    assert (refused.height, refused.floor) == (assign(GAP).height, 6)


def test_a_capacity_below_what_is_alive_needs_no_search():
    assert exact(GAP, capacity=4) == assign(GAP)


def test_every_order_is_the_best_of_some_step():
    # Placed as they come, these need 5; largest, longest and largest area first need 6 or more.
    wanted = [Buffer(5, 8, 2), Buffer(4, 6, 1), Buffer(4, 5, 4), Buffer(6, 8, 3)]
    assert assign(wanted).height == 5


def test_alignment_rounds_sizes_and_places():
    packing = assign([Buffer(0, 1, 3), Buffer(0, 1, 5)], alignment=4)
    assert sorted(packing.offsets) == [0, 8]
    assert packing.height == packing.floor == 12


def test_a_capacity_that_nothing_can_meet_is_known_to_be_one():
    packing = exact(TOY, capacity=11)
    assert packing.height == 12
    assert packing.floor == 12


def test_without_time_the_greedy_packing_stands_and_is_not_called_proven():
    packing = exact(HARD, seconds=0)
    assert packing == assign(HARD)
    assert not packing.proven


def test_what_is_alive_in_a_step_becomes_buffers():
    trace = parse("""
        f a  x:I1M -> h:A8M!  1ms +2M
        f b  h     -> ~h      1ms
        b a' h     -> g:G2M   1ms
    """)
    found = buffers(trace)
    assert found[0] == Buffer(0, 3, 2**20)  # x stays
    assert found[1].nbytes == 8 * 2**20 and found[1].start == 0  # both versions of h: one buffer
    assert found[-1] == Buffer(0, 1, 2 * 2**20)  # the workspace of a
    assert len(found) == 4


@given(traces())
def test_a_step_packs_no_lower_than_its_peak(trace):
    wanted = buffers(trace)
    packing = assign(wanted)
    assert packing.floor == trace.peak
    assert check(wanted, packing.offsets) == []


@pytest.mark.parametrize(
    ("wanted", "alignment", "says"),
    [
        ([Buffer(0, 1, 1)], 0, "alignment is 0"),
        ([Buffer(0, 1, 1), Buffer(0, 1, -2)], 1, "buffer 1 cannot be: -2 bytes from 0 to 1"),
        ([Buffer(3, 1, 1)], 1, "buffer 0 cannot be: 1 bytes from 3 to 1"),
    ],
)
def test_buffers_that_cannot_be_are_refused(wanted, alignment, says):
    for solve in (assign, exact):
        with pytest.raises(UsageError, match=says):
            solve(wanted, alignment=alignment)


def test_nothing_to_place_needs_nothing():
    assert assign([]) == exact([]) == Packing((), 0, 0)


def test_a_wrong_packing_is_told():
    assert check([Buffer(0, 2, 4), Buffer(1, 3, 4)], [0, 2]) == ["buffers 0 and 1 overlap"]
    assert check([Buffer(0, 2, 4)], [3], alignment=4) == [
        "buffer 0 stands at 3, which is no multiple of 4"
    ]


def test_the_lowest_packing_is_found_beside_highs():
    """Both solvers bring a library called HiGHS: in one process the second cannot be loaded."""
    pytest.importorskip("highspy")
    twice = [*GAP, *(Buffer(b.start + 20, b.stop + 20, 2 * b.nbytes) for b in GAP)]
    packing = exact(twice)
    assert packing.proven
    assert packing.height == 12


def test_without_ortools_the_error_says_what_to_install(monkeypatch):
    for name in ("ortools", "ortools.sat", "ortools.sat.python"):
        monkeypatch.setitem(sys.modules, name, None)
    assert exact(TOY).proven  # best fit was enough
    assert exact(HARD).proven  # the search was enough
    # It takes 2 more than what is alive at once, so the search for that tells only that 1 is missing.
    twice = [*GAP, *(Buffer(b.start + 20, b.stop + 20, 2 * b.nbytes) for b in GAP)]
    assert exact(twice, capacity=12).height == 12
    with pytest.raises(NeedError, match=r"pip install 'penstock\[solvers\]'"):
        exact(twice)


def test_the_instances_of_minimalloc_are_packed_in_their_capacity():
    paths = sorted(external("minimalloc").glob("*.csv"))
    assert paths
    for path in paths:
        instance = read_minimalloc(path)
        packing = exact(instance.buffers, capacity=instance.capacity)
        assert check(instance.buffers, packing.offsets) == []
        assert packing.height <= instance.capacity
