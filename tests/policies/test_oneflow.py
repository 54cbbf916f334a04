"""OneFlow's checkpointing pass: marked blocks are replayed just in time."""

import re
from dataclasses import replace

import pytest

from penstock.errors import UsageError
from penstock.ir.machine import Device, Machine
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.policies.oneflow import Oneflow
from penstock.solve.best import outcome

MACHINE = Machine(Device("cpu", 2**40))
MIB = 2**20


def blocks(count, layers=3, norm=()):
    """Blocks `h.0`, `h.1` and so on, of layers of 1 MiB and 1 ms. `norm`: those that keep statistics."""
    forward, backward, modules, before = [], [], [], "x"
    forward.append("f aten.embedding i:I1 -> x:A1M! 1ms")
    modules.append("wte")
    for n in range(count):
        for m in range(layers):
            kind = "batch_norm" if m in norm else "relu"
            forward.append(f"f aten.{kind} {before} -> h{n}_{m}:A1M! 1ms")
            backward.append(f"b aten.{kind}_backward g {before} h{n}_{m} -> ~g 1ms")
            modules.append(f"h.{n}.{'norm' if m in norm else 'act'}")
            before = f"h{n}_{m}"
    forward += [f"f aten.loss {before} -> l:T1 1ms", "b aten.loss_backward l -> g:T1 1ms"]
    trace = parse("\n".join([*forward, *reversed(backward)]))
    ops = tuple(
        replace(op, module=modules[op.index] if op.index < len(modules) else "") for op in trace.ops
    )
    return replace(trace, ops=ops)


def found(trace, budget=0, **options):
    problem = Problem(trace, MACHINE, budget)
    return outcome(problem, Oneflow(**options)(problem))


def test_each_block_runs_once_more_but_for_what_leaves_it():
    trace = blocks(4)
    again = [span.ref for span in found(trace).timeline.spans if span.again]
    assert (
        len(again) == len(set(again)) == 4 * 2
    )  # the last layer's result is the next block's input
    names = {trace.values[d.gap.value].name for d in found(trace).plan.decisions}
    assert names == {f"h{n}_{m}" for n in range(4) for m in range(2)}


def test_no_replay_starts_before_the_block_after_it_has_done_its_backward():
    trace = blocks(4)
    begins = {span.ref: span.start for span in found(trace).timeline.spans if span.again}
    ends = {span.ref: span.end for span in found(trace).timeline.spans if not span.again}
    for n in range(3):
        first = min(
            begins[op.index] for op in trace.ops if op.index in begins and f"h.{n}." in op.module
        )
        after = next(
            o.index for o in trace.ops if o.phase == "backward" and reads(trace, o, f"h{n + 1}_0")
        )
        assert first >= ends[after]


def reads(trace, op, name):
    """Is it the backward of the layer that made `name`?"""
    values = [trace.values[value].name for value in op.reads]
    return values[-1] == name


def test_just_in_time_holds_one_block_and_at_once_holds_all():
    trace = blocks(8)
    late, early = (found(trace, replay=way).timeline for way in ("just-in-time", "at-once"))
    assert late.peak < early.peak
    assert late.peak <= (1 + 8 + 2 + 1) * MIB  # the input, what leaves the blocks, a block, an op


def test_what_keeps_statistics_runs_once_and_parts_a_block():
    trace = blocks(3, layers=5, norm=(2,))
    timeline = found(trace).timeline
    again = [trace.ops[span.ref] for span in timeline.spans if span.again]
    assert "aten.batch_norm" not in {op.name for op in again}
    kept = {f"h{n}_2" for n in range(3)}
    assert kept.isdisjoint(trace.values[d.gap.value].name for d in found(trace).plan.decisions)
    # Two parts a block, each replayed at its own time.
    assert len({d.remake_at for d in found(trace).plan.decisions}) == 6


def test_other_marks_mark_other_blocks():
    trace = blocks(4)
    assert found(trace, blocks="no such module").plan.decisions == ()
    second = found(trace, blocks=r"h\.1").plan.decisions
    assert {trace.values[d.gap.value].name for d in second} == {"h1_0", "h1_1"}


@pytest.mark.parametrize(
    ("module", "block"),
    [
        ("transformer.h.3.mlp.c_fc", "transformer.h.3"),
        ("layer1.0.conv1", "layer1.0"),
        ("3", "3"),
        ("layers.12", "layers.12"),
        ("encoder.layer.4.attention.2.dense", "encoder.layer.4"),
        ("conv1", None),
        ("", None),
    ],
)
def test_blocks_are_what_a_list_of_modules_numbers(module, block):
    op = replace(blocks(1).ops[0], module=module)
    assert Oneflow().block(op) == block


def test_where_everything_fits_nothing_is_replayed():
    trace = blocks(4)
    assert found(trace, trace.peak).plan.decisions == ()


def test_a_mark_that_is_no_expression_is_refused():
    with pytest.raises(UsageError, match=re.escape("blocks='h.(' is no regular expression")):
        Oneflow(blocks="h.(")
