"""What `benchmarks/grid.py` makes of points: which are answers, and which are findings."""

from dataclasses import replace
from pathlib import Path

import pytest

from penstock.leaderboard import Entry

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"

FITS = Entry("k", "step small", "here", 100, "one", plain=1.0, peak=90, seconds=2.0, took=3.0)
LACKS = replace(FITS, budget=50, peak=70, shortfall=20)


@pytest.fixture
def summary(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import grid

    return grid.summary


def findings(summed):
    return [one["finding"] for one in summed["findings"]]


def test_what_fits_and_what_says_how_much_it_lacks_are_answers(summary):
    summed = summary([FITS, LACKS], [])
    (row,) = summed["policies"]
    assert (row["points"], row["fit"], row["infeasible"], row["best"]) == (2, 1, 1, 1)
    assert row["longest"] == 3.0
    assert findings(summed) == []


@pytest.mark.parametrize(
    ("entry", "finding"),
    [
        (replace(FITS, problem="a bug: KeyError: 3"), "crashed"),
        (replace(FITS, problem="planning was given up after 9 s", limit=9.0), "given_up"),
        (replace(FITS, peak=101), "over"),
        (replace(FITS, took=61.0), "slow"),
    ],
)
def test_all_else_is_a_finding(summary, entry, finding):
    summed = summary([entry], [])
    assert findings(summed) == [finding]
    assert summed["policies"][0][finding] == 1


def test_a_budget_said_to_be_enough_must_be(summary):
    enough = replace(FITS, budget=70, peak=70)
    assert findings(summary([LACKS], [enough])) == []
    assert summary([LACKS], [enough])["policies"][0]["asked_again"] == 1
    assert findings(summary([LACKS], [replace(enough, shortfall=5)])) == ["unmet"]
    assert summary([LACKS], [])["policies"][0]["asked_again"] == 0


def test_who_makes_do_with_less_than_it_says_it_needs_is_found(summary):
    assert findings(summary([LACKS, replace(FITS, budget=60, peak=60)], [])) == ["overstated"]
    assert findings(summary([LACKS, replace(FITS, budget=70, peak=70)], [])) == []
