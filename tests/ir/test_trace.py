"""A trace contradicts nobody, least of all itself."""

from dataclasses import FrozenInstanceError, fields, replace
from functools import cached_property

import numpy as np
import pytest
from hypothesis import given

from penstock.errors import TraceError
from penstock.ir.text import parse
from penstock.ir.trace import Gap, Kind, Op, OpIndex, Phase, StorageId, Trace, Value, ValueId
from strategies import traces

STEP = """
    f a  x:I1M w:P2M -> h:A8M!  1ms
    f b  h           -> y:A4M   2ms +1M
    f c  y           -> l:A1M   4ms
    b c' l           -> d:T4M   1ms
    b a' d h         -> g:G2M   1ms
    o s  g w         -> ~w      1ms
"""
MIB = 2**20


def op(index=0, reads=(), writes=(), **fields):
    return Op(OpIndex(index), f"op{index}", Phase.FORWARD, reads, writes, **fields)


def value(number=0, nbytes=1, producer=None, freed=None, storage=None):
    owner = StorageId(number if storage is None else storage)
    return Value(ValueId(number), owner, nbytes, Kind.ACTIVATION, producer, freed)


FAULTY = {
    "value 1 stands at position 0": ([], [value(1)]),
    "value 0 has -4 bytes": ([], [value(nbytes=-4)]),
    "value 0 is made by op 7, which does not exist": ([], [value(producer=7)]),
    "value 0, made by op 1, is freed after op 0": (
        [op(0), op(1, writes=(0,))],
        [value(producer=1, freed=0)],
    ),
    "value 0, made by op None, is freed after op 3": ([op()], [value(freed=3)]),
    "op 4 stands at position 0": ([op(4)], []),
    "op 0 reads value 3, which does not exist": ([op(reads=(3,))], []),
    "op 0 reads value 0 before op 1 makes it": (
        [op(0, reads=(0,)), op(1, writes=(0,))],
        [value(producer=1)],
    ),
    "op 1 reads value 0, which was freed after op 0": (
        [op(0), op(1, reads=(0,))],
        [value(freed=0)],
    ),
    "op 0 writes value 2, which does not exist": ([op(writes=(2,))], []),
    "op 0 writes value 0, whose producer is said to be None": ([op(writes=(0,))], [value()]),
    "op 0 writes value 0 twice": ([op(writes=(0, 0))], [value(producer=0)]),
    "op 0 has a negative time or workspace": ([op(workspace=-1)], []),
    "value 0 is said to be made by op 0, which does not write it": ([op()], [value(producer=0)]),
    "value 1 overwrites value 0 at op 0, but that one is freed after op None": (
        [op(writes=(1,))],
        [value(0), value(1, producer=0, storage=0)],
    ),
    "values 0 and 1 of one storage both begin the step": ([], [value(0), value(1, storage=0)]),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_contradiction_is_refused_with_the_culprit_named(fault):
    ops, values = FAULTY[fault]
    with pytest.raises(TraceError) as caught:
        Trace(tuple(ops), tuple(values))
    assert fault in str(caught.value).splitlines()


@pytest.mark.parametrize("field", ["seconds", "host_seconds"])
def test_time_does_not_run_backwards(field):
    with pytest.raises(TraceError, match="op 0 has a negative time"):
        Trace((op(**{field: -1.0}),), ())


def test_all_contradictions_are_listed_at_once():
    with pytest.raises(TraceError) as caught:
        Trace((op(4, reads=(9,)),), (value(nbytes=-1),))
    assert len(str(caught.value).splitlines()) == 4  # the headline and three faults


@pytest.mark.parametrize("name", ["ops", "values", "slack"])
def test_a_trace_is_frozen(name):
    trace = parse(STEP)
    with pytest.raises(FrozenInstanceError):
        setattr(trace, name, ())


@pytest.mark.parametrize("record", [parse(STEP).ops[0], parse(STEP).values[0], Gap(0, 0, 1)])
def test_records_are_frozen_and_hash(record):
    with pytest.raises(FrozenInstanceError):
        setattr(record, fields(record)[0].name, 3)
    assert record == replace(record)
    assert hash(record) == hash(replace(record))


def test_uses_are_the_producer_and_the_readers_in_clock_order():
    trace = parse(STEP)
    by_name = {v.name: trace.uses[v.id] for v in trace.values}
    assert by_name["h"] == (0, 1, 4)
    assert by_name["x"] == (0,)
    assert trace.readers[2] == (1, 4)


def test_live_bytes_count_operands_results_and_workspace():
    # x 1 + w 2 throughout (an input lives on); the optimizer writes w in place.
    assert (parse(STEP).live // MIB).tolist() == [11, 16, 16, 16, 17, 5]
    assert parse(STEP).peak == 17 * MIB


def test_an_in_place_write_takes_no_bytes_and_frees_none():
    trace = parse("f a x:I1M -> h:A4M 1ms\nf b h -> ~h 1ms\nf c h -> y:A1M 1ms")
    old, new = 1, 2
    assert trace.next_version == {old: new}
    assert trace.previous_version == {new: old}
    assert trace.values[old].freed == 1
    assert trace.fresh[1] == ()
    assert trace.freed_after == ((), (), (new, 3))
    assert (trace.live // MIB).tolist() == [5, 5, 6]


def test_gaps_are_the_stretches_in_which_a_value_lies_idle():
    trace = parse(STEP)
    found = {trace.values[gap.value].name: gap for gap in trace.gaps(2 * MIB)}
    assert (found["h"].start, found["h"].stop) == (1, 4)
    assert "y" not in found  # read by its neighbour: there is no gap to use


def test_state_is_idle_from_its_last_use_to_the_first_of_the_next_step():
    trace = parse(STEP)
    (last,) = [gap for gap in trace.gaps() if gap.wraps and trace.values[gap.value].name == "w"]
    newest = trace.previous_version.keys() & {gap.value for gap in [last]}
    assert newest == {last.value}
    assert (last.start, last.stop) == (5, 0)


def test_what_nothing_uses_again_has_an_open_gap_if_it_lives_on():
    trace = parse("f a x:I1M -> h:A4M 1ms\nf b x -> y:A1M 1ms\nf c x -> z:A1M 1ms\nkeep h")
    assert Gap(1, 0, None) in list(trace.gaps())


def test_saved_gaps_lie_between_forward_and_backward():
    trace = parse(STEP)
    assert [trace.values[gap.value].name for gap in trace.saved_gaps()] == ["h"]
    assert list(trace.saved_gaps(at_least=9 * MIB)) == []


def test_a_value_is_described_by_its_name_or_by_what_made_it():
    trace = parse(STEP)
    anonymous = Trace(trace.ops, tuple(replace(v, name="") for v in trace.values))
    assert trace.describe(2) == "h"
    assert anonymous.describe(2) == "a (op 0)"
    assert anonymous.describe(1) == "parameter 1"
    assert trace.describe_op(1) == "op 1 (b)"


def test_a_label_changes_nothing_else():
    trace = parse(STEP)
    assert trace.relabelled("gpt2").label == "gpt2"
    assert trace.relabelled("").ops == trace.ops


@given(traces())
def test_live_bytes_equal_the_plain_count(trace):
    size = trace.columns.nbytes
    for op in trace.ops:
        # A version counts until its successor stands in its place.
        held = [
            v.id
            for v in trace.values
            if (v.producer is None or v.producer <= op.index)
            and (v.freed is None or v.freed >= op.index)
            and not (trace.is_overwritten(v.id) and v.freed == op.index)
        ]
        assert trace.live[op.index] == sum(int(size[v]) for v in held) + op.workspace


@given(traces())
def test_nothing_uses_a_value_inside_its_gap(trace):
    for gap in trace.gaps():
        inside = range(gap.start + 1, len(trace.ops) if gap.stop is None or gap.wraps else gap.stop)
        assert not set(inside) & set(trace.uses[gap.value])
        assert gap.start in trace.uses[gap.value]


DERIVED = [name for name, one in vars(Trace).items() if isinstance(one, cached_property)]


@given(traces())
def test_what_is_derived_of_a_trace_that_is_relearnt_is_what_would_be_derived_anew(trace):
    for name in DERIVED:
        getattr(trace, name)
    seconds = np.arange(2.0 * len(trace.ops)).reshape(-1, 2)
    found = trace.relearnt(trace.slack + 1, seconds)
    anew = replace(found)
    for name in DERIVED:
        if name != "columns":
            np.testing.assert_equal(getattr(found, name), getattr(anew, name))
    for column in fields(found.columns):
        np.testing.assert_equal(
            getattr(found.columns, column.name), getattr(anew.columns, column.name)
        )
