"""Zheng, Vijaykumar, Pekhimenko: Echo (ISCA 2020), by the pass that was merged into MXNet."""

import pytest
from hypothesis import given, settings

from penstock.ir.machine import Device, Machine
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.ir.trace import Phase
from penstock.policies.echo import Echo, replayed
from penstock.solve.best import outcome
from strategies import problems

MACHINE = Machine(Device("cpu", 2**40))
MIB = 2**20


def attention(steps, length, *, kept=False):
    """Additive attention: each decoder step scores tanh(q_d + K), of `length` MiB; K is shared.

    Keys and queries come from products. `kept`: their own backward reads them, so they are alive.
    """
    also = " K" if kept else ""
    lines = [f"f aten.mm x:I1 v:P1 -> K:A{length}M{'!' if kept else ''} 9ms"]
    backward = []
    for d in range(steps):
        lines += [
            f"f aten.mm y{d}:I1 -> q{d}:A1M{'!' if kept else ''} 9ms",
            f"f aten.add q{d} K -> a{d}:A{length}M 1ms",
            f"f aten.tanh a{d} -> t{d}:A{length}M! 1ms",
            f"f aten.bmm t{d} v -> s{d}:A1 3ms",
        ]
        query = f" q{d}" if kept else ""
        backward += [f"b aten.bmm_backward l t{d} v{also}{query} -> g{d}:T1 3ms"]
    scores = " ".join(f"s{d}" for d in range(steps))
    lines.append(f"f aten.loss {scores} -> l:T1 1ms")
    return parse("\n".join([*lines, *reversed(backward)]))


def chosen(trace, echo=Echo()):  # noqa: B008  it is frozen
    forward = [op for op in trace.ops if op.phase is Phase.FORWARD and echo.is_cheap(op)]
    return sorted({trace.ops[op].name for op in replayed(trace, forward)})


@pytest.mark.parametrize(
    ("steps", "length", "replays"),
    [(1, 4, False), (2, 2, False), (2, 3, True), (3, 2, True), (3, 1, False), (4, 4, True)],
)
def test_the_adds_of_attention_are_decided_together(steps, length, replays):
    """The group adds D T, and frees T + D: kept where T + D >= T D (bytes in units of B H)."""
    assert replays == (steps + length < steps * length)
    assert chosen(attention(steps, length)) == (["aten.add", "aten.tanh"] if replays else [])


def test_memory_of_attention_grows_with_its_length_and_no_longer_with_its_square():
    def peak(n):
        problem = Problem(attention(n, n, kept=True), MACHINE, 0)
        return outcome(problem, Echo()(problem)).timeline.peak / MIB

    sizes = [4, 8, 16]
    replay = [peak(n) for n in sizes]
    kept = [attention(n, n, kept=True).peak / MIB for n in sizes]
    assert all(peak <= 4 * n + 1 for n, peak in zip(sizes, replay, strict=True))  # K, q, a, t
    assert kept[-1] > 16 * 16


def test_a_replay_that_would_run_a_product_again_is_refused_unless_wanted():
    """Keys and queries are dead when backward begins: the products would have to run again."""
    problem = Problem(attention(6, 6), MACHINE, 0)
    assert Echo()(problem).decisions == ()
    plan = Echo(rerun="heavy")(problem)
    assert len(plan.recomputes) == 6
    assert outcome(problem, plan).timeline.peak < problem.trace.peak


def test_a_cheap_op_between_products_of_one_size_is_kept():
    """Ties favour keeping: its result for its operand."""
    trace = parse("""
        f aten.mm   x:I1 -> a:A4M   9ms
        f aten.tanh a    -> b:A4M!  1ms
        f aten.mm   b    -> c:A4M!  9ms
        f aten.loss c    -> l:T1    1ms
        b aten.mm_backward   l c b -> g:T4M 9ms
        b aten.tanh_backward g b   -> h:T4M 1ms
    """)
    assert chosen(trace) == []


NORMALIZED = """
    f aten.convolution       x:I1 -> a:A4M! 9ms
    f aten.native_batch_norm a    -> b:A4M! 1ms
    f aten.relu              b    -> c:A4M! 1ms
    f aten.convolution       c    -> d:A4M! 9ms
    f aten.loss              d    -> l:T1   1ms
    b aten.convolution_backward l d c -> g:T4M 9ms
    b aten.relu_backward        g c   -> h:T4M 1ms
    b aten.batch_norm_backward  h a   -> i:T4M 1ms
"""


def test_norm_and_activation_between_convolutions_are_replayed():
    trace = parse(NORMALIZED)
    assert chosen(trace) == ["aten.native_batch_norm", "aten.relu"]
    plan = list(Echo().candidates(Problem(trace, MACHINE, 0)))[1]
    assert [trace.values[d.gap.value].name for d in plan.decisions] == ["c"]


def test_before_2020_a_norm_was_refused_and_its_activation_kept():
    assert chosen(parse(NORMALIZED), Echo(batch_norm="refused")) == []


@pytest.mark.parametrize(
    "name", ["aten.mm", "aten.convolution", "aten.cat", "aten.nll_loss_forward"]
)
def test_what_is_dear_or_ends_the_graph_is_never_replayed(name):
    trace = parse(f"f {name} x:I1 -> a:A4M! 1ms\nf aten.relu a -> b:A1 1ms\nb c b a -> g:T1 1ms")
    assert not Echo().is_cheap(trace.ops[0])
    assert Echo().is_cheap(trace.ops[1])


def test_what_draws_random_numbers_is_never_replayed():
    trace = parse("f aten.bernoulli x:I1 -> a:A4M! 1ms ?")
    assert not Echo().is_cheap(trace.ops[0])


@settings(max_examples=60)
@given(problem=problems())
def test_the_peak_is_never_above_that_of_keeping(problem):
    """What dropping every cheap op does not promise."""
    for echo in (Echo(smallest=1), Echo(smallest=1, rerun="heavy")):
        found = outcome(problem, echo(problem))
        assert found.timeline.peak <= max(problem.trace.peak, 0)
