"""The cost semantics on steps small enough to be computed by hand.

The links of the `machine` fixture: 4 MiB/s down, 2 MiB/s up.
"""

from dataclasses import replace

import pytest

from penstock.ir.machine import Faults, Link
from penstock.ir.plan import Plan, Recompute, Swap, check
from penstock.ir.schedule import Cause
from penstock.ir.text import parse
from penstock.ir.timeline import Span
from penstock.ir.trace import Gap, Op
from penstock.simulate.lower import lower
from penstock.simulate.run import price, unbounded

MIB = 2**20
STEP = parse("""
    f a  x:I1M -> h:A4M!  1s
    f b  h     -> y:A1M   2s
    f c  y     -> z:A1M   4s
    b d  z h   -> g:T1M   1s
""")
SWAP = Swap(Gap(1, 1, 3), "disk", evict_at=2, prefetch_at=3)


def run(trace, plan, machine, budget=None):
    check(trace, plan, machine)
    return price(lower(trace, plan, budget), machine)


def test_keeping_everything_takes_the_sum_of_the_ops(machine):
    timeline = run(STEP, Plan(), machine)
    assert (timeline.seconds, timeline.stall_seconds) == (8.0, 0.0)
    assert timeline.peak == 7 * MIB  # x, h, y and z while c runs
    assert (timeline.times.tolist(), (timeline.total // MIB).tolist()[-1]) == (
        sorted(timeline.times.tolist()),
        1,  # the input lives on
    )


def test_a_swap_frees_when_its_copy_ends_and_takes_when_it_starts(machine):
    timeline = run(STEP, Plan((SWAP,)), machine)
    assert timeline.spans == [
        Span("compute", 0.0, 1.0, 0),
        Span("compute", 1.0, 3.0, 1),
        Span("disk write", 3.0, 4.0, 1),  # 4 MiB at 4 MiB/s, beside c
        Span("compute", 3.0, 7.0, 2),
        Span("disk read", 7.0, 9.0, 1),  # 4 MiB at 2 MiB/s, and d waits for it
        Span("compute", 9.0, 10.0, 3),
    ]
    assert timeline.seconds == 10.0
    assert timeline.stalls == {Cause.INPUT: 2.0, Cause.ROOM: 0.0, Cause.FENCE: 0.0}
    assert timeline.traffic == {"disk write": 4 * MIB, "disk read": 4 * MIB}
    held = dict(zip(timeline.times.tolist(), (timeline.total // MIB).tolist(), strict=True))
    assert held == {0.0: 5, 1.0: 6, 3.0: 7, 4.0: 3, 7.0: 6, 9.0: 7, 10.0: 1}
    assert timeline.peak == 7 * MIB


def test_a_copy_back_that_starts_in_time_costs_nothing(machine):
    timeline = run(STEP, Plan((replace(SWAP, prefetch_at=3, evict_at=2),)), machine)
    longer = parse("""
        f a  x:I1M -> h:A4M!  1s
        f b  h     -> y:A1M   2s
        f c  y     -> z:A1M   1s
        f c2 z     -> u:A1M   2s
        b d  u h   -> g:T1M   1s
    """)
    early = run(longer, Plan((Swap(Gap(1, 1, 4), "disk", 2, 3),)), machine)
    assert (timeline.stall_seconds, early.stall_seconds) == (2.0, 0.0)
    assert early.seconds == longer.seconds


def test_an_op_waits_for_the_room_that_a_copy_out_makes(machine):
    trace = parse("""
        f a  x:I1M -> h:A4M!  1s
        f b  h     -> y:A1M   2s
        f c  y     -> z:A1M   4s
        b d  h     -> g:T1M   1s
    """)
    assert trace.peak == 7 * MIB  # x, h, y and z while c runs
    timeline = run(trace, Plan((SWAP,)), machine, budget=6 * MIB)
    assert timeline.stalls == {Cause.INPUT: 2.0, Cause.ROOM: 1.0, Cause.FENCE: 0.0}
    assert (timeline.seconds, timeline.peak) == (11.0, 6 * MIB)


def test_latency_comes_before_the_first_byte(machine):
    (disk,) = machine.tiers
    slow = machine.with_tiers(replace(disk, read=Link(2 * MIB, latency=0.5)))
    assert run(STEP, Plan((SWAP,)), slow).seconds == 10.5


def test_one_direction_is_one_lane_in_trigger_order(machine):
    trace = parse("""
        f a  x:I1M -> h:A4M!  1s
        f b  h     -> k:A8M!  1s
        f c  k     -> y:A1M   1s
        f d  y     -> z:A1M   8s
        b e  z k   -> g:T1M   1s
        b f  g h   -> l:T1M   1s
    """)
    both = Plan((Swap(Gap(1, 1, 5), "disk", 2, 5), Swap(Gap(2, 2, 4), "disk", 3, 4)))
    spans = run(trace, both, machine).spans
    # h leaves at 2 s for 1 s, k at 3 s for 2 s; k comes back at 11 s for 4 s, h at 16 s for 2 s.
    assert [span for span in spans if span.lane == "disk write"] == [
        Span("disk write", 2.0, 3.0, 1),
        Span("disk write", 3.0, 5.0, 2),
    ]
    assert [span for span in spans if span.lane == "disk read"] == [
        Span("disk read", 11.0, 15.0, 2),
        Span("disk read", 16.0, 18.0, 1),
    ]


def test_a_copy_back_waits_for_its_own_copy_out(machine):
    (disk,) = machine.tiers
    slow = machine.with_tiers(replace(disk, write=Link(MIB / 2)))
    timeline = run(STEP, Plan((SWAP,)), slow)  # out from 3 s to 11 s, back to 13 s
    assert timeline.seconds == 14.0


def test_a_recomputation_is_ops_on_the_compute_lane(machine):
    timeline = run(STEP, Plan((Recompute(Gap(1, 1, 3), 3),)), machine)
    assert [(s.ref, s.again) for s in timeline.spans] == [
        (0, False),
        (1, False),
        (2, False),
        (0, True),
        (3, False),
    ]
    assert (timeline.seconds, timeline.recompute_seconds) == (9.0, 1.0)
    # x, h and y while b runs; without h x, y and z while c runs; then h is remade and g is made.
    assert timeline.peak == 7 * MIB
    assert not any(timeline.traffic.values())


def test_workspace_is_held_while_its_op_runs(machine):
    trace = parse("f a x:I1M -> h:A4M 1s +8M\nf b h -> y:A1M 1s")
    timeline = run(trace, Plan(), machine)
    assert timeline.peak == 13 * MIB
    assert timeline.at_peak() == {
        "workspace": 8 * MIB,
        "activation": 4 * MIB,
        "input": MIB,
    }


def test_the_host_takes_its_time_once_and_not_for_a_recomputation(machine):
    ops: tuple[Op, ...] = tuple(replace(op, host_seconds=0.5) for op in STEP.ops)
    slow = replace(STEP, ops=ops)
    assert run(slow, Plan(), machine).seconds == 10.0
    assert run(slow, Plan((Recompute(Gap(1, 1, 3), 3),)), machine).seconds == 11.0


def test_a_running_copy_drags_compute(machine):
    (disk,) = machine.tiers
    dragging = machine.with_tiers(replace(disk, drag=0.5))
    timeline = run(STEP, Plan((SWAP,)), dragging)
    # The copy out lasts from 3 s to 4 s: c does half a second's work in it, and 3.5 s after.
    (c,) = [s for s in timeline.spans if s.lane == "compute" and s.ref == 2]
    assert (c.start, c.end) == (3.0, 7.5)


def test_the_allocators_slack_is_held_throughout(machine):
    timeline = run(replace(STEP, slack=3 * MIB), Plan(), machine)
    assert timeline.peak == 10 * MIB
    assert timeline.at_peak()["allocator"] == 3 * MIB


def test_state_that_is_away_between_steps_comes_back_for_its_first_use(machine):
    trace = parse("""
        f n  x:I1M    -> u:A1M  4s
        f a  u w:P4M  -> h:A1M  1s
        o s  h w      -> ~w     1s
        o t  x        -> ~x     1s
    """)
    new = trace.next_version[2]
    plan = Plan((Swap(Gap(new, 2, 1), "disk", 3, 1),))
    timeline = run(trace, plan, machine)
    # Out in 1 s beside t, so it ends with the step; back in 2 s, and a waits for that from 4 s on.
    assert timeline.stalls[Cause.INPUT] == 2.0
    assert timeline.seconds == 9.0
    late = run(trace, Plan((Swap(Gap(new, 2, 1), "disk", 4, 1),)), machine)
    # Triggered by the end of the step: the copy runs for the first second of the next one.
    held = dict(zip(late.times.tolist(), (late.total // MIB).tolist(), strict=True))
    assert (held[0.0], held[1.0]) == (6, 2)


# -- vDNN's fences ---------------------------------------------------------------------------------

LAYERS = 10


def layers():
    """A chain: each layer takes 1 s forward, and its input 2 s to copy at 4 MiB/s."""
    lines = ["f layer0 x:I1M -> h0:A8M! 1s"]
    lines += [f"f layer{n} h{n - 1} -> h{n}:A8M! 1s" for n in range(1, LAYERS)]
    lines += [f"b back{LAYERS - 1} h{LAYERS - 1} -> g{LAYERS - 1}:T8M 1s"]
    lines += [f"b back{n} h{n} g{n + 1} -> g{n}:T8M 1s" for n in reversed(range(LAYERS - 1))]
    return parse("\n".join(lines))


@pytest.mark.parametrize("fenced", [True, False])
def test_with_vdnns_fence_forward_is_the_sum_of_the_slower_of_layer_and_copy(machine, fenced):
    """Rhu et al., MICRO 2016: each layer ends with its copy; vDNN++ drops just this fence."""
    trace = layers()
    number = {value.name: value.id for value in trace.values}
    swaps = []
    for n in range(LAYERS - 2):  # the input of layer n + 1 leaves while that layer runs
        gap = Gap(number[f"h{n}"], n + 1, 2 * LAYERS - 1 - n)
        fence = n + 2 if fenced else None
        swaps.append(Swap(gap, "disk", evict_at=n + 1, prefetch_at=gap.stop, fence=fence))
    timeline = run(trace, Plan(tuple(swaps)), machine)
    compute = [span for span in timeline.spans if span.lane == "compute"]
    forward_ends = compute[LAYERS - 1].end
    with_copy = LAYERS - 2
    if fenced:
        assert forward_ends == 1.0 * (LAYERS - with_copy) + with_copy * max(1.0, 2.0)
        assert timeline.stalls[Cause.FENCE] == with_copy * (2.0 - 1.0)
    else:
        assert forward_ends == LAYERS * 1.0  # vDNN++: compute goes on, the copies trail behind
        assert timeline.stalls[Cause.FENCE] == 0


FRESH = """
    f a x:I10M -> h:A40M! 30s
    f b h      -> y:A40M! 30s
    b c y h    -> g:T40M  30s
"""


def staying(machine, **rates):
    return replace(machine, device=replace(machine.device, faults=Faults(**rates)))


def test_memory_that_stays_costs_no_faults(machine):
    machine = staying(machine, large=2.0**-22)
    assert unbounded(parse(FRESH), machine).seconds == 60.0
    assert run(parse(FRESH), Plan(), machine, 400 * MIB).seconds == 60.0


def test_what_is_freed_goes_back_where_it_would_not_fit(machine):
    """The step holds 130 MiB; of 150 it keeps 146 at most, so each op takes its 40 anew."""
    machine = staying(machine, large=2.0**-22)
    assert run(parse(FRESH), Plan(), machine, 150 * MIB).seconds == 90.0


def test_an_op_is_never_spared_more_than_most_of_its_time(machine):
    machine = staying(machine, large=1.0)
    assert unbounded(parse(FRESH), machine).seconds == pytest.approx(0.2 * 90)


def test_small_blocks_have_a_price_of_their_own_and_tiny_ones_none(machine):
    machine = staying(machine, small=2.0**-20, large=2.0**-24)
    step = parse("f a x:I1M -> h:A2M! 30s\nf b h -> y:A32K! 30s\nb c y h -> g:T8M 30s")
    assert unbounded(step, machine).seconds == 28.0 + 30.0 + 29.5


def test_giving_back_is_the_hosts_time(machine):
    machine = staying(machine, returned=2.0**-22)
    step = parse("f a x:I1M -> h:A4M! 30s\nb b h -> g:T4M 30s\nb c x -> z:T1K 30s")
    ops = tuple(replace(op, host_seconds=5.0) for op in step.ops)
    assert unbounded(replace(step, ops=ops), machine).seconds == 105.0 - 2.0  # h and g, before c


def test_what_an_op_leaves_unwritten_is_never_kept(machine):
    machine = staying(machine, large=2.0**-22)
    step = parse(FRESH)
    values = tuple(replace(value, unwritten=value.nbytes) for value in step.values)
    step = replace(step, values=values)
    assert run(step, Plan(), machine, 400 * MIB).seconds == 90.0
    assert unbounded(step, machine).seconds == 60.0  # but by plain PyTorch, which has no budget
