"""Every policy on every step of the zoo, on three machines, at four budgets: does each have an answer?

    make bench-grid
    python benchmarks/grid.py [--sizes small] [--only gpt2 lstm] [--policies vdnn dtr] [--known]

An answer is a valid plan that fits, or the bytes that it lacks: with so many more the policy must fit,
which a sample of them has to show. All else is a finding: an error, a peak above the budget, a minute
of planning. Solvers and searches are given a few seconds; no other policy is given any limit.

Points are those of `penstock compare`. They are kept in a folder, so that a run that was cut off goes on
where it was, and portions add up: the summary is of all points in it. Who changes a policy deletes its
lines there. Steps are recorded on fake tensors; what one does that depends on its data is run.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from _where import where, write
from penstock import policies
from penstock.errors import PenstockError, TraceError
from penstock.ir.store import load_trace, save
from penstock.ir.trace import Trace
from penstock.leaderboard import Case, Entry, compare, kept, remembered, standings
from penstock.machines import find
from penstock.simulate.roofline import priced
from penstock.sizes import Share
from penstock.source import step_and_machine

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "out" / "grid"
RESULTS = Path(__file__).with_name("results") / "grid.json"

SIZES = ("small", "full")
MACHINES = (
    "a100-40+pcie4+ssd:980pro",  # a card with host memory and a drive behind it
    "gh200",  # a link ten times as fast
    "xeon-optane",  # a slow memory that ops use where it is
)
BUDGETS = tuple(Share(percent / 100) for percent in (80, 60, 40, 25))
"""Of what the plain step takes, slack included."""

SEARCHES = 2
"""Seconds that a solver or a search is given."""
LIMIT = 300.0
"""Seconds after which a point is given up."""
SLOW = 60.0
"""Seconds of planning that are too many for a policy without a time limit."""
SAMPLE = 20
"""One of so many that do not fit is asked again with what it lacked."""


def asked(names: Iterable[str]) -> list[str]:
    """Policies as they are asked for: those that could go on for long with their time."""
    return [policies.limited(name, SEARCHES) for name in names]


# -- steps ----------------------------------------------------------------------------------------


def case_of(folder: Path, name: str, size: str, on: str) -> Case:
    """A workload of the zoo on a machine. Recorded once: a point's key is made of the recording."""
    file = file_of(folder, name, size, on)
    if not file.exists():
        save(file, recorded(name, size, on))
    return Case(f"{name} {size}", on, load_trace(file)[0], find(on))


def file_of(folder: Path, name: str, size: str, on: str) -> Path:
    return folder / f"{name}.{size}.{on}.trace".replace(":", "-")


def recorded(name: str, size: str, on: str) -> Trace:
    try:
        return step_and_machine(f"zoo:{name}?size={size}", on)[0]
    except TraceError:
        return priced(ran(name, size), find(on))


def ran(name: str, size: str) -> Trace:
    """The step as it ran here, without the times."""
    import _steps  # torch, which the processes that plan do without
    from penstock.zoo.workloads import workload

    trace, _ = _steps.recorded(workload(name, size).step, tier="none")
    ops = (replace(op, seconds=0.0, host_seconds=0.0, workspace=0) for op in trace.ops)
    return replace(trace, ops=tuple(ops), slack=0)


# -- points ---------------------------------------------------------------------------------------


def found_on(case: Case, folder: Path, names: Sequence[str], processes: int) -> list[Entry]:
    """All points of a case; of what lacks bytes, a sample is asked again with these."""

    def points(file: str, budgets: Sequence[int | Share], names: Sequence[str]) -> list[Entry]:
        results = folder / file
        return compare([case], budgets, names, results=results, processes=processes, limit=LIMIT)

    found = points("points.jsonl", BUDGETS, names)
    for name, budgets in asked_again(found).items():
        points("again.jsonl", budgets, [name])
    return found


def asked_again(found: Iterable[Entry]) -> dict[str, list[int]]:
    """With which budgets each policy is asked again."""
    again: dict[str, set[int]] = defaultdict(set)
    for entry in found:
        if lacks(entry) and int(entry.key, 16) % SAMPLE == 0:
            again[entry.policy].add(least(entry))
    return {name: sorted(budgets) for name, budgets in again.items()}


def known(folder: Path) -> Iterator[tuple[str, Case, list[Entry], list[Entry]]]:
    """Of each recorded step its size, its points, and those of the sample that was asked again."""
    from penstock.zoo.workloads import names as workloads

    names = asked(policies.names())
    points, with_more = (kept(folder / f"{name}.jsonl") for name in ("points", "again"))
    for size, name, on in product(SIZES, workloads(), MACHINES):
        if not file_of(folder, name, size, on).exists():
            continue
        case = case_of(folder, name, size, on)
        found = remembered([case], BUDGETS, names, points)
        again = [
            entry
            for policy, budgets in asked_again(found).items()
            for entry in remembered([case], budgets, [policy], with_more)
        ]
        yield size, case, found, again


def lacks(entry: Entry) -> bool:
    """Does it say how many bytes it lacks?"""
    return not entry.problem and entry.shortfall > 0


def least(entry: Entry) -> int:
    """The budget that it says it would meet."""
    return entry.budget + entry.shortfall


# -- what is found --------------------------------------------------------------------------------


def summary(entries: Sequence[Entry], again: Sequence[Entry]) -> dict[str, Any]:
    """A row for each policy, and every finding."""
    places = {one.policy: one for one in standings(entries)}
    rows = []
    findings: list[dict[str, Any]] = []
    for name in sorted(places):
        own = [entry for entry in entries if entry.policy == name]
        wrong = {what: [e for e in own if is_it(e)] for what, is_it in WRONG.items()}
        asked_again = {(e.step, e.on, e.budget): e for e in again if e.policy == name}
        sampled = [e for e in own if lacks(e) and (e.step, e.on, least(e)) in asked_again]
        wrong["unmet"] = [e for e in sampled if not asked_again[e.step, e.on, least(e)].fits]
        wrong["overstated"] = overstated(own)
        slowest = max(own, key=lambda entry: entry.took)
        place = places[name]
        rows.append(
            {
                "policy": name,
                "points": len(own),
                "fit": place.fitted,
                "infeasible": sum(map(lacks, own)),
                "asked_again": len(sampled),
                **{what: len(those) for what, those in wrong.items()},
                "longest": slowest.took,
                "longest_at": where_of(slowest),
                "best": place.wins,
                "slowdown": None if math.isnan(place.slowdown) else place.slowdown,
                "behind": None if math.isnan(place.behind) else place.behind,
            }
        )
        findings += [{"finding": what, **asdict(e)} for what, those in wrong.items() for e in those]
    return {"policies": rows, "findings": findings}


WRONG = {
    "crashed": lambda entry: bool(entry.problem) and not entry.limit,
    "given_up": lambda entry: bool(entry.limit),
    "over": lambda entry: entry.fits and entry.peak > entry.budget,
    "slow": lambda entry: entry.took > SLOW,
}
"""What no point may be. Beside these: `unmet`, a budget said to be enough that is not; `overstated`, a
larger one than one that was met."""


def overstated(own: Sequence[Entry]) -> list[Entry]:
    """Those of a policy's points that ask for over a hundredth more than another made do with."""
    met: dict[tuple[str, str], int] = {}
    for entry in own:
        if entry.fits:
            at = entry.step, entry.on
            met[at] = min(met.get(at, entry.budget), entry.budget)
    return [e for e in own if lacks(e) and 1.01 * met.get((e.step, e.on), math.inf) < least(e)]


def where_of(entry: Entry) -> str:
    return f"{entry.step}, {entry.on}, {entry.budget:,} bytes"


def shown(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="Every policy on every step")
    heads = ("points", "fit", "infeasible", "asked_again", *WRONG, "unmet", "overstated", "best")
    for head in ("policy", *heads, "longest s"):
        table.add_column(head.replace("_", " "), justify="left" if head == "policy" else "right")
    for row in rows:
        counts = (str(row[head]) for head in heads)
        table.add_row(row["policy"], *counts, f"{row['longest']:.1f}")
    return table


def main() -> None:
    from penstock.zoo.workloads import names as workloads

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=SIZES)
    parser.add_argument("--only", nargs="*", default=workloads(), help="workloads")
    parser.add_argument("--machines", nargs="*", default=MACHINES)
    parser.add_argument("--policies", nargs="*", default=policies.names())
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--known", action="store_true", help="plan nothing; sum up what is known")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    console = Console(width=200)
    options.folder.mkdir(parents=True, exist_ok=True)
    left_out: dict[str, str] = {}
    wanted = [] if options.known else product(options.sizes, options.only, options.machines)
    for size, name, on in wanted:
        try:
            case = case_of(options.folder, name, size, on)
        except PenstockError as error:
            left_out[f"{name} {size}, {on}"] = str(error).splitlines()[0]
            continue
        found = found_on(case, options.folder, asked(options.policies), options.processes)
        fit, took = sum(entry.fits for entry in found), sum(entry.took for entry in found)
        console.print(
            f"{case.step}, {on}: {len(case.trace.ops)} ops, {len(found)} points, {fit} fit, "
            f"{sum(map(lacks, found))} lack room, {took:.0f} s of planning",
            *(f"\n  {e.policy} {e.budget:,}: {e.problem}" for e in found if e.problem),
        )
    each = len(BUDGETS) * len(policies.names())
    entries: list[Entry] = []
    again: list[Entry] = []
    steps: dict[str, dict[str, int]] = {}
    complete = dict.fromkeys(SIZES, 0)
    for size, case, found, sample in known(options.folder):
        entries += found
        again += sample
        peak = case.trace.peak + case.trace.slack
        steps[f"{case.step}, {case.on}"] = {"ops": len(case.trace.ops), "peak": peak}
        complete[size] += len(found) == each
    if not entries:
        raise SystemExit(f"no points in {options.folder}: run without --known")
    summed = summary(entries, again)
    pairs = len(workloads()) * len(MACHINES)
    of = len(SIZES) * pairs * each
    console.print(shown(summed["policies"]))
    console.print(f"{len(entries):,} of {of:,} points; {len(summed['findings'])} findings")
    facts = {
        "points": len(entries),
        "of": of,
        "covered": {size: f"{n} of {pairs} steps x machines" for size, n in complete.items()},
        "budgets": [share.fraction for share in BUDGETS],
        "search_seconds": SEARCHES,
        "left_out": left_out,
        "steps": steps,
    }
    write(options.json, {**where(), **facts, **summed})


if __name__ == "__main__":
    main()
