"""Rhu et al.: vDNN (MICRO 2016), and Shriram et al.: vDNN++ (IPDPS 2019)."""

from functools import cache

import pytest

from hosts import host
from penstock.ir.policy import Problem
from penstock.machines import machine
from penstock.policies.vdnn import Vdnn
from penstock.policies.vdnnpp import Vdnnpp
from penstock.simulate.roofline import priced
from penstock.solve.best import outcome
from penstock.solve.layers import LayerKind, kind_of
from penstock.source import record
from steps import convolutions

MIB = 2**20


@cache
def network(text):
    """A whole step of a published network, priced for the paper's card."""
    return priced(record(text, "cpu"), machine("titan-x-maxwell"))


def ask(policy, trace, budget, on=None):
    problem = Problem(trace, on or machine("titan-x-maxwell"), budget)
    return outcome(problem, policy(problem))


def moved(found):
    """Bytes sent away."""
    values = found.schedule.trace.values
    return sum(values[swap.gap.value].nbytes for swap in found.plan.swaps)


def loss_begins(found):
    """Seconds: when forward ends."""
    loss = next(op.index for op in found.schedule.trace.ops if op.name == "loss")
    return next(s.start for s in found.timeline.spans if s.lane == "compute" and s.ref == loss)


# -- what is moved --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "variant", "gigabytes"),
    [
        # Arithmetic on the published layers; the paper says "up to 16 GB".
        ("cnn:vgg16?batch=256&optimizer=none", "all", 15.57),
        ("cnn:vgg16?batch=256&optimizer=none", "conv", 9.30),
        ("cnn:vgg416?batch=32&optimizer=none", "all", 64.63),
    ],
)
def test_the_inputs_of_vgg_are_as_large_as_published(text, variant, gigabytes):
    trace = network(text)
    found = ask(Vdnn(variant, smallest=1), trace, trace.peak)
    assert round(moved(found) / 1e9, 2) == gigabytes


def test_alternate_sends_every_other_convolutions_input_from_the_first_on():
    trace = network("cnn:vgg16?batch=256&optimizer=none")
    problem = Problem(trace, machine("titan-x-maxwell"), trace.peak)
    (every,) = Vdnnpp("conv").plans(problem)
    (other,) = Vdnnpp("alternate").plans(problem)
    assert len(every.swaps) == 13
    assert {s.gap for s in other.swaps} == {s.gap for s in every.swaps[::2]}


# -- when -----------------------------------------------------------------------------------------


def test_a_layer_waits_for_the_copy_of_the_one_before():
    """Transfer takes twice the compute: forward is the sum of the larger, not the larger sum."""
    slow = host(2 * MIB)  # 2 s a copy
    trace = convolutions(8)
    fenced = ask(Vdnn("all"), trace, trace.peak, slow)
    assert loss_begins(fenced) == 7 * 2 + 1  # the last convolution's input stays
    free = ask(Vdnnpp("all"), trace, trace.peak, slow)
    assert loss_begins(free) == 8
    assert moved(fenced) == moved(free) == 7 * 4 * MIB


def test_in_backward_each_convolution_waits_for_its_own_input():
    """From the loss at 15 s: seven copies back of 2 s, begun with the last convolution; then 1 s."""
    trace = convolutions(8)
    found = ask(Vdnn("all"), trace, trace.peak, host(2 * MIB))
    assert found.timeline.seconds == 15 + 7 * 2 + 1


def test_without_fences_more_memory_means_less_waiting():
    """With room for one input beside the layer's own, vDNN++ is as slow as vDNN."""
    trace, slow = convolutions(8), host(2 * MIB)
    tightest = 2 * 4 * MIB + 2**10
    ends = [loss_begins(ask(Vdnnpp("all"), trace, tightest + n * 4 * MIB, slow)) for n in range(9)]
    assert ends[0] == loss_begins(ask(Vdnn("all"), trace, tightest, slow)) == 15
    assert ends == sorted(ends, reverse=True)
    assert ends[-1] == 8


# -- how much memory, how much time ---------------------------------------------------------------

NETWORKS = ["cnn:alexnet?batch=32&optimizer=none", "cnn:vgg16?batch=16&optimizer=none"]


@pytest.mark.parametrize("text", NETWORKS)
def test_what_moves_more_needs_less(text):
    trace = network(text)
    plenty = 2 * trace.peak
    every, convs = (ask(Vdnn(v), trace, plenty) for v in ("all", "conv"))
    assert every.timeline.peak <= convs.timeline.peak <= trace.peak
    assert moved(every) > moved(convs) > 0


@pytest.mark.parametrize("text", NETWORKS)
def test_dyn_moves_only_what_it_must(text):
    trace = network(text)
    every = ask(Vdnn("all"), trace, 2 * trace.peak)
    for share in (1.0, 0.9, 0.7, 0.5):
        budget = int(share * trace.peak) + trace.slack
        dyn, everything = (ask(Vdnn(v), trace, budget) for v in ("dyn", "all"))
        assert dyn.shortfall == 0 or everything.shortfall > 0
        assert dyn.timeline.seconds <= everything.timeline.seconds
        assert (moved(dyn) == 0) == (share == 1.0)
    assert every.timeline.seconds > trace.seconds


@pytest.mark.parametrize("variant", ["all", "conv"])
@pytest.mark.parametrize("text", NETWORKS)
def test_without_fences_no_step_is_slower(text, variant):
    trace = network(text)
    for share in (1.0, 0.6):
        budget = int(share * trace.peak) + trace.slack
        fenced, free = (ask(p(variant), trace, budget) for p in (Vdnn, Vdnnpp))
        assert free.shortfall == fenced.shortfall
        assert free.timeline.seconds <= fenced.timeline.seconds


def test_where_products_do_the_work_they_are_the_convolutions():
    trace = network("cnn:transformer?batch=2&seq=16&optimizer=none")
    found = ask(Vdnn("conv", smallest=1), trace, 2 * trace.peak)
    kinds = {kind_of(trace.ops[swap.gap.start].name) for swap in found.plan.swaps}
    assert kinds == {LayerKind.PRODUCT}  # with dropout, attention is made of products on a CPU
