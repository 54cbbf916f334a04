"""Layers' inputs come and go; swaps fit their gaps."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.ir.machine import Device, Link, Machine, Tier
from penstock.ir.plan import Plan, Recompute, Swap, check
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.ir.trace import Gap
from penstock.solve.layers import feature_inputs, heavy_kinds, layers_of
from penstock.solve.offloads import first_to_fit, named_storages, offloads, swap_within
from strategies import plans, problems

MIB = 2**20
LINK = Link(4 * MIB)
MACHINE = Machine(Device("cpu", 2**40), (Tier("host", 2**40, LINK, LINK),))


def net(*kinds, sizes=None):
    """A chain of layers, each of which needs its input in backward; then a loss."""
    sizes = sizes or [4] * len(kinds)
    lines = [f"f loss h{len(kinds)} -> l:T1 0ms", f"b loss' l -> g{len(kinds)}:T1 0ms"]
    for n, kind in reversed(list(enumerate(kinds))):
        made = f"f {kind} h{n} -> h{n + 1}:A{sizes[n + 1] if n + 1 < len(sizes) else 1}M! 1s"
        if n == 0:
            made = made.replace("h0 ", f"h0:I{sizes[0]}M ")
        lines.insert(0, made)
        lines.append(f"b {kind}' g{n + 1} h{n} -> g{n}:T1 1s")
    return parse("\n".join(lines))


def called_at(trace, smallest=1):
    """For each layer whose input leaves, the layer whose backward calls for it (or its own)."""
    problem = Problem(trace, MACHINE, trace.peak)
    layers = layers_of(trace)
    inputs = feature_inputs(problem, layers, smallest)
    swaps = offloads(problem, layers, inputs, heavy_kinds(trace, layers), fenced=True)
    check(trace, Plan(tuple(swaps)), MACHINE)
    by = {layer.backward: n for n, layer in reversed(list(enumerate(layers)))}
    return {swap.gap.start: by[swap.prefetch_at] for swap in swaps}


def test_each_layer_calls_for_the_nearest_input_upstream():
    assert called_at(net("conv", "pool", "pool", "conv")) == {0: 1, 1: 2, 2: 3}


def test_a_layer_looks_no_further_than_the_next_convolution():
    """The second convolution keeps its small input; nobody below it looks past it."""
    trace = net("conv", "conv", "pool", "conv", sizes=[4, 1, 4, 4])
    assert called_at(trace, smallest=2 * MIB) == {0: 1, 2: 3}


def test_a_convolution_that_is_away_is_called_for_itself():
    trace = net("conv", "pool", "pool", "conv", sizes=[4, 1, 1, 4])
    assert called_at(trace, smallest=2 * MIB) == {0: 3}


def test_softmax_and_activations_in_place_call_for_nothing():
    trace = parse("""
        f aten.convolution  x:I4M -> a:A4M!  1s
        f aten._softmax     a     -> b:A4M!  1s
        f aten.convolution  b     -> c:A4M   1s
        f aten.nll_loss     c     -> l:T1    0s
        b loss'             l     -> g:T1    0s
        b conv'             g b   -> h:T1    1s
        b softmax'          h b   -> i:T1    1s
        b conv'             i x   -> j:T1    1s
    """)
    assert called_at(trace) == {0: 2}


def test_an_input_for_which_nobody_called_comes_when_it_is_due():
    """Nothing is saved for the second convolution: its backward begins with that of the first."""
    trace = parse("""
        f aten.convolution  x:I4M -> a:A4M!  1s
        f aten.convolution  a     -> b:A4M   1s
        f aten.nll_loss     b     -> l:T1    0s
        b loss'             l     -> g:T1    0s
        b rest'             g     -> h:T1    1s
        b conv'             h x   -> j:T1    1s
    """)
    assert called_at(trace) == {0: 0}


def test_the_copy_out_starts_with_the_layer_and_the_fence_stands_behind_its_activation():
    trace = parse("""
        f aten.convolution  x:I4M -> a:A4M!  1s
        f aten.relu_        a     -> ~a      1s
        f aten.max_pool2d   a     -> b:A4M!  1s
        f aten.convolution  b     -> c:A4M   1s
        f aten.nll_loss     c     -> l:T1    0s
        b loss'             l     -> g:T1    0s
        b conv'             g b   -> h:T1    1s
        b pool'             h a   -> i:T1    1s
        b relu'             i a   -> j:T1    1s
        b conv'             j x   -> k:T1    1s
    """)
    problem, layers = Problem(trace, MACHINE, trace.peak), layers_of(trace)
    inputs = feature_inputs(problem, layers, 1)
    first, second = offloads(problem, layers, inputs, heavy_kinds(trace, layers), fenced=True)
    assert (first.evict_at, first.fence) == (0, 2)
    assert (second.evict_at, second.fence) == (2, 3)
    free = offloads(problem, layers, inputs, heavy_kinds(trace, layers), fenced=False)
    assert [swap.fence for swap in free] == [None, None]


CHAIN = net("conv", "conv", "conv")
WIDE = Gap(1, 1, 6)  # h1: made by op 0, read by op 1, and by the second backward


def fitted(**wanted):
    return swap_within(Problem(CHAIN, MACHINE, 0), WIDE, set(), **wanted)


def test_triggers_stay_in_the_gap():
    assert next(gap for gap in CHAIN.gaps() if gap.value == 1) == WIDE
    assert fitted(evict_at=1, prefetch_at=5) == Swap(WIDE, "host", 1, 5)
    assert fitted(evict_at=0, prefetch_at=0) == Swap(WIDE, "host", 1, 3)
    assert fitted(evict_at=9, prefetch_at=9) == Swap(WIDE, "host", 5, 6)
    assert fitted(evict_at=1, prefetch_at=5, fence=0).fence == 2
    assert fitted(evict_at=1, prefetch_at=5, fence=9).fence == 6


def test_a_storage_about_which_something_is_decided_leaves_only_when_it_is_idle():
    trace = parse("""
        f a  x:I4M -> h:A4M! 1s
        f b  x     -> y:A1M  1s
        f c  h y   -> z:A1M  1s
        f d  z     -> l:T1   1s
        b d' l     -> g:T1   1s
        b a' g h   -> k:T1   1s
    """)
    first, gap = (gap for gap in trace.gaps() if trace.values[gap.value].name == "h")
    problem = Problem(trace, MACHINE, trace.peak, Plan((Recompute(first, 2),)))
    swap = swap_within(problem, gap, named_storages(problem), evict_at=1, prefetch_at=5)
    assert (swap.evict_at, swap.prefetch_at) == (3, 5)
    check(trace, problem.given.plus([swap]), MACHINE)


@given(problems(), st.integers(0, 40), st.integers(0, 40), st.none() | st.integers(0, 40))
def test_every_swap_that_was_fitted_is_valid(problem, evict_at, prefetch_at, fence):
    for gap in problem.trace.gaps():
        if not gap.wraps and gap.stop is not None:
            swap = swap_within(
                problem, gap, set(), evict_at=evict_at, prefetch_at=prefetch_at, fence=fence
            )
            check(problem.trace, Plan((swap,)), problem.machine)


@settings(max_examples=60)
@given(problems(), st.data())
def test_every_free_gap_can_be_swapped_beside_what_is_given(problem, data):
    drawn = data.draw(plans(problem.trace, problem.machine))
    problem = replace(problem, given=drawn)
    named = named_storages(problem)
    for gap in problem.free_gaps():
        if not gap.wraps and gap.stop is not None:
            swap = swap_within(problem, gap, named, evict_at=0, prefetch_at=0)
            check(problem.trace, drawn.plus([swap]), problem.machine)


@pytest.mark.parametrize("budget", [2**40, 9 * MIB, 1])
def test_the_first_plan_that_fits_is_taken_else_the_one_that_lacks_least(budget):
    problem = Problem(CHAIN, MACHINE, budget)
    layers = layers_of(CHAIN)
    inputs = feature_inputs(problem, layers, 1)
    swaps = offloads(problem, layers, inputs, heavy_kinds(CHAIN, layers), fenced=True)
    keep, some, most = Plan(), Plan(tuple(swaps[:1])), Plan(tuple(swaps))
    found = first_to_fit(problem, iter((keep, some, most)))
    assert found is {2**40: keep, 9 * MIB: most, 1: most}[budget]
