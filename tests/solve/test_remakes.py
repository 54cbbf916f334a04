"""When dropped values are remade, and together with which others."""

from penstock.ir.plan import Plan, Recompute, Swap, check
from penstock.ir.trace import Gap
from penstock.simulate.lower import lower
from penstock.solve.remakes import collective, remade_at_need
from steps import FED_BY_DEAD, chain

TRACE = chain(6, "4M", "1s")
GAPS = list(TRACE.saved_gaps())
FIRST, SECOND, THIRD = GAPS[:3]


def remakes(plan):
    return [op for op, again in zip(*runs(plan), strict=True) if again]


def runs(plan):
    actions = [a for a in lower(TRACE, plan).actions if hasattr(a, "again")]
    return [a.op for a in actions], [a.again for a in actions]


def test_one_by_one_each_is_remade_when_it_is_needed():
    alone, lost = remade_at_need(Plan(), TRACE, [FIRST, SECOND])
    assert alone == [Recompute(FIRST, FIRST.stop), Recompute(SECOND, SECOND.stop)]
    assert lost == []


def test_what_would_start_from_something_gone_is_given_back():
    h, k = Gap(1, 1, 5), Gap(2, 2, 4)
    assert remade_at_need(Plan(), FED_BY_DEAD, [k]) == ([Recompute(k, 4)], [])
    away = Plan((Swap(h, "disk", 2, 5),))
    assert remade_at_need(away, FED_BY_DEAD, [k]) == ([], [k])


def test_a_chain_is_remade_in_one_pass_instead_of_quadratically():
    targets = [Recompute(gap, gap.stop) for gap in GAPS[:4]]
    joined = collective(Plan(), TRACE, targets)
    check(TRACE, Plan(tuple(joined)))
    assert {one.remake_at for one in joined} == {GAPS[3].stop}  # when the last is needed
    assert remakes(Plan(tuple(targets))) == [0, 1, 2, 3, 0, 1, 2, 0, 1, 0]
    assert remakes(Plan(tuple(joined))) == [0, 1, 2, 3]


def test_an_open_gap_is_no_target():
    assert remade_at_need(Plan(), TRACE, [Gap(1, 13, None)]) == ([], [])
