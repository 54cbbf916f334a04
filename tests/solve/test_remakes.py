"""When dropped values are remade, and together with which others."""

from hosts import host
from penstock.ir.plan import Plan, Recompute, Swap, check
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.ir.trace import Gap
from penstock.simulate.lower import lower
from penstock.solve.remakes import (
    alone,
    collective,
    in_one_pass,
    is_heavy,
    light,
    one_by_one,
    possible,
    remade_at_need,
    swappable,
)
from steps import FED_BY_DEAD, chain

TRACE = chain(6, "4M", "1s")
MACHINE = host(1.0)
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
    away = Plan((Swap(h, "host", 2, 5),))
    assert remade_at_need(away, FED_BY_DEAD, [k]) == ([], [k])


def test_what_starts_from_values_that_stay_can_be_remade_by_itself():
    assert alone(Problem(TRACE, MACHINE, 0), [SECOND]) == [SECOND]


def test_what_starts_from_a_value_that_is_sent_away_cannot():
    k, h = Gap(2, 2, 4), Gap(1, 1, 5)
    away = Plan((Swap(h, "host", 2, 5),))
    assert alone(Problem(FED_BY_DEAD, MACHINE, 0), [k]) == [k]
    assert alone(Problem(FED_BY_DEAD, MACHINE, 0, away), [k]) == []


def test_nor_can_what_is_missed_in_an_open_or_a_wrapping_gap():
    gaps = [Gap(SECOND.value, 5, None), Gap(SECOND.value, 5, 2)]
    assert alone(Problem(TRACE, MACHINE, 0), gaps) == []


def test_a_chain_is_remade_in_one_pass_instead_of_quadratically():
    targets = [Recompute(gap, gap.stop) for gap in GAPS[:4]]
    joined = collective(Plan(), TRACE, targets)
    check(TRACE, Plan(tuple(joined)))
    assert {one.remake_at for one in joined} == {GAPS[3].stop}  # when the last is needed
    assert remakes(Plan(tuple(targets))) == [0, 1, 2, 3, 0, 1, 2, 0, 1, 0]
    assert remakes(Plan(tuple(joined))) == [0, 1, 2, 3]


def test_an_open_gap_is_no_target():
    assert remade_at_need(Plan(), TRACE, [Gap(1, 13, None)]) == ([], [])


BLOCK = parse("""
    f aten.mm   x:I1 -> a:A4M!  9ms
    f aten.relu a    -> b:A4M!  1ms
    f aten.gelu b    -> c:A4M!  1ms
    f aten.mm   c    -> d:A4M   9ms
    f aten.tanh d    -> e:A4M!  1ms
    f aten.loss e    -> l:T1    1ms
    b aten.loss_backward l -> g:T1 1ms
    b aten.tanh_backward g e -> ~g 1ms
    b aten.mm_backward g c -> ~g 9ms
    b aten.gelu_backward g b -> ~g 1ms
    b aten.relu_backward g a -> ~g 1ms
""")


def named(gaps):
    return [BLOCK.values[gap.value].name for gap in gaps]


def test_light_remakes_are_those_that_run_no_product_again():
    """`a` is a product itself; `e` is made from one that is dead when backward begins."""
    problem = Problem(BLOCK, MACHINE, 0)
    saved = list(BLOCK.saved_gaps())
    assert named(alone(problem, saved)) == ["a", "b", "c", "e"]
    assert named(light(problem, saved, lambda op: not is_heavy(op))) == ["b", "c"]


def test_a_remake_is_heavy_if_it_runs_through_what_is_dropped_with_it():
    """Without `b` to start from, `c` needs the relu again: refused where that is not light."""
    problem = Problem(BLOCK, MACHINE, 0)
    cheap = light(problem, BLOCK.saved_gaps(), lambda op: op.name == "aten.gelu")
    assert named(cheap) == ["c"]
    both = light(problem, BLOCK.saved_gaps(), lambda op: op.name in ("aten.gelu", "aten.relu"))
    assert named(both) == ["b", "c"]


def test_one_pass_comes_when_the_first_is_needed_and_waits_for_none_that_is_still_in_use():
    late = Gap(5, 20, 30)
    gaps = [Gap(1, 2, 12), Gap(2, 3, 10), late]
    assert one_by_one(gaps) == [Recompute(gap, gap.stop) for gap in gaps]
    assert in_one_pass(gaps) == [*(Recompute(gap, 10) for gap in gaps[:2]), Recompute(late, 30)]
    assert in_one_pass([]) == []


def test_what_cannot_be_remade_together_stays():
    """k is made from h, and h from what is dead: h stays, and k can go."""
    h, k = Gap(1, 1, 5), Gap(2, 2, 4)
    assert possible(Plan(), FED_BY_DEAD, one_by_one([h, k])) == [Recompute(k, 4)]


def test_what_a_remake_starts_from_may_be_away_until_then():
    problem = Problem(TRACE, MACHINE, 0, Plan((Recompute(SECOND, SECOND.stop),)))
    assert FIRST not in list(problem.free_gaps())
    back = swappable(problem, 1)
    assert back[FIRST] == SECOND.stop  # its own next use is later
    assert back[THIRD] == THIRD.stop
    assert SECOND not in back
    bare = Problem(TRACE, MACHINE, 0)
    assert list(swappable(bare, 1)) == list(bare.free_gaps())
    swap = Swap(FIRST, "host", FIRST.start + 1, back[FIRST])
    check(TRACE, problem.given.plus([swap]))
