"""Meng, Sun, Yang, Qiu, Gu: Training Deeper Models by GPU Memory Optimization on TensorFlow (2017)."""

from itertools import pairwise

import numpy as np
import pytest

from hosts import host
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.machines import find
from penstock.policies.meng import Meng
from penstock.simulate.roofline import priced
from penstock.solve.best import outcome
from penstock.source import record
from steps import STEPS, chain

MIB = 2**20


def swapped(problem):
    return {swap.gap for swap in Meng()(problem).swaps}


@pytest.mark.parametrize("step", ["chain", "skips"])
def test_more_memory_keeps_more_and_what_is_nearest_the_loss(step):
    trace = STEPS[step]
    chosen = [
        swapped(Problem(trace, host(2**30), int(share * trace.peak)))
        for share in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    ]
    assert chosen[-1] == set()
    assert len(chosen[0]) > len(chosen[-2]) > 0
    for tight, wide in pairwise(chosen):
        assert wide <= tight
        kept = [trace.values[gap.value].producer for gap in tight - wide]
        far = [trace.values[gap.value].producer for gap in wide]
        assert max(far, default=-1) < min(kept, default=len(trace.ops))


def test_no_more_is_swapped_than_must_be():
    trace = chain(12, "4M", "1s")
    problem = Problem(trace, host(8 * MIB), trace.peak - 9 * MIB)
    plan = Meng()(problem)
    assert [swap.gap.value for swap in plan.swaps] == [1, 2, 3]
    assert outcome(problem, plan).shortfall == 0


def test_a_value_leaves_when_it_is_made_and_comes_back_when_the_copy_just_fits():
    """A copy lasts two layers: it starts when the third-last op before the reader has ended."""
    trace = chain(8, "4M", "1s")
    problem = Problem(trace, host(2 * MIB), 0)
    first = Meng().by_distance(problem)[0]
    assert (first.gap.start, first.gap.stop, first.evict_at) == (1, 17, 1)
    assert first.prefetch_at == 15  # two ops of a second are left


def test_ops_beside_the_reader_do_not_hide_the_copy():
    """On the graph's clock op c runs beside b, though the step runs it between b and the reader."""
    trace = parse("""
        f a   x:I1M -> h:A4M! 1s
        f u   h     -> y:A1M  1s
        f l   y     -> l:T1   1s
        b p   l     -> p:T1   4s
        b c   l     -> c:T1   4s
        b r   p h   -> r:T1   1s
        b s   r c   -> s:T1   1s
    """)
    (swap,) = Meng().by_distance(Problem(trace, host(MIB), 0))  # a copy lasts 4 s
    assert swap.gap.stop == 5
    assert swap.prefetch_at == 3  # after the loss at 3 s: it is back when p has ended, at 7 s


def attention(steps):
    """Additive attention over as many encoder states as decoder steps, keys + query at each."""
    forward = [f"f enc x:I1M w:P1K -> keys:A{steps}M! 1ms"]
    backward = []
    last = "x"
    for t in range(steps):
        forward += [
            f"f aten.mm {last} w -> q{t}:A1M 1ms",
            f"f aten.add keys q{t} -> sum{t}:A{steps}M 1ms",
            f"f aten.tanh sum{t} -> tanh{t}:A{steps}M! 1ms",
            f"f aten.mv tanh{t} w -> s{t}:A1M! 1ms",
        ]
        backward += [
            f"b mv' {'l' if t == steps - 1 else f'd{t + 1}'} s{t} tanh{t} -> e{t}:T{steps}M 1ms",
            f"b sum' e{t} -> d{t}:T1M 1ms",
        ]
        last = f"s{t}"
    loss = [f"f aten.sum {last} -> l:T1K 1ms"]
    blocks = [backward[n : n + 2] for n in range(0, len(backward), 2)]
    return parse("\n".join([*forward, *loss, *(line for block in blocks[::-1] for line in block)]))


def test_attention_that_is_rewritten_grows_with_the_length_and_not_with_its_square():
    lengths = [8, 16, 32]
    plain, rewritten = [], []
    for steps in lengths:
        trace = attention(steps)
        problem = Problem(trace, host(2**30), trace.peak)
        sums = Meng().rewrites(problem)
        assert {trace.values[one.gap.value].name for one in sums} == {
            f"tanh{t}" for t in range(steps)
        }
        tight = outcome(problem, problem.given.plus(sums))
        plain.append(trace.peak)
        rewritten.append(tight.timeline.peak)
    assert slope(lengths, plain) > 1.7
    assert slope(lengths, rewritten) < 1.2


def slope(xs, ys):
    return np.polyfit(np.log(xs), np.log(ys), 1)[0]


def test_attention_is_remade_only_if_the_step_would_not_fit():
    trace = attention(16)
    plenty, tight = trace.peak, trace.peak // 2
    assert Meng()(Problem(trace, host(2**30), plenty)).decisions == ()
    assert len(Meng()(Problem(trace, host(2**30), tight)).recomputes) == 16
    assert Meng(attention=False)(Problem(trace, host(2**30), tight)).recomputes == ()


def test_a_bias_is_no_attention():
    trace = parse("""
        f aten.mm    x:I1M w:P1M -> a:A4M  1ms
        f aten.add   a c:P1K     -> b:A4M  1ms
        f aten.tanh  b           -> t:A4M! 1ms
        f aten.sum   t           -> l:T1K  1ms
        b sum'       l           -> g:T1M  1ms
        b tanh'      g t         -> h:T1M  1ms
    """)
    assert Meng().rewrites(Problem(trace, host(2**30), 0)) == []


def test_three_times_the_batch_of_resnet_50_fits():
    """An M40 of 12 GB: the paper's batch grew 4.6 times. What grows with the batch, kept or swapped."""
    trace = priced(
        record("cnn:resnet50?batch=32&optimizer=momentum", "cpu"), find("titan-x-maxwell")
    )
    fixed = sum(trace.values[v].nbytes for v in trace.initial if trace.values[v].kind.is_state)
    none = Problem(trace, find("titan-x-maxwell"), 0)  # nothing fits: all is swapped
    least = outcome(none, Meng()(none)).timeline.peak
    assert trace.peak - fixed > 3 * (least - fixed)
