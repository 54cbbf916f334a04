"""Searches over plans find what trying everything would find."""

from itertools import pairwise

import pytest

from penstock import policies
from penstock.errors import UsageError
from penstock.ir.machine import Device, Link, Machine, Tier
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.ir.trace import Trace
from penstock.leaderboard import Entry
from penstock.search import budgets_for, by_policy, curve, front, largest
from penstock.simulate.least import least_budget

MIB = 1 << 20
MACHINE = Machine(Device("d", 1 << 40), (Tier("disk", 1 << 40, Link(2e9), Link(2e9)),))


def chain(width: int = 4, layers: int = 12) -> Trace:
    """Layers that each save an activation of `width` MiB for backward."""
    names = [f"h{i}" for i in range(layers)]
    lines = [f"f l0 x:I{width}M -> h0:A{width}M! 5ms"]
    lines += [f"f l{i} h{i - 1} -> h{i}:A{width}M! 5ms" for i in range(1, layers)]
    lines += [f"b b{layers} h{layers - 1} -> g{layers}:T{width}M 5ms"]
    lines += [f"b b{i} h{i} g{i + 1} -> g{i}:T{width}M 5ms" for i in reversed(range(1, layers))]
    assert len(names) == layers
    return parse("\n".join(lines))


def test_budgets_go_from_the_least_to_the_plain_peak() -> None:
    trace = chain()
    budgets = budgets_for(trace, 5)
    assert budgets[0] == least_budget(trace).nbytes
    assert budgets[-1] == trace.peak + trace.slack
    assert budgets == sorted(budgets)
    assert len(budgets) == 5
    assert budgets_for(trace, 1) == [trace.peak]


def test_the_curve_in_processes_is_what_each_policy_says() -> None:
    trace = chain()
    budgets, names = budgets_for(trace, 3), ["keep", "chen", "belady"]
    told: list[Entry] = []
    points = curve(trace, MACHINE, budgets, names, processes=2, told=told.append)
    assert [(p.policy, p.budget) for p in points] == [(n, b) for n in names for b in budgets]
    for point in points:
        found = policies.ask(
            policies.configured(point.policy), Problem(trace, MACHINE, point.budget)
        )
        timeline = found.timeline
        assert (point.peak, point.seconds) == (timeline.peak, timeline.seconds)
        assert point.shortfall == found.missing
    assert sorted(told, key=points.index) == points


def test_what_is_not_found_in_time_says_so() -> None:
    trace = chain()
    budgets, names = budgets_for(trace, 2), ["keep", "chen"]
    points = curve(trace, MACHINE, budgets, names, limit=0.0)
    assert [(p.policy, p.budget) for p in points] == [(n, b) for n in names for b in budgets]
    assert {p.problem for p in points} == {"not found within 0 s"}
    assert front(points) == []


def test_more_budget_is_never_slower_on_the_front() -> None:
    trace = chain()
    points = curve(trace, MACHINE, budgets_for(trace, 6), ["keep", "chen", "belady"], processes=1)
    best = front(points)
    assert best
    assert all(p.fits for p in best)
    for less, more in pairwise(best):
        assert less.budget < more.budget
        assert less.seconds > more.seconds
    for point in points:
        if point.fits:
            assert any(b.budget <= point.budget and b.seconds <= point.seconds for b in best)


def test_a_policy_that_cannot_says_why_and_an_unknown_one_is_refused() -> None:
    trace = chain()
    (point,) = curve(trace, Machine(Device("d", 1 << 40)), [trace.peak], ["belady"], processes=1)
    assert not point.fits
    assert "needs a tier" in point.problem
    with pytest.raises(UsageError, match="belady"):
        curve(trace, MACHINE, [trace.peak], ["beladi"], processes=1)


@pytest.mark.parametrize("policy", ["keep", "belady"])
@pytest.mark.parametrize("budget", [30 * MIB, 100 * MIB, 333 * MIB])
def test_the_largest_size_fits_and_the_next_does_not(policy: str, budget: int) -> None:
    found = largest(chain, MACHINE, budget, policy)
    sizes = dict(found.tried)
    assert sizes[found.size + 1].fits is False
    if found.size:
        assert found.point == sizes[found.size]
        assert found.point.fits
        assert found.point.peak <= budget
    tries = [size for size, _ in found.tried]
    assert len(tries) == len(set(tries))


def test_the_search_for_the_largest_ends_at_its_limit() -> None:
    found = largest(chain, MACHINE, 1 << 50, "keep", at_most=6)
    assert found.size == 6
    assert max(size for size, _ in found.tried) <= 6


def test_points_by_policy_keep_their_order() -> None:
    points = [Entry("", "s", "m", *asked, 1.0) for asked in ((1, "b"), (1, "a"), (2, "b"))]
    assert dict(by_policy(points)) == {"b": [points[0], points[2]], "a": [points[1]]}


def test_the_front_over_peaks_is_what_nothing_beats_in_peak_and_time() -> None:
    def point(budget: int, peak: int, seconds: float) -> Entry:
        return Entry("", "s", "m", budget, "p", 1.0, peak, seconds)

    frugal, quick = point(9, 4, 2.0), point(9, 8, 1.0)
    beaten = point(5, 5, 2.5)
    assert front([quick, beaten, frugal], "peak") == [frugal, quick]
    assert front([quick, beaten, frugal]) == [beaten, quick]
