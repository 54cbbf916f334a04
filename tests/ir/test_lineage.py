"""What must run again to remake a value."""

import pytest

from penstock.ir.lineage import Gone, lineage
from penstock.ir.text import parse

CHAIN = parse("""
    f a  x:I1M w:P1M -> h1:A1M!  1ms
    f b  h1          -> h2:A1M!  1ms
    f c  h2 w        -> h3:A1M!  1ms
    f d  h3          -> h4:A1M   1ms
    b e  h4 h3       -> g:T1M    1ms
""")
VALUE = {value.name: value.id for value in CHAIN.values}


def holding(*names):
    kept = {VALUE[name] for name in names}
    return lambda value, op: value in kept


def test_the_walk_stops_at_what_is_resident():
    assert lineage(CHAIN, VALUE["h3"], 4, holding("x", "w", "h2")) == (2,)
    assert lineage(CHAIN, VALUE["h3"], 4, holding("x", "w", "h1")) == (1, 2)
    assert lineage(CHAIN, VALUE["h3"], 4, holding("x", "w")) == (0, 1, 2)


def test_what_was_there_before_the_step_cannot_be_remade():
    with pytest.raises(Gone, match="it needs w, which is gone by then"):
        lineage(CHAIN, VALUE["h3"], 4, holding("x"))


def test_residency_is_asked_for_the_time_of_the_remake():
    asked = []

    def holds(value, op):
        asked.append(op)
        return True

    lineage(CHAIN, VALUE["h3"], 4, holds)
    assert set(asked) == {4}


def test_an_op_that_two_paths_need_runs_once():
    diamond = parse("""
        f a  x:I1M -> h:A1M  1ms
        f b  h     -> l:A1M  1ms
        f c  h     -> r:A1M  1ms
        f d  l r   -> y:A1M! 1ms
        f e  y     -> z:A1M  1ms
        b f  z y   -> g:T1M  1ms
    """)
    assert lineage(diamond, 4, 5, lambda value, op: value == 0) == (0, 1, 2, 3)


def test_a_version_that_was_overwritten_is_remade_even_if_its_storage_is_there():
    # relu_ overwrote what conv made: to remake relu_'s result, conv must run again.
    trace = parse("""
        f conv  x:I1M -> h:A1M  1ms
        f relu_ h     -> ~h     1ms
        f next  h     -> y:A1M  1ms
        b back  y h   -> g:T1M  1ms
    """)
    assert lineage(trace, 2, 3, lambda value, op: True) == (0, 1)


def test_running_statistics_are_left_alone():
    trace = parse("""
        f conv  x:I1M     -> h:A1M      1ms
        f norm  h s:B1K   -> y:A1M! ~s  1ms
        f next  y         -> z:A1M      1ms
        b back  z y       -> g:T1M      1ms
    """)
    y = next(value.id for value in trace.values if value.name == "y")
    assert lineage(trace, y, 3, lambda value, op: trace.values[value].name in "xh") == (1,)


def test_an_op_that_must_not_run_twice_is_named():
    once = parse("f a x:I1M -> h:A1M 1ms !\nf b h -> y:A1M 1ms")
    with pytest.raises(Gone, match=r"op 0 \(a\) must not run twice"):
        lineage(once, 1, 1, lambda value, op: True)


def test_running_statistics_themselves_cannot_be_remade():
    trace = parse("""
        f norm  h:A1M s:B1K  -> y:A1M! ~s  1ms
        f next  y            -> z:A1M      1ms
        f use   z s          -> u:A1M      1ms
    """)
    with pytest.raises(Gone, match=r"a second run of op 0 \(norm\) leaves s alone"):
        lineage(trace, trace.next_version[1], 2, lambda value, op: True)
