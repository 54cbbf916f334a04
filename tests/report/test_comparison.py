"""A comparison says in its data, in words and on its page what its points say."""

import json
import re
from dataclasses import replace

import pytest

from comparisons import MIB, SMALL, entry, grid
from pages import asked_for, carried, seen
from penstock.leaderboard import standings
from penstock.report.comparison import comparison_of, headline, state, verdicts
from penstock.report.comparison_page import comparison_page
from penstock.report.palette import HEAT, HEAT_BOUNDS, shade


def at(body, policy, asked, name, case=0):
    """A figure of one point."""
    (column,) = (
        n for n, it in enumerate(body["columns"]) if (it["asked"], it["case"]) == (asked, case)
    )
    row = body["policies"].index(policy)
    return body["points"][name][row * len(body["columns"]) + column]


# -- data ----------------------------------------------------------------------------------------


def test_each_point_stands_where_its_policy_and_its_column_cross():
    for entries in (SMALL, SMALL[::-1], grid(("a", "keep", "b"), 3, 2, 2)):
        body = comparison_of(entries)
        cases = [(case["step"], case["on"]) for case in body["cases"]]
        for one in entries:
            case = cases.index((one.step, one.on))
            for name in ("seconds", "peak", "took", "swaps", "moved"):
                found = at(body, one.policy, one.asked, name, case)
                assert found == pytest.approx(getattr(one, name), rel=1e-5), name
            assert at(body, one.policy, one.asked, "state", case) == state(one)
            number = at(body, one.policy, one.asked, "problem", case)
            assert body["problems"][number] == one.problem


def test_a_point_has_one_of_four_states():
    body = comparison_of(SMALL)
    states = {p: at(body, p, "80%", "state") for p in ("swap", "keep", "slow", "picky")}
    assert states == {"swap": "fits", "keep": "short", "slow": "late", "picky": "none"}


def test_what_does_not_fit_says_with_what_it_would():
    body = comparison_of(SMALL)
    assert at(body, "keep", "80%", "least") == 1000 * MIB
    # What the tiers lack, no budget mends.
    assert at(body, "slow", "40%", "least") == 400 * MIB


def test_a_search_that_was_cut_short_has_proven_nothing():
    body = comparison_of(SMALL)
    assert at(body, "solver", "80%", "cut") == 1
    assert at(body, "solver", "40%", "cut") == 0


def test_policies_stand_as_on_the_leaderboard_and_columns_as_they_were_asked():
    body = comparison_of(SMALL)
    assert body["policies"] == [standing.policy for standing in standings(SMALL)]
    assert body["policies"][:3] == ["solver", "remake", "swap"]  # 1.26, 1.35 and 2.07
    assert [column["asked"] for column in body["columns"]] == ["80%", "40%"]
    assert [column["budget"] for column in body["columns"]] == [800 * MIB, 400 * MIB]


def test_the_front_is_what_nothing_beats_in_peak_and_time():
    (case,) = comparison_of(SMALL)["cases"]
    assert case["front"] == [[390 * MIB, 15.0], [800 * MIB, 10.2]]


def test_data_survive_json_also_where_nothing_has_a_time():
    entries = [replace(one, plain=0.0) for one in SMALL]
    body = comparison_of(entries)
    assert json.loads(json.dumps(body, allow_nan=False)) == body
    assert "?" in seen(comparison_page(body))


def test_runs_under_one_share_are_one_column_though_their_budgets_differ():
    entries = [
        entry("swap", 0.6, 11.0, on="run here", budget=600 * MIB, foretold=10.5, foretold_peak=MIB),
        entry("chen", 0.6, 12.0, on="run here", budget=601 * MIB, foretold=12.5, foretold_peak=MIB),
        entry("poet", 0.6, on="run here", budget=0, problem="its process ended with code 3"),
    ]
    body = comparison_of(entries, measured=True)
    (column,) = body["columns"]
    assert (column["budget"], column["best"]) == (601 * MIB, ["swap"])
    assert at(body, "swap", "60%", "foretold") == 10.5
    text = seen(comparison_page(body))
    assert "Predicted against measured" in text and "11 s 10.5 s -4.5 %" in text


# -- who is best ---------------------------------------------------------------------------------


def test_one_budget_is_answered_with_the_best_and_the_next():
    assert headline(SMALL[:6]) == [
        "solver is best at 80% (800 MiB): 10.2 s a step, 2% slower than without a budget.",
        "Next comes swap with 10.4 s, 2.0% more.",
    ]


def test_who_cannot_be_told_from_the_best_is_named_with_it():
    assert headline(SMALL[6:])[0] == (
        "remake and solver are best at 40% (400 MiB): 15 s a step, 50% slower than without a budget."
    )
    assert headline(SMALL[6:])[1] == "Next comes swap with 31 s, 2.1 times as much."
    same = [entry(name, 0.5, 10.0) for name in "abcd"]
    assert headline(same)[0].startswith(
        "a, b and 2 others are best at 50% (500 MiB): 10 s a step, as"
    )


def test_several_problems_are_answered_by_fits_and_means_and_wins():
    (said,) = headline(SMALL)
    assert said == (
        "solver is best over all: it fits all 2 problems, where its steps are 26% slower than without "
        "a budget on average."
    )
    entries = [
        *(entry("steady", share, 20.0) for share in (0.8, 0.6, 0.4)),
        *(entry("quick", share, 11.0) for share in (0.8, 0.6)),
        entry("quick", 0.4, 11.0, shortfall=MIB),
        *(entry(name, 0.2, 11.0, shortfall=MIB) for name in ("steady", "quick")),
    ]
    said, *rest = headline(entries)
    assert said == (
        "steady is best over all: it fits 3 of 4 problems, where its steps are 2.0 times as slow as "
        "without a budget on average."
    )
    assert rest == [
        "Fastest most often is quick: in 2, steady in 1.",
        "No policy fits one problem.",
    ]


def test_where_nobody_fits_the_nearest_is_named():
    entries = [one for one in SMALL if one.policy in ("keep", "picky") and one.asked == "80%"]
    assert headline(entries) == [
        "None of 2 policies fits 80% (800 MiB). The nearest is keep, with 1,000 MiB."
    ]
    assert headline(entries[:1]) == [
        "keep does not fit 80% (800 MiB). The nearest is keep, with 1,000 MiB."
    ]
    (verdict,) = verdicts(entries)
    assert verdict.best is None and verdict.nearest == entries[0]
    assert headline([*entries, entry("keep", 0.4, 10.0, shortfall=MIB)]) == [
        "None of 2 policies fits any of the 2 problems."
    ]
    assert headline([]) == ["Nothing was compared."]


def test_a_best_that_cannot_run_is_followed_by_the_best_that_can():
    entries = [*SMALL, *(entry("placer", share, 10.0, places=3) for share in (0.8, 0.4))]
    body = comparison_of(entries)
    assert body["placing"] == ["placer"]
    assert [verdict["runs"] for verdict in body["verdicts"]] == ["solver", "remake"]
    best, able = headline(entries)[:2]
    assert best.startswith("placer is best over all")
    assert "simulated, not run. Of those that can run, solver is best over all: it fits" in able
    read = seen(comparison_page(body))
    assert "simulated only; of those that run: solver" in read
    assert "placer simulated only 2 of 2" in read
    assert comparison_of(SMALL)["placing"] == []


def test_each_budget_has_its_verdict_over_all_steps_and_machines():
    first, second = verdicts(SMALL)
    assert (first.budget, first.best.policy, first.next.policy) == ("80%", "solver", "swap")
    assert [standing.policy for standing in second.level] == ["remake", "solver"]
    assert second.next.policy == "swap"


def test_budgets_of_one_name_are_not_mixed():
    entries = [
        replace(entry("a", 0.5, 12.0), asked="", budget=nbytes)
        for nbytes in (500 * MIB, 500 * MIB + 1)
    ]
    assert [verdict.ranked[0].problems for verdict in verdicts(entries)] == [1, 1]
    assert {verdict.budget for verdict in verdicts(entries)} == {"500 MiB"}


# -- the page ------------------------------------------------------------------------------------


def test_the_page_begins_with_the_answer_and_needs_nothing_else():
    text = comparison_page(comparison_of(SMALL))
    assert asked_for(text) == []
    read = seen(text)
    assert read.index("solver is best over all") < read.index("best at 80% (800 MiB) solver 10.2 s")
    assert "next: swap 1.04x" in read
    assert (
        "best at 40% (400 MiB) remake 15 s a step, 1.50x the plain step level with it: solver"
        in read
    )


def test_the_leaderboard_says_what_the_terminal_says():
    read = seen(comparison_page(comparison_of(SMALL)))
    board = read.split("Leaderboard")[1]
    assert "solver 2 of 2 1.260x 1.000x 2 0 30.5 s" in board
    assert "picky 0 of 2 - - 0 2 250 ms" in board


def test_reasons_for_which_there_is_no_plan_are_told_once_with_whose_they_are():
    read = seen(comparison_page(comparison_of(SMALL)))
    reasons = read.split("Why there is no plan")[1]
    assert "policy Picky needs a tier below the device picky (2 of 2)" in reasons
    assert "planning was given up after 5 s slow (1 of 2)" in reasons


def test_several_cases_get_a_table_of_who_is_best_where_and_can_be_chosen():
    body = comparison_of(grid(("keep", "chen", "g10"), 2, 2, 2))
    text = comparison_page(body)
    assert "Best for each step and budget" in seen(text)
    assert re.findall(r"<option value='(\d)'>", text) == ["0", "1", "2", "3"]
    assert re.findall(r"data-of='(\w+)'", text) == ["step", "on"]
    assert "data-of" not in comparison_page(comparison_of(SMALL))


def test_the_best_of_each_case_stands_in_its_row():
    mine = [entry("a", 0.5, 11.0), entry("b", 0.5, 12.0)]
    yours = [replace(one, step="other", seconds=23.0 - one.seconds) for one in mine]
    text = comparison_page(comparison_of([*mine, *yours]))
    rows = re.findall(r"<tr><td>(step|other)</td>(.*?)</tr>", text)
    assert [(step, seen(row)) for step, row in rows] == [
        ("step", " a 1.10x "),
        ("other", " b 1.10x "),
    ]


def test_names_cannot_end_the_script_or_a_tag():
    evil = "</script><script>alert(1)</script>'\""
    entries = [
        entry(evil, 0.5, 11.0, step=evil, on=evil),
        entry("b", 0.5, step="other", on=evil, problem=evil),
    ]
    text = comparison_page(comparison_of(entries))
    assert evil not in text and evil[:40] not in text
    assert carried(text)["comparison"]["problems"] == ["", evil]


def test_nothing_compared_is_still_a_page():
    assert "Nothing was compared." in seen(comparison_page(comparison_of([])))


def test_seven_thousand_points_stay_light():
    entries = grid()
    assert len(entries) == 7_200
    assert len(comparison_page(comparison_of(entries)).encode()) < 2_000_000


def test_a_slowdown_has_the_colour_of_its_class():
    assert [shade(bound - 1e-9) for bound in HEAT_BOUNDS] == list(range(len(HEAT) - 1))
    assert [shade(bound) for bound in HEAT_BOUNDS] == list(range(1, len(HEAT)))
    assert carried(comparison_page(comparison_of(SMALL)))["heat"] == list(HEAT_BOUNDS)
