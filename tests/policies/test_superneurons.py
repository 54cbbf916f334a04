"""Wang et al.: SuperNeurons (PPoPP 2018)."""

import pytest

from penstock.ir.machine import Device, Link, Machine, Tier
from penstock.ir.plan import Plan, Recompute
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.policies.superneurons import Superneurons, bottleneck, is_checkpoint, segments
from penstock.simulate.least import least_budget
from penstock.solve.best import outcome

MIB = 2**20
LINK = Link(4 * 2**30)
MACHINE = Machine(Device("gpu", 2**40), (Tier("host", 2**40, LINK, LINK),))


def cnn(cheap, blocks=1, last="4M", head=None):
    """Blocks of a convolution and `cheap` light layers; each backward reads what its layer read.

    The last convolution's backward reads one value of the size `last`: the worst layer's. `head`: the
    size of what a convolution makes, and a pooling reduces, before the blocks.
    """
    forward, backward, before = [], [], "x:I1"
    if head:
        forward += [f"f aten.convolution x:I1 -> y:A{head}! 1ms", "f aten.max_pool y -> p:A1M! 1ms"]
        backward.append("b aten.max_pool_backward g y -> ~g 1ms")
        before = "p"
    for block in range(blocks):
        layers = [("convolution", f"c{block}")]
        layers += [("relu", f"r{block}_{n}") for n in range(cheap)]
        for kind, name in layers:
            source = before.split(":")[0]
            forward.append(f"f aten.{kind} {before} -> {name}:A1M! 1ms")
            backward.append(f"b aten.{kind}_backward g {source} -> ~g 1ms")
            before = name
    forward += [
        f"f aten.convolution {before} -> z:A{last}! 1ms",
        "f aten.loss z -> l:T1 1ms",
        "b aten.loss_backward l -> g:T1 1ms",
    ]
    backward.append(f"b aten.convolution_backward g z {before} -> ~g 1ms")
    return parse("\n".join([*forward, *reversed(backward)]))


def again(trace, **options):
    """How often each forward op of the recomputation runs again."""
    plan = Plan(tuple(Superneurons(**options).remakes(Problem(trace, MACHINE, 0))))
    found = outcome(Problem(trace, MACHINE, 0), plan)
    return [span.ref for span in found.timeline.spans if span.again]


@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_a_segment_that_the_worst_layer_outweighs_is_remade_once(k):
    trace = cnn(k, last="4M")
    assert bottleneck(trace) == 5 * MIB  # z, and what it was made from
    assert len(again(trace)) == k


@pytest.mark.parametrize("k", [6, 7, 9])
def test_a_larger_one_is_remade_for_every_layer(k):
    """k reads of 1 MiB against 5: k (k + 1) / 2 runs."""
    trace = cnn(k, last="4M")
    assert len(again(trace)) == k * (k + 1) // 2


@pytest.mark.parametrize("k", [3, 9])
def test_either_mode_can_be_had_throughout(k):
    trace = cnn(k, last="4M")
    assert len(again(trace, recompute="speed")) == k
    assert len(again(trace, recompute="memory")) == k * (k + 1) // 2
    assert again(trace, recompute="none") == []


def test_every_layer_of_a_small_segment_runs_exactly_twice():
    trace = cnn(3, blocks=4)
    light = [op.index for op in trace.ops if op.name == "aten.relu"]
    assert sorted(again(trace)) == light


def test_joins_forks_concatenations_and_products_are_checkpoints():
    trace = parse("""
        f aten.convolution x:I1M -> a:A1M! 1ms
        f aten.relu        a     -> b:A1M! 1ms
        f aten.addmm       b     -> c:A1M! 1ms
        f aten.add         b c   -> d:A1M! 1ms
        f aten.cat         d     -> e:A1M! 1ms
        f aten.gelu        e     -> h:A1M! 1ms
        b aten.all_of_it   a b c d e h -> g:T1M 1ms
    """)
    kept = [op.name for op in trace.ops[:6] if is_checkpoint(trace, op)]
    # The first relu forks: the product and the join read it.
    light = ["aten.gelu"]
    assert [op.name for op in trace.ops[:6] if op.name not in light] == kept
    assert segments(trace)[1][-1] == MIB  # gelu's operand, after the concatenation


def test_what_only_a_convolution_could_remake_stays():
    """In place, the activation stands where the convolution's result stood."""
    trace = parse("""
        f aten.convolution x:I1M -> a:A4M  1ms
        f aten.relu_       a     -> ~a     1ms
        f aten.convolution a     -> b:A4M! 1ms
        f aten.loss        b     -> l:T1   1ms
        b aten.loss_backward l b -> g:T4M  1ms
        b aten.convolution_backward g a -> h:T4M 1ms
    """)
    assert Superneurons().remakes(Problem(trace, MACHINE, 0)) == []


def test_with_all_techniques_the_peak_is_the_largest_working_set():
    """The paper's bound, max over layers of l_i, where the budget allows no more.

    It is that of the pooling in front: its operand and its result.
    """
    trace = cnn(3, blocks=6, last="1M", head="4M")
    least = least_budget(trace).nbytes
    assert trace.peak > 4 * least
    problem = Problem(trace, MACHINE, least)
    found = outcome(problem, Superneurons()(problem))
    assert (found.shortfall, found.timeline.peak) == (0, least)
    every = outcome(problem, list(Superneurons().candidates(problem))[-1])
    assert every.timeline.peak <= least + 512  # within one granule of an allocator
    assert len(every.plan.swaps) > 0
    assert len(every.plan.recomputes) > 0


def test_the_cache_sends_away_what_was_used_least_recently_and_only_where_room_lacks():
    trace = cnn(0, blocks=6)
    problem = Problem(trace, MACHINE, trace.peak - 2 * MIB)
    plan = Superneurons(recompute="none")(problem)
    assert sorted(trace.values[s.gap.value].name for s in plan.swaps) == ["c0", "c1"]
    assert all(swap.fence == swap.evict_at > swap.gap.start + 1 for swap in plan.swaps)
    assert all(swap.prefetch_at == swap.gap.stop for swap in plan.swaps)  # no prefetch


def test_eager_offloading_fetches_with_the_backward_of_the_convolution_before():
    trace = cnn(1, blocks=5)
    problem = Problem(trace, MACHINE, 0)
    swaps = sorted(
        Superneurons(offload="eager", recompute="none").offloaded(problem), key=lambda s: s.gap.stop
    )
    made = [trace.values[swap.gap.value].producer for swap in swaps]
    assert all(trace.ops[op].name == "aten.convolution" for op in made)
    assert [swap.evict_at for swap in swaps] == [op + 1 for op in made]
    backs = [swap.prefetch_at for swap in swaps]
    assert backs[1:] == [swap.gap.stop for swap in swaps[:-1]]


def test_each_technique_takes_the_peak_further_down():
    """Liveness, then offloading, then recomputation, as the paper adds them."""
    trace = cnn(2, blocks=8)
    problem = Problem(trace, MACHINE, 0)
    eager = Superneurons(offload="eager")
    peaks = [outcome(problem, plan).timeline.peak for plan in eager.candidates(problem)]
    kept, offloaded, _, both = peaks
    assert kept > offloaded > both


def test_another_micro_batch_begins_another_segment():
    one = "\n".join(
        f"""
        f aten.embedding x{n}:I1 -> a{n}:A1M! 1ms
        f aten.relu      a{n}    -> b{n}:A1M! 1ms
        f aten.loss      b{n}    -> l{n}:T1   1ms
        b aten.loss_backward l{n} b{n} -> g{n}:T1 1ms
        b aten.relu_backward g{n} a{n} -> d{n}:T1 1ms
        """
        for n in range(2)
    )
    trace = parse(one)
    segment, _ = segments(trace)
    assert len({segment[op.index] for op in trace.ops if op.phase == "forward"}) == 2
    remakes = Superneurons(recompute="speed").remakes(Problem(trace, MACHINE, 0))
    assert all(isinstance(one, Recompute) and one.gap.start < one.remake_at for one in remakes)
