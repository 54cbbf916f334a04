"""Size classes: every class has its objects, and Belady's rule fills them."""

from hypothesis import given, settings

from penstock.ir.machine import Device, Link, Machine, Tier
from penstock.ir.plan import Plan, check
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.solve.best import outcome
from penstock.solve.classes import Objects
from steps import STEPS, chain
from strategies import problems

MIB = 2**20
LINK = Link(4.0 * 2**30)
MACHINE = Machine(Device("cpu", 2**40), (Tier("host", 2**40, LINK, LINK),))


def asked(trace, budget, given=None):
    return Objects(Problem(trace, MACHINE, budget, given or Plan()), 2**16)


def names(trace, swaps):
    return sorted(trace.values[swap.gap.value].name for swap in swaps)


def test_sizes_ascend_and_what_is_small_stays_out():
    objects = asked(STEPS["skips"], 2**30)
    assert objects.sizes == (4 * MIB, 8 * MIB)  # x, s, h, g, d; the loss has 1 KiB
    assert objects.most((0, 1), 0) + objects.most((0, 1), 1) >= objects.most((0, 0), 0)


def test_memory_for_objects_is_what_the_rest_leaves():
    trace = parse("""
        f a  x:I1K -> h:A8M!  1ms +2M
        f b  h     -> k:A4M   1ms
        b a' h k   -> g:T4M   1ms
    """)
    # Beside objects: 1 KiB of x, and at most 2 MiB of workspace.
    assert asked(trace, 14 * MIB).memory == 12 * MIB - 1024


def test_with_an_object_for_all_that_is_alive_nothing_moves():
    trace = STEPS["skips"]
    objects = asked(trace, trace.peak)
    cnt = [objects.most((0, 1), c) for c in (0, 1)]
    assert objects.swaps((0, 1), cnt, 0.0) == []


def test_the_member_whose_next_use_is_farthest_leaves():
    trace = parse("""
        f a   x:I1  -> p:A4M!  1ms
        f b   x     -> q:A4M!  1ms
        f c   x     -> r:A4M!  1ms
        b c'  r     -> l:T1    1ms
        b b'  q     -> m:T1    1ms
        b a'  p     -> n:T1    1ms
    """)
    swaps = asked(trace, 2**30).swaps((0,), (2,), 0.0)
    assert names(trace, swaps) == ["p"]  # q is used before it
    (swap,) = swaps
    # Its object goes to r at op 2; it takes the one that r leaves after op 3.
    assert (swap.evict_at, swap.prefetch_at) == (1, 4)


def test_a_class_never_takes_the_object_of_another():
    trace = parse("""
        f a   x:I1  -> p:A4M!  1ms
        f b   x     -> q:A8M!  1ms
        f c   x     -> r:A8M!  1ms
        b c'  r     -> l:T1    1ms
        b b'  q     -> m:T1    1ms
        b a'  p     -> n:T1    1ms
    """)
    objects = asked(trace, 2**30)
    assert names(trace, objects.swaps((0, 1), (1, 1), 0.0)) == ["q"]
    assert names(trace, objects.swaps((0, 0), (2,), 0.0)) == ["p"]  # one class: p is farther


def test_an_operand_of_the_running_op_stays():
    trace = parse("""
        f a   x:I1  -> p:A4M!  1ms
        f b   x     -> q:A4M!  1ms
        f c   p     -> r:A4M!  1ms
        b c'  r     -> l:T1    1ms
        b b'  q     -> m:T1    1ms
        b a'  p     -> n:T1    1ms
    """)
    assert names(trace, asked(trace, 2**30).swaps((0,), (2,), 0.0)) == ["q"]


def test_one_that_is_idle_long_enough_goes_before_one_that_is_needed_later():
    trace = parse("""
        f a   x:I1  -> p:A4M!  1ms
        f d   x     -> s:T1    5ms
        f b   x     -> q:A4M!  1ms
        f e   x     -> t:T1    1ms
        f c   x     -> r:A4M!  1ms
        b c'  r     -> l:T1    1ms
        b a'  p     -> n:T1    1ms
        b b'  q     -> m:T1    1ms
    """)
    objects = asked(trace, 2**30)
    assert names(trace, objects.swaps((0,), (2,), 0.0)) == ["q"]
    assert names(trace, objects.swaps((0,), (2,), 0.003)) == ["p"]
    assert names(trace, objects.swaps((0,), (2,), 1.0)) == ["q"]  # none is: then the farthest


def test_model_state_for_which_no_object_is_left_waits_below_between_steps():
    trace = STEPS["stateful"]  # three layers of 16 MiB of weights and 32 MiB of optimizer state
    objects = asked(trace, 2**30)
    assert objects.sizes == (MIB, 2 * MIB, 16 * MIB, 32 * MIB)
    cnt = [objects.most((0, 1, 2, 3), c) for c in range(3)] + [2]
    swaps = objects.swaps((0, 1, 2, 3), cnt, 0.0)
    assert {trace.values[swap.gap.value].nbytes for swap in swaps} == {32 * MIB}
    assert all(swap.gap.wraps for swap in swaps)
    assert len(swaps) == 2  # of three, one of two objects is shared by two


def test_what_is_given_stays_out_of_the_objects():
    trace = chain(8)
    first = next(iter(Problem(trace, MACHINE, 0).free_saved_gaps()))
    given = Plan((asked(trace, 2**30).swaps((0,), (1,), 0.0)[0],))
    objects = asked(trace, 2**30, given)
    assert trace.values[first.value].storage not in objects.size_of
    assert all(swap.gap != first for swap in objects.swaps((0,), (2,), 0.0))


@settings(max_examples=60)
@given(problems())
def test_objects_that_are_enough_give_a_plan_that_fits(problem):
    """The bytes that are held never exceed those of the objects, however slow the copies are."""
    objects = Objects(problem, 2**16)
    for cls in (list(range(len(objects.sizes))), [0] * len(objects.sizes)):
        largest = dict(zip(cls, objects.sizes, strict=True))
        cnt = [1 + objects.most(cls, c) // 2 for c in largest]
        scan = objects.scan(cls, cnt, 0.0)
        plan = problem.given.plus(scan.swaps())
        check(problem.trace, plan, problem.machine)
        nbytes = sum(cnt[c] * size for c, size in largest.items())
        if nbytes <= objects.memory and not scan.lacked:
            assert outcome(problem, plan).shortfall == 0
