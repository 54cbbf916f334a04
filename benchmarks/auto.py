"""Is `auto` as good as the best single policy, everywhere?

    python benchmarks/auto.py [--size small] [--only bert ...] [--machine a100-40 ...]
                              [--share 80 60 40 25] [--policy belady chen ...] [--keep FILE] [--json FILE]

Our workloads, recorded on fake tensors and priced for each machine, at shares of what the plain step
needs (never below the least that any plan could meet). Planning only. A rival is a policy that needs no
time limit; the best of them is another one from point to point. What fits is better than what does not;
among plans that fit, or miss by the same bytes, the faster one. `--keep` holds every point, so that a
second run asks only what is new. Fails if auto is more than 1 % slower than the best rival anywhere.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from math import exp, log
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from _where import where, write
from penstock import policies
from penstock.leaderboard import Case, Entry, compare
from penstock.simulate.least import least_budget
from penstock.source import step_and_machine

MACHINES = ("a100-40", "v100-16", "xeon-6252+ssd:970pro")
TOLERANCE = 0.01


class Point(NamedTuple):
    """One step on one machine at one budget: what auto found there, and what its rivals found."""

    ops: int
    share: int  # percent of what the plain step needs, as it was asked for
    auto: Entry
    rivals: list[Entry]

    @property
    def best(self) -> Entry:
        return min(self.rivals, key=lambda one: (one.shortfall, one.seconds))

    def behind(self, rival: Entry) -> float:
        """Auto's time over the rival's; infinite or 0 if only one of them fits, or fits better."""
        if self.auto.shortfall != rival.shortfall:
            return float("inf") if self.auto.shortfall > rival.shortfall else 0.0
        return self.auto.seconds / rival.seconds


def points(case: Case, options: argparse.Namespace) -> Iterator[Point]:
    full, least = case.trace.peak + case.trace.slack, least_budget(case.trace).nbytes
    asked = ["auto", *options.policy]
    budgets = {max(least, full * share // 100): share for share in options.share}
    found = compare([case], list(budgets), asked, results=options.keep, limit=options.limit)
    at: dict[int, list[Entry]] = defaultdict(list)
    for entry in found:
        at[entry.budget].append(entry)
    for budget, (auto, *rivals) in at.items():
        yield Point(
            len(case.trace.ops), budgets[budget], auto, [r for r in rivals if not r.problem]
        )


def rows(found: list[Point]) -> Iterator[dict[str, Any]]:
    """By policy: how often it is better than auto, how often worse, and by how much."""
    for name in sorted({rival.policy for point in found for rival in point.rivals}):
        ratios = [p.behind(r) for p in found for r in p.rivals if r.policy == name]
        both = comparable(ratios)
        yield {
            "policy": name,
            "points": len(ratios),
            "better_than_auto": sum(ratio > 1 + TOLERANCE for ratio in ratios),
            "worse_than_auto": sum(ratio < 1 - TOLERANCE for ratio in ratios),
            "misses_where_auto_fits": sum(ratio == 0.0 for ratio in ratios),
            "most_better": max(both, default=1.0),
            "mean": mean(both),
        }


def comparable(ratios: list[float]) -> list[float]:
    """Those where both fit, or miss by the same bytes."""
    return [ratio for ratio in ratios if 0.0 < ratio < float("inf")]


def mean(ratios: list[float]) -> float:
    """The geometric mean; 1 of none."""
    return exp(sum(map(log, ratios)) / len(ratios)) if ratios else 1.0


def summary(found: list[Point]) -> dict[str, Any]:
    against = [point.behind(point.best) for point in found]
    both = comparable(against)
    seconds = [point.auto.took for point in found]
    return {
        "points": len(found),
        "worse_than_best_single": sum(ratio > 1 + TOLERANCE for ratio in against),
        "better_than_best_single": sum(ratio < 1 - TOLERANCE for ratio in against),
        "most_worse": max(both, default=1.0),
        "most_better": min(both, default=1.0),
        "mean": mean(both),
        "planning_median": median(seconds),
        "planning_most": max(seconds),
        "planning_most_a_thousand_ops": max(p.auto.took / max(p.ops, 1000) * 1000 for p in found),
    }


def shown(found: list[Point]) -> Table:
    table = Table(title="auto against single policies: its time over theirs where both fit alike")
    for head in ("policy", "points", "beats auto", "is beaten", "only auto fits", "worst", "mean"):
        table.add_column(head, justify="left" if head == "policy" else "right")
    for row in rows(found):
        table.add_row(
            row["policy"],
            *(str(row[key]) for key in ("points", "better_than_auto", "worse_than_auto")),
            str(row["misses_where_auto_fits"]),
            *(f"{row[key]:.3f}" for key in ("most_better", "mean")),
        )
    return table


def fact(point: Point) -> dict[str, Any]:
    auto, best = point.auto, point.best
    return {
        "step": auto.step,
        "on": auto.on,
        "ops": point.ops,
        "share": point.share,
        "budget": auto.budget,
        "auto": auto.slowdown,
        "shortfall": auto.shortfall,
        "planning_seconds": auto.took,
        "best": best.policy,
        "best_slowdown": best.slowdown,
        "best_shortfall": best.shortfall,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["small", "full"], default="small")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--machine", nargs="*", default=MACHINES)
    parser.add_argument("--share", nargs="*", type=int, default=[80, 60, 40, 25], metavar="PERCENT")
    parser.add_argument("--policy", nargs="*", default=[n for n in policies.quick() if n != "auto"])
    parser.add_argument(
        "--limit", type=float, default=60, help="seconds of planning, for each point"
    )
    parser.add_argument(
        "--keep", type=Path, help="a file of points, as `penstock compare -o` writes"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from penstock.zoo.workloads import names  # torch, which the processes that plan do without

    console = Console(width=None if sys.stdout.isatty() else 140)
    found: list[Point] = []
    for name, on in product(options.only or names(), options.machine):
        case = Case(name, on, *step_and_machine(f"zoo:{name}?size={options.size}", on))
        for point in points(case, options):
            found.append(point)
            ratio = point.behind(point.best)
            console.print(
                f"{case.step} on {case.on}, {point.share} %: auto {point.auto.slowdown:.3f} in "
                f"{point.auto.took:.1f} s, {point.best.policy} {point.best.slowdown:.3f}"
                + ("  WORSE" if ratio > 1 + TOLERANCE else ""),
                highlight=False,
            )
    console.print(shown(found))
    console.print(summary(found))
    if options.json:
        facts = {**where(), "size": options.size, **summary(found)}
        body = {"policies": list(rows(found)), "points": [fact(point) for point in found]}
        write(options.json, {**facts, **body})
    sys.exit(any(point.behind(point.best) > 1 + TOLERANCE for point in found))


if __name__ == "__main__":
    main()
