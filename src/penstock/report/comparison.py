"""A comparison of policies as plain data, and in words: which method is best, and at which budget."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

from penstock.errors import mib
from penstock.leaderboard import Entry, Standing, level, standings
from penstock.report.document import Json
from penstock.report.words import duration
from penstock.search import front

__all__ = ["Verdict", "comparison_of", "headline", "state", "verdicts"]

_FIGURES = (
    *("seconds", "peak", "least", "took", "stalled", "again", "moved"),
    *("swaps", "recomputes", "places"),
)
"""Fields of an entry that every point shows."""
_FORETOLD = ("foretold", "foretold_peak")

State: TypeAlias = Literal["fits", "short", "late", "none", ""]
"""It fits; its plan does not fit; it was given up; it made no plan; it was not asked."""


def comparison_of(entries: Sequence[Entry], *, measured: bool = False) -> Json:
    """All that a page or a picture shows of a comparison.

    `points` has, for each field, a figure for each policy and column: that of policy `p` in column `c`
    is number `p * len(columns) + c`. Policies are in the order of the leaderboard, columns in the order
    in which they were asked, case by case. `problem` is a place in `problems`.
    """
    ranked = standings(entries)
    by_case: defaultdict[tuple[str, str], list[Entry]] = defaultdict(list)
    by_column: defaultdict[tuple[str, str, str], dict[str, Entry]] = defaultdict(dict)
    for entry in entries:
        by_case[entry.step, entry.on].append(entry)
        by_column[entry.at][entry.policy] = entry
    cases = list(by_case)
    columns = sorted(by_column, key=lambda at: cases.index(at[:2]))
    names = [standing.policy for standing in ranked]
    found = [by_column[at].get(name) for name in names for at in columns]
    problems = ["", *dict.fromkeys(entry.problem for entry in entries if entry.problem)]
    number = {problem: n for n, problem in enumerate(problems)}
    return {
        "penstock": "comparison",
        "version": 1,
        "measured": measured,
        "headline": headline(entries),
        "verdicts": [_told(verdict) for verdict in verdicts(entries)],
        "standings": [_without_nan(asdict(standing)) for standing in ranked],
        "policies": names,
        "placing": sorted(_placing(entries)),
        "cases": [
            {
                "step": step,
                "on": on,
                "plain": _digits(max(entry.plain for entry in own)),
                "full": max(entry.full for entry in own),
                "front": [[p.peak, _digits(p.seconds)] for p in front(own, "peak")],
            }
            for (step, on), own in by_case.items()
        ],
        "columns": [_column(cases.index(at[:2]), by_column[at]) for at in columns],
        "points": {
            "state": ["" if entry is None else state(entry) for entry in found],
            **{
                name: [_figure(entry, name) for entry in found]
                for name in (*_FIGURES, *(_FORETOLD if measured else ()))
            },
            "cut": [int(entry is not None and entry.cut_short) for entry in found],
            "problem": [0 if entry is None else number[entry.problem] for entry in found],
        },
        "problems": problems,
    }


def state(entry: Entry) -> State:
    """What came of it, in a word."""
    if entry.limit:
        return "late"
    if entry.problem:
        return "none"
    return "short" if entry.shortfall else "fits"


def _column(case: int, asked: Mapping[str, Entry]) -> Json:
    """One step on one machine at one budget: who is best there."""
    entries = list(asked.values())
    (verdict,) = verdicts(entries)
    return {"case": case, "budget": max(e.budget for e in entries), **_told(verdict)}


def _figure(entry: Entry | None, name: str) -> float:
    value = 0 if entry is None else getattr(entry, name)
    return value if isinstance(value, int) else _digits(value)


def _digits(value: float) -> float:
    """With as many digits as anyone will read."""
    return float(f"{value:.6g}")


def _without_nan(body: Json) -> Json:
    """JSON has no NaN."""
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in body.items()
    }


# -- who is best ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """Who is best at one budget, over all steps and machines for which it was asked."""

    budget: str  # as it was asked for
    ranked: tuple[Standing, ...]
    placing: frozenset[str]  # policies that are simulated, not run
    nearest: Entry | None = None  # which plan would fit with the least, if none fits

    @property
    def best(self) -> Standing | None:
        """None: nobody fits anything."""
        return self.ranked[0] if self.ranked[0].fitted else None

    @property
    def runs(self) -> Standing | None:
        """The best of those that can run, if the best cannot."""
        if self.best is None or self.best.policy not in self.placing:
            return None
        able = (it for it in self.ranked if it.fitted and it.policy not in self.placing)
        return next(able, None)

    @property
    def level(self) -> tuple[Standing, ...]:
        """The best, and who cannot be told from it."""
        return tuple(level(self.ranked))

    @property
    def next(self) -> Standing | None:
        """The best of those that are worse."""
        rest = self.ranked[len(self.level) :]
        return rest[0] if rest and rest[0].fitted else None


def verdicts(entries: Sequence[Entry]) -> list[Verdict]:
    """One for each budget, in the order in which they were asked."""
    by_budget: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_budget[entry.at[2]].append(entry)
    return [
        Verdict(
            own[0].asked or mib(own[0].budget),
            tuple(standings(own)),
            frozenset(_placing(own)),
            _nearest(own),
        )
        for own in by_budget.values()
    ]


def _placing(entries: Sequence[Entry]) -> set[str]:
    """Policies that let ops use a slow tier directly, which can be simulated and not run."""
    return {entry.policy for entry in entries if entry.places}


def _nearest(entries: Sequence[Entry]) -> Entry | None:
    """Of one problem that nobody fits, the plan that lacks least on the device."""
    if len({entry.at for entry in entries}) > 1 or any(entry.fits for entry in entries):
        return None
    lacking = [entry for entry in entries if not entry.problem and entry.least > entry.budget]
    return min(lacking, key=lambda entry: entry.least, default=None)


def _told(verdict: Verdict) -> Json:
    best, following, nearest = verdict.best, verdict.next, verdict.nearest
    runs = verdict.runs
    return {
        "asked": verdict.budget,
        "best": [standing.policy for standing in verdict.level],
        "slowdown": None if best is None else _figure_or_none(best.slowdown),
        "fitted": 0 if best is None else best.fitted,
        "problems": verdict.ranked[0].problems,
        "runs": None if runs is None else runs.policy,
        "next": None if following is None else following.policy,
        "next_slowdown": None if following is None else _figure_or_none(following.slowdown),
        "next_fitted": 0 if following is None else following.fitted,
        "nearest": None if nearest is None else [nearest.policy, nearest.least],
    }


def _figure_or_none(value: float) -> float | None:
    return None if math.isnan(value) else _digits(value)


# -- in words ------------------------------------------------------------------------------------


def headline(entries: Sequence[Entry]) -> list[str]:
    """What somebody who must choose wants to know first, in a few sentences: the answer, then more."""
    problems = {entry.at for entry in entries}
    if not problems:
        return ["Nothing was compared."]
    ranked = standings(entries)
    best = ranked[0]
    if not best.fitted:
        return [_none_fits(entries, len(problems))]
    if len(problems) == 1:
        own = {entry.policy: entry for entry in entries}
        said = _of_one(verdicts(entries)[0], own)
    else:
        said = _of_many(ranked, entries, len(problems))
    placing = _placing(entries)
    able = [entry for entry in entries if entry.policy not in placing]
    if best.policy in placing and any(entry.fits for entry in able):
        said.insert(
            1,
            "It lets ops use a slow tier directly, which can be simulated, not run. "
            f"Of those that can run, {headline(able)[0]}",
        )
    return said


def _of_one(verdict: Verdict, entries: Mapping[str, Entry]) -> list[str]:
    best, following = verdict.ranked[0], verdict.next
    entry = entries[best.policy]
    names = [standing.policy for standing in verdict.level]
    who = f"{_several(names)} {_is(names)} best at {_budget(entry)}"
    said = [f"{who}: {duration(entry.seconds)} a step, {_cost(entry.slowdown)}."]
    if following is not None:
        other = entries[following.policy]
        said.append(
            f"Next comes {other.policy} with {duration(other.seconds)}"
            f"{_more(other.seconds, entry.seconds)}."
        )
    return said


def _of_many(ranked: Sequence[Standing], entries: Sequence[Entry], count: int) -> list[str]:
    best = ranked[0]
    names = [standing.policy for standing in level(ranked)]
    share = f"all {count}" if best.fitted == count else f"{best.fitted} of {best.problems}"
    fits = f"{share} problems"
    unsolved = count - len({entry.at for entry in entries if entry.fits})
    is_one = len(names) == 1
    if best.fitted == count - unsolved:  # all that anyone fits
        who = f"{_several(names)} {_is(names)} best over all: {'it fits' if is_one else 'they fit'}"
    else:
        who = f"{_several(names)} {'fits' if is_one else 'fit'} most:"
    mean = "" if best.slowdown < _NO_COST else " on average"
    their = "its" if is_one else "their"
    said = [f"{who} {fits}, where {their} steps are {_cost(best.slowdown)}{mean}."]
    often = max(ranked, key=lambda standing: standing.wins)
    if often.policy not in names and often.wins > best.wins:
        said.append(
            f"Fastest most often is {often.policy}: in {often.wins}, {best.policy} in {best.wins}."
        )
    if unsolved:
        said.append(f"No policy fits {'one problem' if unsolved == 1 else f'{unsolved} problems'}.")
    return said


def _none_fits(entries: Sequence[Entry], problems: int) -> str:
    policies = len({entry.policy for entry in entries})
    who = f"None of {policies} policies" if policies > 1 else entries[0].policy
    verb = "fits" if policies > 1 else "does not fit"
    if problems > 1:
        return f"{who} {verb} any of the {problems} problems."
    near = _nearest(entries)
    least = f" The nearest is {near.policy}, with {mib(near.least)}." if near else ""
    return f"{who} {verb} {_budget(entries[0])}.{least}"


_NO_COST = 1.005
"""A slowdown up to here is said to be none."""


def _cost(slowdown: float) -> str:
    """`4% slower than without a budget`."""
    if math.isnan(slowdown):
        return "with no plain time to compare it with"
    if slowdown < _NO_COST:
        return "as fast as without a budget"
    if slowdown < 2:
        return f"{slowdown - 1:.0%} slower than without a budget"
    return f"{slowdown:.1f} times as slow as without a budget"


def _more(seconds: float, than: float) -> str:
    if not than:
        return ""
    ratio = seconds / than
    return f", {ratio - 1:.1%} more" if ratio < 2 else f", {ratio:.1f} times as much"


def _budget(entry: Entry) -> str:
    if not entry.asked:
        return mib(entry.budget)
    return f"{entry.asked} ({mib(entry.budget)})" if entry.budget else entry.asked


def _several(names: Sequence[str]) -> str:
    """`auto`, `auto and g10`, `auto, g10 and 3 others`."""
    if len(names) <= 2:
        return " and ".join(names)
    rest = len(names) - 2
    return f"{names[0]}, {names[1]} and {f'{rest} others' if rest > 1 else names[2]}"


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
