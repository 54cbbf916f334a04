"""What links can still carry, op by op."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.solve.ledger import Ledger


def ledger(*slots):
    return Ledger(np.array(slots, np.float64), 1.0)


def test_bytes_are_gone_in_the_op_whose_slot_takes_the_last_of_them():
    link = ledger(2, 2, 0, 2)
    assert [int(link.finish(n, 0)) for n in (1, 2, 3, 4, 5, 6, 7)] == [0, 0, 1, 1, 3, 3, 4]
    assert int(link.finish(1, 2)) == 3


def test_bytes_must_begin_with_the_last_op_from_which_they_all_pass():
    link = ledger(2, 2, 0, 2)
    assert [int(link.latest_start(n, 4)) for n in (1, 2, 3, 4, 6, 7)] == [3, 3, 1, 1, 0, -1]
    assert int(link.latest_start(1, 3)) == 1


def test_what_is_booked_is_no_longer_free():
    link = ledger(2, 2, 2)
    link.book(3, 0)
    assert link.free.tolist() == [0, 1, 2]
    assert link.is_full(0, 1) and not link.is_full(0, 2)
    assert int(link.finish(3, 0)) == 2


def test_a_shared_link_loses_what_is_booked_and_bounds_what_is_left():
    host, ssd = ledger(4, 4, 4), ledger(1, 1, 1)
    ssd.book(2, 1, also=host)
    assert ssd.free.tolist() == [1, 0, 0]
    assert host.free.tolist() == [4, 3, 3]
    ssd.give_way(host, host.book(3.5, 0))
    assert ssd.free.tolist() == [0.5, 0, 0]


SLOTS = st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=1, max_size=8)


@given(slots=SLOTS, nbytes=st.sampled_from([0.5, 1.0, 2.5, 4.0]), data=st.data())
def test_finish_and_latest_start_are_the_walks_that_they_replace(slots, nbytes, data):
    link = ledger(*slots)
    start = data.draw(st.integers(0, len(slots) - 1))
    walked = next(
        (k for k in range(start, len(slots)) if sum(slots[start : k + 1]) >= nbytes), None
    )
    assert int(link.finish(nbytes, start)) == (len(slots) if walked is None else walked)
    stop = data.draw(st.integers(1, len(slots)))
    back = next((k for k in range(stop - 1, -1, -1) if sum(slots[k:stop]) >= nbytes), -1)
    assert int(link.latest_start(nbytes, stop)) == back


@given(slots=SLOTS, nbytes=st.sampled_from([0.5, 1.0, 2.5, 4.0]), data=st.data())
def test_booking_takes_so_many_bytes_as_there_are_and_fills_in_order(slots, nbytes, data):
    link, start = ledger(*slots), data.draw(st.integers(0, len(slots) - 1))
    end = int(link.finish(nbytes, start))
    link.book(nbytes, start)
    assert (link.free >= 0).all()
    assert link.free[start:end].sum() == 0
    taken = sum(slots) - link.free.sum()
    assert taken == pytest.approx(min(nbytes, sum(slots[start:])))
