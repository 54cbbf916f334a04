"""Yang, Cheng: Dymem, with the placement GTBM (HPDC 2020)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hosts import host
from penstock.ir.plan import Plan
from penstock.ir.policy import Problem
from penstock.ir.schedule import Cause
from penstock.ir.text import parse
from penstock.policies.dymem import Dymem, arenas, fetches, is_temporary, two_ended
from penstock.simulate.least import least_budget
from penstock.solve.best import outcome
from penstock.solve.offsets import Buffer, best_fit, check
from penstock.solve.smartpool import blocks
from steps import chain
from strategies import problems

MIB = 2**20
GIB = 2.0**30


def convolutions(kinds):
    """A chain: `c` is a convolution, `r` is not. Each saves what it reads."""
    names = [f"{'conv' if kind == 'c' else 'relu'}{n}" for n, kind in enumerate(kinds)]
    lines = ["f stem x:I1 -> h0:A4M! 4ms"]
    lines += [f"f {name} h{n} -> h{n + 1}:A4M! 4ms" for n, name in enumerate(names)]
    lines += [
        f"f loss h{len(names)} -> l:T1 1ms",
        f"b loss' l h{len(names)} -> g{len(names)}:T1 1ms",
    ]
    lines += [
        f"b {name}' g{n + 1} h{n} -> g{n}:T1 4ms" for n, name in reversed(list(enumerate(names)))
    ]
    return parse("\n".join(lines))


def named(trace, found):
    """By op of backward, the values for which it calls."""
    calls = {}
    for gap, at in found:
        calls.setdefault(trace.ops[at].name, []).append(trace.values[gap.value].name)
    return calls


# -- prefetching ----------------------------------------------------------------------------------


def test_algorithm_2_by_hand():
    """Walking back from each layer: all that is away, but of convolutions only until n is 2."""
    trace = convolutions("crcrrc")
    found = fetches(trace, list(trace.saved_gaps(MIB)), 2)
    assert named(trace, found) == {
        # conv5, relu4, relu3, conv2, relu1: then n is 2. (loss' itself needs h6, which never left.)
        "loss'": ["h5", "h4", "h3", "h2", "h1"],
        # At conv5' it is still 2, with conv5 and conv2; at relu4' only conv2 counts.
        "relu4'": ["h0"],
    }


@given(st.text("cr", min_size=1, max_size=14))
def test_at_most_two_convolutions_wait_with_their_inputs(kinds):
    """At any time: those that were called for, and whose own backward has not begun."""
    trace = convolutions(kinds)
    found = fetches(trace, list(trace.saved_gaps(MIB)), 2)
    assert len(found) == len(list(trace.saved_gaps(MIB)))
    for op in trace.ops:
        waiting = {
            gap.stop
            for gap, at in found
            if at <= op.index < gap.stop and trace.ops[gap.stop].name.startswith("conv")
        }
        assert len(waiting) <= (2 if "c" in kinds else 0)


@given(st.integers(1, 12))
def test_where_no_op_is_a_convolution_every_layer_counts_as_one(layers):
    trace = convolutions("r" * layers)
    found = fetches(trace, list(trace.saved_gaps(MIB)), 2)
    for op in trace.ops:
        assert sum(at <= op.index < gap.stop for gap, at in found) <= 2


# -- offloading -----------------------------------------------------------------------------------


def test_there_is_one_barrier_where_forward_ends():
    trace = convolutions("ccccc")
    problem = Problem(trace, host(0.5 * GIB), trace.peak - 1)  # a copy takes two ops
    found = outcome(problem, Dymem()(problem))
    first = next(op.index for op in trace.ops if op.phase == "backward")
    assert {swap.fence for swap in found.plan.swaps} == {first}
    forward = [s for s in found.timeline.spans if s.lane == "compute" and s.ref < first]
    assert forward[-1].end == pytest.approx(sum(op.seconds for op in trace.ops[:first]))
    assert found.timeline.stalls[Cause.FENCE] > 0


def test_only_where_room_lacks_does_forward_wait_earlier():
    trace = convolutions("cccccccc")
    tight = Problem(trace, host(0.5 * GIB), least_budget(trace).nbytes + 8 * MIB)
    found = outcome(tight, Dymem()(tight))
    assert found.shortfall == 0
    assert found.timeline.stalls[Cause.ROOM] > 0


def test_a_step_that_fits_stays_as_it_is():
    trace = convolutions("crc")
    assert Dymem()(Problem(trace, host(GIB), trace.peak)) == Plan()


# -- placement ------------------------------------------------------------------------------------

FORK = parse("""
    f stem   x:I1     -> a:A4M!    1ms
    f left   a        -> b:A8M!    1ms
    f left2  b        -> c:A4M!    1ms
    f right  a        -> d:A8M!    1ms
    f join   c d      -> e:A4M!    1ms
    b join'  e c d    -> g:T4M     1ms
    b right' g d      -> h:T4M     1ms
    b left2' g b      -> i:T8M     1ms
    b left'  i b      -> j:T4M     1ms
    b stem'  h j a    -> k:T1      1ms
""")


def test_what_is_read_twice_or_not_next_is_temporary():
    by_name = {value.name: value.id for value in FORK.values}
    temporary = {name for name, value in by_name.items() if is_temporary(FORK, value)}
    assert {"a", "c"} <= temporary  # read by both branches; read after the other branch
    assert not {"b", "d", "e"} & temporary


def test_the_same_value_may_be_movable_when_it_is_back():
    by_name = {value.name: value.id for value in FORK.values}
    assert is_temporary(FORK, by_name["a"])
    assert not is_temporary(FORK, by_name["a"], is_back=True)
    assert is_temporary(FORK, by_name["b"], is_back=True)  # left2' and left' read it


def unusable(holes, nbytes):
    """U_f: the share of the free bytes that lie in holes of a smaller power of two than is asked."""
    fits = [hole for hole in holes if hole.bit_length() >= nbytes.bit_length()]
    return (sum(holes) - sum(fits)) / sum(holes)


def test_what_stays_does_not_split_the_room_of_what_comes_and_goes():
    """A long value between two short ones: from one end it stands in the middle, from two it does not."""
    wanted = [Buffer(0, 2, 4), Buffer(1, 6, 2), Buffer(2, 4, 8)]
    one_ended = best_fit(wanted, range(3))
    height = max(low + b.nbytes for low, b in zip(one_ended, wanted, strict=True))
    split = two_ended(wanted, [False, True, False])
    assert (height, split.height) == (14, 10)
    assert check(wanted, split.offsets) == []
    # When the last one comes, 4 bytes are free below the long one, and the rest above it.
    assert unusable([4, height - 6], 8) == pytest.approx(1 / 3)
    assert unusable([split.height - 2], 8) == 0.0


def test_on_a_chain_placement_is_best_fit_from_the_low_end():
    """All is movable there: the saving over one end is nothing (the paper's linear nets)."""
    trace = convolutions("cccccc")
    problem = Problem(trace, host(8 * GIB), trace.peak // 2)
    found = outcome(problem, Dymem()(problem))
    made = [b for b in blocks(found) if b.value not in trace.initial and b.buffer.nbytes >= MIB]
    assert not any(is_temporary(trace, b.value) for b in made)
    wanted = [b.buffer for b in made]
    order = sorted(range(len(wanted)), key=lambda i: wanted[i].start)
    spots = best_fit(wanted, order)
    tops = [low + b.nbytes for low, b in zip(spots, wanted, strict=True)]
    assert two_ended(wanted, [False] * len(wanted)).height == max(tops)


def test_on_a_fork_two_ends_need_no_more_than_one():
    problem = Problem(FORK, host(8 * GIB), FORK.peak - 1)
    found = outcome(problem, Dymem()(problem))
    held = [block.buffer for block in blocks(found)]
    one = two_ended(held, [False] * len(held)).height
    assert found.timeline.peak <= arenas(found).pool + arenas(found).reclaimed
    assert arenas(found).pool <= one


BUFFERS = st.lists(
    st.tuples(
        st.builds(
            lambda start, length, nbytes: Buffer(start, start + length, nbytes),
            st.integers(0, 8),
            st.integers(1, 5),
            st.integers(1, 9),
        ),
        st.booleans(),
    ),
    max_size=14,
)


@given(BUFFERS)
def test_no_buffers_meet_in_a_pool_of_two_ends(drawn):
    wanted, is_high = [b for b, _ in drawn], [high for _, high in drawn]
    pool = two_ended(wanted, is_high)
    assert check(wanted, pool.offsets) == []
    assert all(low + b.nbytes <= pool.height for low, b in zip(pool.offsets, wanted, strict=True))


def test_classifiers_stand_outside_of_the_pool():
    trace = parse("""
        f aten.convolution x:I1 -> a:A4M!  1ms
        f aten.relu        a    -> b:A4M!  1ms
        f aten.addmm       b    -> c:A2M!  1ms
        f aten.nll_loss    c    -> l:T1    1ms
        b aten.nll_loss_b  l c  -> d:T2M   1ms
        b aten.mm          d b  -> e:T4M   1ms
        b aten.threshold_b e b  -> f:T4M   1ms
        b aten.conv_b      f a  -> g:T1    1ms
    """)
    problem = Problem(trace, host(GIB), trace.peak)
    found = outcome(problem, Plan())
    assert arenas(found).reclaimed >= 2 * MIB
    assert arenas(found).pool < trace.peak


@settings(max_examples=25)
@given(problems())
def test_the_arenas_hold_what_any_planned_step_holds(problem):
    found = outcome(problem, Dymem()(problem))
    taken = arenas(found)
    assert taken.pool + taken.reclaimed >= found.timeline.peak - problem.trace.slack


def test_several_passes_each_fetch_their_own():
    """Gradient accumulation: the second forward begins when the first backward is over."""
    trace = parse("""
        f conv0  x:I1 -> a:A8M! 4ms
        f conv1  a    -> b:A8M! 4ms
        f conv2  b    -> c:A8M! 4ms
        f loss   c    -> l:T1   1ms
        b loss'  l c  -> d:T1   1ms
        b conv2' d b  -> e:T1   4ms
        b conv1' e a  -> g:T1   4ms
        f conv3  x    -> m:A8M! 4ms
        f conv4  m    -> n:A8M! 4ms
        f conv5  n    -> o:A8M! 4ms
        f loss2  o    -> p:T1   1ms
        b loss2' p o  -> q:T1   1ms
        b conv5' q n  -> r:T1   4ms
        b conv4' r m  -> s:T1   4ms
    """)
    problem = Problem(trace, host(8 * GIB), trace.peak - 1)
    found = outcome(problem, Dymem()(problem))
    assert found.shortfall == 0
    fences = {trace.values[s.gap.value].name: trace.ops[s.fence].name for s in found.plan.swaps}
    assert fences == dict.fromkeys("ab", "loss'") | dict.fromkeys("mn", "loss2'")


def test_no_value_comes_back_before_there_is_room():
    trace = chain(10)
    problem = Problem(trace, host(GIB), least_budget(trace).nbytes + 4 * MIB)
    found = outcome(problem, Dymem()(problem))
    assert found.shortfall == 0
