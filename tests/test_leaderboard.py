"""Policies compared in processes: results that outlive a run, and points that are given up."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from penstock import policies
from penstock.errors import UsageError
from penstock.ir.machine import Device, Link, Machine, Tier
from penstock.ir.plan import Plan
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.leaderboard import Case, Entry, compare, kept, level, remembered, standings
from penstock.sizes import Share
from penstock.solve.best import outcome

SLOW = Machine(Device("d", 1 << 40), (Tier("disk", 1 << 40, Link(2e9), Link(2e9)),))
BARE = Machine(Device("e", 1 << 40))

STEP = parse("""
    f a  x:I4M -> h0:A8M! 5ms
    f b  h0    -> h1:A8M! 5ms
    f c  h1    -> h2:A8M! 5ms
    f d  h2    -> l:T1K   5ms
    b c' h2 l  -> g2:T8M  5ms
    b b' h1 g2 -> g1:T8M  5ms
    b a' h0 g1 -> g0:T8M  5ms
""")
CASES = [Case("step", "slow", STEP, SLOW), Case("step", "bare", STEP, BARE)]
BUDGETS = (Share(0.9), 1 << 30)

OUTSIDE = """
import os
import threading
from dataclasses import dataclass

from penstock.ir.plan import Plan


@dataclass(frozen=True)
class Endless:
    paper = None
    needs = frozenset()

    def __call__(self, problem):
        threading.Event().wait()


@dataclass(frozen=True)
class Deadly(Endless):
    def __call__(self, problem):
        os._exit(3)


@dataclass(frozen=True)
class Faulty(Endless):
    def __call__(self, problem):
        return {}["plan"]
"""


@pytest.fixture
def outside_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with policies that misbehave, as if installed; processes find it, too."""
    (tmp_path / "odd.py").write_text(OUTSIDE)
    info = tmp_path / "odd-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    points = "endless = odd:Endless\ndeadly = odd:Deadly\nfaulty = odd:Faulty\n"
    (info / "entry_points.txt").write_text(f"[penstock.policies]\n{points}")
    monkeypatch.syspath_prepend(tmp_path)


def test_every_point_is_what_the_policy_makes_of_it_by_itself() -> None:
    found = compare(CASES, BUDGETS, ["keep", "belady"], processes=2)
    asked = [(c, b, n) for c in CASES for b in BUDGETS for n in ("keep", "belady")]
    assert len(found) == len(asked)
    for entry, (case, budget, name) in zip(found, asked, strict=True):
        nbytes = budget.of(STEP.peak) if isinstance(budget, Share) else budget
        assert (entry.step, entry.on, entry.policy) == (case.step, case.on, name)
        assert (entry.budget, entry.plain) == (nbytes, STEP.seconds)
        if name == "belady" and case.machine is BARE:
            assert "needs a tier" in entry.problem and not entry.fits
            continue
        alone = policies.ask(policies.configured(name), Problem(STEP, case.machine, nbytes))
        assert (entry.peak, entry.seconds) == (alone.timeline.peak, alone.timeline.seconds)
        assert entry.shortfall == alone.shortfall
        assert entry.fits == (not alone.shortfall)
        assert entry.moved == sum(alone.timeline.traffic.values())


def test_what_was_found_is_not_done_again(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    first = compare(CASES[:1], BUDGETS, ["keep"], results=results, processes=1)
    assert list(kept(results).values()) == first
    # A time that nothing would predict, to see where the answer comes from.
    line = json.loads(results.read_text().splitlines()[0])
    marked = {**line, "seconds": 12345.0}
    results.write_text(json.dumps(marked) + "\n")
    again = compare(CASES[:1], BUDGETS, ["keep", "chen"], results=results, processes=1)
    keys = {entry.key for entry in first}
    assert [entry.seconds for entry in again if entry.key == line["key"]] == [12345.0]
    assert keys < {entry.key for entry in again}
    assert len(results.read_text().splitlines()) == len(again) == 4
    told: list[Entry] = []
    assert compare(CASES[:1], BUDGETS, ["keep", "chen"], results=results, told=told.append) == again
    assert told == again


def test_another_trace_machine_budget_or_policy_is_another_point_and_another_name_is_not() -> None:
    other = parse("f a x:I4M -> h:A8M 5ms")
    cases = [*CASES, Case("other", "slow", other, SLOW)]
    renamed = Case("my step", "my machine", STEP.relabelled("mine"), SLOW)
    found = compare([*cases, renamed], [1 << 30, 1 << 29], ["keep", "chen"], processes=1)
    keys = [entry.key for entry in found]
    assert len(set(keys)) == 12  # 3 cases x 2 budgets x 2 policies
    assert keys[12:] == keys[:4]
    assert {(entry.step, entry.on) for entry in found[12:]} == {("my step", "my machine")}


def test_what_is_known_is_found_under_any_name_and_what_is_not_is_left_out() -> None:
    first = compare(CASES[:1], BUDGETS, ["keep"], processes=1)
    known = {entry.key: entry for entry in first}
    renamed = Case("my step", "my machine", STEP.relabelled("mine"), CASES[0].machine)
    found = remembered([renamed], BUDGETS, ["keep", "chen"], known)
    assert [entry.key for entry in found] == [entry.key for entry in first]
    assert {(entry.step, entry.on) for entry in found} == {("my step", "my machine")}


def test_a_half_written_last_line_is_cut_off_and_done_again(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    found = compare(CASES[:1], BUDGETS, ["keep"], results=results, processes=1)
    first, second, _ = results.read_bytes().split(b"\n")
    for left in (1, 9, 40, -1):
        results.write_bytes(first + b"\n" + second[:left])
        assert list(kept(results).values()) == found[:1]
        assert results.read_bytes() == first + b"\n"
    results.write_bytes(first + b"\n" + second[:40])
    again = compare(CASES[:1], BUDGETS, ["keep"], results=results, processes=1)
    assert [(e.key, e.seconds) for e in again] == [(e.key, e.seconds) for e in found]
    assert len(results.read_bytes().splitlines()) == 2


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"a file of mine", 1),
        (b"{}\n", 1),
        (b"\n", 1),
        (b'{"key": "k", "other": 1}\n', 1),
        (b"\xff\xfe\n", 1),
    ],
)
def test_a_file_that_holds_something_else_is_refused_and_left_as_it_is(
    tmp_path: Path, content: bytes, line: int
) -> None:
    results = tmp_path / "results.jsonl"
    results.write_bytes(content)
    with pytest.raises(UsageError, match=f"line {line}: no result of penstock compare"):
        compare(CASES[:1], BUDGETS, ["keep"], results=results, processes=1)
    assert results.read_bytes() == content


def test_a_damaged_line_between_whole_ones_is_named(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    compare(CASES[:1], BUDGETS, ["keep"], results=results, processes=1)
    first, second, _ = results.read_bytes().split(b"\n")
    text = b'"budget": "many"'
    damaged = first.replace(b'"budget": ' + str(json.loads(first)["budget"]).encode(), text)
    assert text in damaged
    results.write_bytes(b"\n".join([second, damaged, second, b""]))
    with pytest.raises(UsageError, match="line 2: no result"):
        kept(results)


@pytest.mark.usefixtures("outside_package")
def test_a_policy_that_dies_or_has_a_bug_stops_nobody_else() -> None:
    names = ["deadly", "faulty", "keep"]
    deadly, faulty, keep = compare(CASES[:1], [1 << 30], names, processes=1)
    assert deadly.problem == "its process ended with code 3"
    assert faulty.problem == "a bug: KeyError: 'plan'"
    assert keep.fits


@pytest.mark.usefixtures("outside_package")
def test_a_policy_that_hangs_is_given_up_and_tried_again_only_for_longer(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    case, budget = CASES[:1], [1 << 30]
    (hung,) = compare(case, budget, ["endless"], results=results, limit=0.5)
    assert (hung.problem, hung.limit) == ("planning was given up after 0.5 s", 0.5)
    told: list[Entry] = []
    compare(case, budget, ["endless"], results=results, limit=0.25, told=told.append)
    assert told == [hung]
    both = compare(case, budget, ["endless", "keep"], results=results, processes=1, limit=8)
    assert both[0].limit == 8
    assert both[1].fits
    assert kept(results)[hung.key] == both[0]


@pytest.mark.usefixtures("outside_package")
def test_what_is_not_found_within_the_time_for_all_says_so_and_is_not_kept(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    told: list[Entry] = []
    asked = (CASES[:1], [1 << 30], ["keep", "endless", "chen"])
    found = compare(*asked, results=results, processes=1, within=2, told=told.append)
    keep, endless, chen = found
    assert keep.fits
    assert endless.problem == chen.problem == "not found within 2 s"
    assert told == found
    assert list(kept(results).values()) == [keep]


def test_a_point_says_what_was_asked_what_was_decided_and_what_the_step_takes_without() -> None:
    share, nbytes = compare(CASES[:1], BUDGETS, ["chen"], processes=1)
    assert (share.asked, nbytes.asked) == ("90%", "")
    assert share.at == ("step", "slow", "90%") and nbytes.at == ("step", "slow", str(1 << 30))
    assert share.full == nbytes.full == STEP.peak + STEP.slack
    plan = policies.ask(policies.configured("chen"), Problem(STEP, SLOW, share.budget)).plan
    assert (share.swaps, share.recomputes) == (len(plan.swaps), len(plan.recomputes)) != (0, 0)


def test_what_a_plan_would_fit_in_is_what_it_lacks_on_the_device() -> None:
    small = replace(SLOW, tiers=(replace(SLOW.tiers[0], capacity=1 << 20),))
    case = [Case("step", "small", STEP, small)]
    (lacking,) = compare(case, [Share(0.5)], ["swap-all"], processes=1)
    found = policies.ask(
        policies.configured("swap-all"), Problem(STEP, small, int(0.5 * lacking.full))
    )
    assert lacking.below == found.overfull > 0
    assert lacking.shortfall == found.missing
    assert lacking.least == lacking.budget + found.shortfall


def test_a_point_says_whether_a_time_limit_ended_the_search() -> None:
    names = ["keep", "home:time_limit=0", "home:time_limit=60"]
    keep, hasty, home = compare(CASES[:1], [Share(0.7)], names, processes=1)
    assert (keep.cut_short, hasty.cut_short, home.cut_short) == (False, True, False)


def test_a_policy_that_does_not_exist_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="no policy is called 'beladi'"):
        compare(CASES, BUDGETS, ["keep", "beladi"])


def test_keep_all_is_measured_by_the_step_that_keeps_everything() -> None:
    (entry,) = compare(CASES[:1], [Share(1.0)], ["keep"], processes=1)
    plain = outcome(Problem(STEP, SLOW, STEP.peak), Plan()).timeline.seconds
    assert (entry.plain, entry.slowdown) == (plain, 1.0)


def entry(policy: str, step: str, seconds: float, **facts: object) -> Entry:
    return Entry("k", step, "m", 1, policy, 2.0, seconds=seconds, **facts)  # type: ignore[arg-type]


def test_standings_are_means_over_what_fits_and_wins_over_all() -> None:
    found = standings(
        [
            entry("a", "one", 3.0, took=0.5),
            entry("a", "two", 5.0, took=0.25),
            entry("b", "one", 2.0),
            entry("b", "two", 9.0, shortfall=7),
            entry("c", "one", 3.0),
            entry("c", "two", 4.0),
            entry("d", "one", 0.0, problem="needs a tier"),
            entry("d", "two", 1.0, shortfall=1),
        ]
    )
    assert [s.policy for s in found] == ["c", "a", "b", "d"]
    c, a, b, d = found
    assert (a.problems, a.fitted, a.slowdown, a.wins, a.took) == (2, 2, 2.0, 0, 0.5)  # 1.5, 2.5
    assert a.behind == (3 / 2 + 5 / 4) / 2
    assert (c.slowdown, c.behind, c.wins) == (1.75, (3 / 2 + 1) / 2, 1)
    assert (b.fitted, b.slowdown, b.wins, b.failed) == (1, 1.0, 1, 0)
    assert (d.fitted, d.failed, d.wins) == (0, 1, 0) and math.isnan(d.slowdown)


def test_who_cannot_be_told_from_the_first_is_level_with_it() -> None:
    found = standings(
        [
            entry("a", "one", 3.0),
            entry("b", "one", 3.001),
            entry("c", "one", 3.01),
            entry("d", "one", 0, shortfall=1),
        ]
    )
    assert [standing.policy for standing in level(found)] == ["a", "b"]
    assert level(found[3:]) == []


def test_runs_under_one_share_are_one_problem_though_their_budgets_differ() -> None:
    found = standings(
        [
            entry("a", "one", 3.0, asked="60%"),
            replace(entry("b", "one", 4.0, asked="60%"), budget=2),
        ]
    )
    assert [(s.policy, s.wins, s.behind) for s in found] == [("a", 1, 1.0), ("b", 0, 4 / 3)]


def test_equal_times_win_together() -> None:
    found = standings([entry("a", "one", 3.0), entry("b", "one", 3.0 + 1e-12)])
    assert [s.wins for s in found] == [1, 1]
