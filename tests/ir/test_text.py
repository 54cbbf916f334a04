"""A trace reads as lines and parses back."""

import re

import pytest
from hypothesis import given

from penstock.errors import TraceError
from penstock.ir.plan import Plan, Recompute, Swap
from penstock.ir.text import parse, show, show_plan
from penstock.ir.trace import Gap, Kind, Phase
from strategies import traces

STEP = """\
f a x:I1M w:P2M -> h:A8M! 1ms ?
f b h -> ~h 2ms +1M
free x
b a' h -> g:G2M 1.5ms
keep g
o s g w -> ~w 1ms !"""


def test_a_line_says_all_about_its_op():
    trace = parse(STEP)
    a, b, _, s = trace.ops
    assert (a.name, a.phase, a.reads, a.writes) == ("a", Phase.FORWARD, (0, 1), (2,))
    assert (a.seconds, a.random, a.repeatable, a.workspace) == (1e-3, True, True, 0)
    assert (b.workspace, b.random) == (2**20, False)
    assert not s.repeatable
    assert s.phase is Phase.OPTIMIZER


def test_a_value_is_declared_where_it_is_first_named():
    x, w, h, h2, g, w2 = parse(STEP).values
    assert (x.kind, x.nbytes, x.producer, x.freed) == (Kind.INPUT, 2**20, None, 1)
    assert (h.kind, h.nbytes, h.saved, h.freed) == (Kind.ACTIVATION, 8 * 2**20, True, 1)
    assert (h2.storage, h2.producer, h2.freed) == (h.storage, 1, 2)
    assert (g.kind, g.freed) == (Kind.GRADIENT, None)
    assert (w.freed, w2.storage, w2.freed) == (3, w.storage, None)


def test_comments_and_empty_lines_are_passed_over():
    assert parse("# a step\n\n f a x:I1M -> y:A1M 1ms # one op\n") == parse(
        "f a x:I1M -> y:A1M 1ms"
    )


@given(traces())
def test_what_is_shown_parses_back(trace):
    shown = show(trace)
    # Names are the text's own, and host seconds are not in it: the text is what must come back.
    again = parse(shown)
    assert show(again) == shown
    assert [op.reads for op in again.ops] != [] or not trace.ops
    assert len(again.values) <= len(trace.values)  # what no op uses has no line to stand on
    assert again.peak == trace.peak - unused(trace)


def unused(trace):
    return sum(v.nbytes for v in trace.values if not trace.uses[v.id])


def test_a_shown_step_is_the_written_one():
    named = show(parse(STEP))
    assert parse(named) == parse(STEP)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("f a x:I1M y:A1M 1ms", "an op needs '->'"),
        ("z a x:I1M -> y:A1M", "z is not known"),
        ("f a q -> y:A1M", "q is not known"),
        ("f a x:I1M -> q", "q is written but not declared, as in q:A1M"),
        ("f a x:I1M x:I2M -> y:A1M", "x is declared twice"),
        ("f a x:Z1M -> y:A1M", "x:Z1M is not known"),
        ("f a x:I1M -> ~y", "y is not known"),
        ("keep nobody", "nobody is not known"),
    ],
)
def test_a_bad_line_is_refused_with_its_number_and_the_culprit(line, reason):
    with pytest.raises(TraceError, match=re.escape(reason)) as caught:
        parse(f"# first line\n{line}")
    assert str(caught.value).startswith(f"line 2: {line!r}: ")


def test_a_plan_is_shown_in_the_names_of_its_trace():
    trace = parse("""
        f a  x:I1M -> h:A8M!  1ms
        f b  h     -> y:A4M!  1ms
        f c  y     -> l:A1M   1ms
        b b' l y   -> e:T1M   1ms
        b a' e h   -> g:G2M   1ms
    """)
    plan = Plan((Swap(Gap(1, 1, 4), "disk", 2, 3), Recompute(Gap(2, 2, 3), 3)))
    assert show_plan(trace, plan).splitlines() == [
        "h, 8.00 MiB: swap to disk: out at op 2, back at op 3 (idle 1..4)",
        "y, 4.00 MiB: recompute at op 3 (idle 2..3)",
    ]
    never = Plan((Swap(Gap(0, 0, None), "disk", 1, None),))
    assert show_plan(trace, never).endswith("back at never (idle 0..end)")
