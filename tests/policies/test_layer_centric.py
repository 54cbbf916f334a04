"""Jin et al.: Layrub, layer-centric memory reuse (ACM TACO 2018)."""

from functools import cache

import pytest

from hosts import host
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.ir.timeline import WORKSPACE
from penstock.ir.trace import Kind
from penstock.policies.layer_centric import LayerCentric
from penstock.solve.best import outcome
from penstock.source import record
from steps import convolutions

MIB = 2**20
BLOBS = (Kind.INPUT, Kind.ACTIVATION, Kind.TEMPORARY)


def ask(trace, on, **options):
    problem = Problem(trace, on, 2 * trace.peak)
    return outcome(problem, LayerCentric(**options)(problem))


def blob_bytes(found):
    """The most that activations and their gradients take at once."""
    timeline = found.timeline
    rows = [timeline.kinds.index(kind) for kind in BLOBS]
    assert WORKSPACE not in BLOBS
    return int(timeline.resident[rows].sum(axis=0).max())


def test_a_value_leaves_one_layer_after_its_last_use_and_the_step_waits():
    trace = convolutions(6)
    swaps = ask(trace, host(8 * MIB)).plan.swaps
    # Neither the first layer nor the last two (a convolution and the loss) send anything away.
    assert [swap.gap.value for swap in swaps] == [1, 2, 3, 4]
    assert [(s.evict_at, s.fence) for s in swaps] == [(n + 1, n + 2) for n in (1, 2, 3, 4)]


def test_it_comes_back_beside_the_layer_before():
    trace = convolutions(6)
    for swap in ask(trace, host(8 * MIB)).plan.swaps:
        assert swap.prefetch_at == swap.gap.stop - 1


def test_what_a_layer_made_for_itself_leaves_too():
    trace = parse("""
        f conv   x:I4M  -> a:A4M!        1s
        f pool   a      -> b:A1M! i:A2M! 1s
        f conv   b      -> c:A4M!        1s
        f conv   c      -> d:A4M!        1s
        f loss   d      -> l:T1          0s
        b loss'  l      -> g:T1          0s
        b conv'  g c    -> h:T1          1s
        b conv'  h b    -> j:T1          1s
        b pool'  j a i  -> k:T1          1s
        b conv'  k x    -> m:T1          1s
    """)
    found = ask(trace, host(8 * MIB))
    assert {trace.values[s.gap.value].name for s in found.plan.swaps} == {"a", "i", "b"}


@pytest.mark.parametrize("speed", [8, 2])
def test_no_layer_is_faster_than_its_copy(speed):
    """Each layer takes the longer of its second and the copies beside it: a fence ends it."""
    layers = 8
    found = ask(convolutions(layers), host(speed * MIB))
    copy = 4 / speed
    away = layers - 2  # of one convolution each: not the first layer, not the last two
    forward = (layers - away) * 1 + away * max(1, copy)
    loss = next(s.start for s in found.timeline.spans if s.lane == "compute" and s.ref == layers)
    assert loss == forward
    assert found.timeline.seconds >= forward + (layers - away) * 1 + away * max(1, copy)


def test_blobs_take_no_more_in_a_deeper_chain():
    taken = {blob_bytes(ask(convolutions(depth), host(8 * MIB))) for depth in (8, 32, 128)}
    assert len(taken) == 1
    plain = [convolutions(depth).peak for depth in (8, 32, 128)]
    assert plain[2] > 10 * plain[0]


@cache
def resnet(depth):
    return record(f"cnn:resnet{depth}?batch=8&optimizer=sgd", "cpu")


def test_blobs_take_no_more_in_a_deeper_resnet():
    """The published table: the same bytes from 50 layers on. Copies and ops here take no time."""
    instant = host(1e18)
    shallow, deep = (ask(resnet(depth), instant, smallest=1) for depth in (50, 101))
    assert len(resnet(101).ops) > 1.5 * len(resnet(50).ops)
    assert blob_bytes(deep) == blob_bytes(shallow)
