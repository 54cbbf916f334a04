"""A device that works off a queue is idle only where the host has asked for nothing yet."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.ir.machine import Device, Machine, Rate
from penstock.ir.text import parse
from penstock.simulate.queue import idle_before
from penstock.simulate.roofline import priced

ADD, READ = "aten.add", "aten._local_scalar_dense"


def test_a_host_that_is_slower_than_the_device_sets_the_pace() -> None:
    assert idle_before([ADD] * 3, [2.0] * 3, [0.5] * 3) == [2.0, 1.5, 1.5]


def test_a_host_that_is_faster_is_waited_for_once() -> None:
    assert idle_before([ADD] * 3, [0.5] * 3, [2.0] * 3) == [0.5, 0.0, 0.0]


def test_what_the_host_gained_on_long_ops_covers_short_ones() -> None:
    # It has asked for the last at 4, and the device has ended the one before at 1 + 5.
    assert idle_before([ADD] * 4, [1.0] * 4, [5.0, 0.1, 0.1, 0.1]) == [1.0, 0.0, 0.0, 0.0]


def test_a_host_that_needs_a_result_loses_what_it_had_gained() -> None:
    assert idle_before([ADD, READ, ADD], [1.0] * 3, [5.0, 0.5, 0.5]) == [1.0, 0.0, 1.0]


times = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30)


@given(times)
def test_a_step_takes_as_long_as_the_slower_of_the_two_and_no_longer_than_both(
    steps: list[tuple[float, float]],
) -> None:
    asking, running = [a for a, _ in steps], [r for _, r in steps]
    took = sum(idle_before([ADD] * len(steps), asking, running)) + sum(running)
    assert took >= max(sum(asking), sum(running)) - 1e-9
    assert took <= sum(asking) + sum(running) + 1e-9


@pytest.mark.parametrize(("device", "idle"), [("cpu", [1.0, 1.0, 1.0]), ("cuda", [1.0, 0.0, 0.0])])
def test_on_a_gpu_a_priced_step_has_the_hosts_time_only_where_nothing_is_queued(
    device: str, idle: list[float]
) -> None:
    trace = parse("""
        f a x:I1M -> h:A1M
        f b h     -> y:A1M
        f c y     -> z:A1M
    """)
    costs = {"pointwise": Rate(launch=2.0), "host forward": Rate(launch=1.0)}
    found = priced(
        type(trace)(trace.ops, trace.values, device), Machine(Device("d", 1 << 30, costs=costs))
    )
    assert [op.host_seconds for op in found.ops] == idle
    assert found.seconds == sum(idle) + 6.0
