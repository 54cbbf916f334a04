"""A plan made ready to be followed: each op has what the engine must do around it, and no more."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.program import (
    CopyAhead,
    Discard,
    Instruction,
    Pass,
    Program,
    compile_program,
)
from penstock.errors import PlanError, TraceError
from penstock.ir.machine import Device, Direct, Link, Machine, Tier
from penstock.ir.plan import Place, Plan, Recompute, Swap
from penstock.ir.policy import Problem
from penstock.ir.schedule import Drop, Evict, Prefetch, Run, Wait
from penstock.ir.text import parse
from penstock.ir.trace import Gap, OpIndex, Trace, ValueId
from penstock.solve.best import outcome
from strategies import plans, traces

aten = torch.ops.aten
ROOMY = 1 << 40
MACHINE = Machine(Device("cpu", ROOMY), (Tier("disk", ROOMY, Link(4 * 2**20), Link(2 * 2**20)),))

CHAIN = parse("""
    f a  x:I4M -> h:A4M!  1ms    # value 0 -> 1
    f b  h     -> i:A4M!  1ms    # 2
    f c  i     -> j:A4M!  1ms    # 3
    f d  j     -> k:T1K   1ms    # 4
    b d' k j   -> l:T4M   1ms
    b c' l i   -> m:T4M   1ms
    b b' m h   -> n:T4M   1ms
""")


def compiled(trace: Trace, plan: Plan, budget: int = ROOMY, funcs=None) -> Program:
    """What the calls are does not matter here, only whether they write in place."""
    found = outcome(Problem(trace, MACHINE, budget), plan)
    calls = [aten.relu.default] * len(trace.ops) if funcs is None else funcs
    return compile_program(calls, plan, found.schedule, found.timeline, {})


def gap(trace: Trace, value: int) -> Gap:
    (found,) = (one for one in trace.saved_gaps() if one.value == value)
    return found


def swap(trace: Trace, value: int) -> Swap:
    it = gap(trace, value)
    assert it.stop is not None
    return Swap(it, "disk", OpIndex(it.start + 1), it.stop)


def recompute(trace: Trace, value: int, at: int | None = None) -> Recompute:
    it = gap(trace, value)
    assert it.stop is not None
    return Recompute(it, OpIndex(it.stop if at is None else at))


def instruction(program: Program, op: int) -> Instruction:
    found = program.instructions[op]
    assert found is not None
    return found


def test_without_a_plan_only_large_values_are_bound() -> None:
    program = compiled(CHAIN, Plan())
    bound = [i.writes for i in program.instructions if i is not None and i.writes]
    assert [value for pairs in bound for _, value in pairs] == [1, 2, 3, 5, 6, 7]
    assert instruction(program, 0).reads == ((0, ValueId(0)),)  # the input, where it is first met
    assert program.instructions[3] is None  # makes 1 KiB
    assert not any(i and (i.before or i.after or i.captures) for i in program.instructions)


def test_an_op_says_what_it_needs_at_once() -> None:
    trace = parse("f a x:I4M -> h:A4M 1ms +2M\nf b h -> i:A1K 1ms")
    program = compiled(trace, Plan())
    assert instruction(program, 0).need == 6 << 20
    assert program.instructions[1] is None


def test_a_swap_is_an_eviction_a_prefetch_and_a_wait() -> None:
    program = compiled(CHAIN, Plan((swap(CHAIN, 1),)))
    actions = [
        (op, type(action))
        for op, it in enumerate(program.instructions)
        if it is not None
        for _, action in (*it.before, *it.after)
    ]
    kinds = [kind for _, kind in actions]
    assert kinds.count(Evict) == kinds.count(Prefetch) == 1
    assert Wait in kinds
    when = {kind: op for op, kind in actions}
    assert when[Evict] < when[Prefetch] <= when[Wait] == 6


def test_runs_of_a_recomputation_are_joined_to_one_pass() -> None:
    plan = Plan((recompute(CHAIN, 1, 5), recompute(CHAIN, 2, 5)))
    program = compiled(CHAIN, plan)
    passes = [action for _, action in instruction(program, 5).before if isinstance(action, Pass)]
    (joined,) = passes
    assert joined.ops == (0, 1)  # a makes h, b makes i from it: each once
    assert set(joined.targets) == {1, 2}
    assert joined.targets[ValueId(1)].ops == (0,)
    assert joined.targets[ValueId(1)].sources == (0,)
    assert joined.targets[ValueId(2)].ops == (0, 1)  # alone, it would need both
    assert len(joined.rows) == 2
    assert not any(
        isinstance(action, Run)
        for it in program.instructions
        if it is not None
        for _, action in it.before
    )


def test_what_some_lineage_runs_again_is_captured_and_nothing_else() -> None:
    program = compiled(CHAIN, Plan((recompute(CHAIN, 2),)))
    assert [op for op, it in enumerate(program.instructions) if it and it.captures] == [1]
    (dropped,) = (a for _, a in instruction(program, 2).after if isinstance(a, Discard))
    assert dropped.value == 2
    assert dropped.lineage.ops == (1,)
    assert dropped.lineage.sources == (1,)


def test_a_lineage_starts_from_what_is_there_by_then() -> None:
    """i is remade at op 5 from h: from its bytes if they are back, else from those of x."""
    late, early = swap(CHAIN, 1), Swap(gap(CHAIN, 1), "disk", OpIndex(2), OpIndex(4))
    for back, ops, sources in ((late, (0, 1), (0,)), (early, (1,), (1,))):
        program = compiled(CHAIN, Plan((back, recompute(CHAIN, 2))))
        (dropped,) = (a for _, a in instruction(program, 2).after if isinstance(a, Discard))
        assert (dropped.lineage.ops, dropped.lineage.sources) == (ops, sources)
        (joined,) = (a for _, a in instruction(program, 5).before if isinstance(a, Pass))
        assert joined.targets == {ValueId(2): dropped.lineage}
    kinds = [type(action) for _, action in instruction(program, 5).before]
    assert kinds.index(Wait) < kinds.index(Pass)  # for h


def test_running_statistics_are_no_source_of_a_lineage() -> None:
    """A second run leaves them out, so they need not be as they were."""
    trace = parse("""
        f norm x:I4M s:B1K -> h:A4M! ~s 1ms
        f f    h           -> i:A4M!    1ms
        f g    i           -> j:A4M!    1ms
        b g'   j i         -> k:T4M     1ms
        b f'   k h         -> l:T4M     1ms
    """)
    value = next(v.id for v in trace.values if v.saved and v.producer == 0)
    program = compiled(trace, Plan((recompute(trace, value),)))
    (dropped,) = (a for _, a in instruction(program, 1).after if isinstance(a, Discard))
    assert dropped.lineage.sources == (0,)


def test_random_ops_are_known_and_bare_ones_too() -> None:
    trace = parse("f drop x:I4M -> h:A4M 1ms ?\nf relu_ h -> ~h 1ms\nf a h -> i:A4M 1ms")
    funcs = [aten.native_dropout.default, aten.relu_.default, aten.exp.default]
    program = compiled(trace, Plan(), funcs=funcs)
    assert [it.random for it in program.instructions if it] == [True, False, False]
    small = parse("f a x:I4 -> h:A4 1ms\nf drop h -> i:A4 1ms ?")
    program = compiled(small, Plan(), funcs=funcs[::-1][::2])
    assert program.bare == (aten.exp.default, None, None)


def test_the_number_of_calls_must_be_that_of_the_ops() -> None:
    with pytest.raises(TraceError, match="2 calls for 7 ops"):
        compiled(CHAIN, Plan(), funcs=[aten.relu.default] * 2)


def test_marks_are_the_first_large_values() -> None:
    program = compiled(CHAIN, Plan())
    assert program.marks == ((0, 1), (1, 2), (2, 3), (4, 5), (5, 6), (6, 7))
    assert program.marked_sizes == [4 << 20] * 6


def test_a_place_is_found_again_by_the_last_calls() -> None:
    names = [aten.relu, aten.exp, aten.sin, aten.cos, aten.tanh, aten.log, aten.abs]
    calls = [name.default for name in names]
    program = compiled(CHAIN, Plan(), funcs=calls)
    assert program.find(calls[:5], 0) == 5
    assert program.find(calls[1:6], 0) == 6
    assert program.find(calls[2:7], 0) == 7  # the end of the step
    assert program.find(calls[4::-1], 0) is None


def test_of_several_places_the_next_one_is_found() -> None:
    lines = ["f a x:I4M -> h0:A4M 1ms"]
    lines += [f"f a h{n} -> h{n + 1}:A4M 1ms" for n in range(11)]
    program = compiled(parse("\n".join(lines)), Plan())
    recent = [aten.relu.default] * 5
    assert program.find(recent, 8) == 8
    assert program.find(recent, 0) == 5
    assert program.find(recent, 99) == 5  # none is left: the first


@given(traces())
def test_every_large_value_is_bound_once(trace: Trace) -> None:
    program = compiled(trace, Plan(), funcs=[aten.relu.default] * len(trace.ops))
    bound = [v for it in program.instructions if it for _, v in (*it.reads, *it.writes)]
    assert len(bound) == len(set(bound))
    met = {v for op in trace.ops for v in (*op.reads, *op.writes)}
    assert set(bound) == {v for v in met if trace.values[v].nbytes >= program.bound_from}
    positions = [[p for p, _ in it.writes] for it in program.instructions if it]
    assert all(a < b for row in positions for a, b in pairwise(row))


@given(st.data())
def test_no_action_of_a_schedule_is_lost(data: st.DataObject) -> None:
    trace = data.draw(traces())
    program = compiled(trace, data.draw(plans(trace, MACHINE)))
    ahead: set[int] = set()  # rows of the copies out that have begun while their value is read
    for op, (around, found) in enumerate(
        zip(program.schedule.around, program.instructions, strict=True)
    ):
        it = found or Instruction()
        joined = [action for _, action in it.before if isinstance(action, Pass)]
        runs = [(row, action) for row, action in around.before if isinstance(action, Run)]
        others = [numbered for numbered in around.before if not isinstance(numbered[1], Run)]
        assert len(joined) == bool(runs)
        assert [row for one in joined for row in one.rows] == [row for row, _ in runs]
        single = [numbered for numbered in it.before if not isinstance(numbered[1], Pass)]
        assert begins(single) == begins(others)
        dropped = [(row, act.value) for row, act in around.after if isinstance(act, Drop)]
        assert [(row, a.value) for row, a in it.after if isinstance(a, Discard)] == dropped
        here = (*it.before, *it.after)
        ahead.update(row for row, action in here if isinstance(action, CopyAhead))
        leaving = [(row, a) for row, a in it.after if isinstance(a, Evict) and row in ahead]
        assert all(action.after == op for _, action in leaving)
        ahead -= {row for row, _ in leaving}
        assert begins(it.after[len(leaving) :]).keys() == begins(around.after).keys()
    assert not ahead  # all that was copied has left


def begins(actions: Iterable[tuple[int, Any]]) -> dict[int, Any]:
    """By row, the action; of a copy out, be it ahead or not, only its transfer."""
    out = (Evict, CopyAhead)
    return {row: a.transfer if isinstance(a, out) else a for row, a in actions}


def test_a_plan_that_places_values_is_refused_by_the_name_of_its_policy() -> None:
    plan = Plan((Place(ValueId(1), "disk"), Place(ValueId(2), "disk")), "autotm")
    direct = replace(MACHINE.tiers[0], direct=Direct(2**20, 2**20))
    found = outcome(Problem(CHAIN, MACHINE.with_tiers(direct), ROOMY), plan)
    calls = [aten.relu.default] * len(CHAIN.ops)
    with pytest.raises(PlanError) as caught:
        compile_program(calls, plan, found.schedule, found.timeline, {})
    assert str(caught.value) == (
        "policy autotm places 2 values in tier disk for direct access, which a step in PyTorch on cpu "
        "cannot carry out; simulate it (penstock plan, penstock compare), or choose a policy that swaps "
        "or recomputes"
    )


def test_what_is_still_read_is_copied_first_and_leaves_when_its_last_reader_has_run() -> None:
    early = replace(swap(CHAIN, 1), evict_at=OpIndex(1))  # h, which op 1 reads
    program = compiled(CHAIN, Plan((early,)))
    around = [
        (op, side, type(action))
        for op in (0, 1)
        for side in ("before", "after")
        for _, action in getattr(instruction(program, op), side)
    ]
    assert around in (
        [(0, "after", CopyAhead), (1, "after", Evict)],
        [(1, "before", CopyAhead), (1, "after", Evict)],
    )
    in_time = compiled(CHAIN, Plan((swap(CHAIN, 1),)))
    assert not any(
        isinstance(action, CopyAhead)
        for it in in_time.instructions
        if it is not None
        for _, action in (*it.before, *it.after)
    )


def test_what_depends_on_data_may_be_larger_than_it_was() -> None:
    step = parse("""
        f a  x:I1K -> h:A1K  1ms
        f b  h     -> i:A1K  1ms    # which rows: as many as the data says
        f c  i     -> j:A1K  1ms
        f d  h     -> k:A1K  1ms
        f e  j k   -> l:A1K  1ms
    """)
    funcs = [aten.relu.default] * len(step.ops)
    funcs[1] = aten.nonzero.default
    found = compiled(step, Plan(), funcs=funcs).instructions
    assert [one is not None and one.unsure for one in found] == [False, True, True, False, True]
