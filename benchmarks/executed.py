"""Every policy carried out on six steps: the same bits? inside the budget? as predicted?

    make bench-executed    or    python benchmarks/executed.py --json FILE [--only gpt2] [--policy chen]

Each step runs plainly in a process of its own, then under each policy in one. The budget is 60 % of what
the step takes, or the least of a few shares at which the policy's plan fits in simulation, if that is
more. The bits are those of all losses, parameters and buffers. `peak` is the most of all planned
steps; the errors are medians of the steps after the charted ones. The predicted time follows the pace
of the machine in the steps before, the predicted peak those of the plan's last steps; `simulated` are
the errors without.

Steps that take now this long, now that, tell of a machine that others use too: a run in which they
scatter is done again, twice at most. The bits and the highest peak are those of all runs, the
errors those of the steadiest; `scatter` is how far its steps lie from their median, in the median.

A row that FILE holds is not run again (`--again`: it is), so that portions (`--minutes`) add up.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from _steps import recorded
from _where import earlier, where, write
from penstock import policies
from penstock.errors import PenstockError
from penstock.ir.machine import Machine
from penstock.ir.policy import Problem
from penstock.ir.trace import Trace
from penstock.trials import Answer, Failed, Ran, Trial, attempt
from penstock.zoo.architectures import parse
from penstock.zoo.workloads import Size

MODELS = ("gpt2", "resnet", "unet", "lstm", "vit", "gan")
SIZE: Size = "middle"
SHARES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.3)
SPARE = 0.02
"""Share of the budget that a plan must leave: the allocator's part is learnt while it runs."""
REFUSED = "is too small"
"""What a run says whose budget the step cannot meet."""
LIMIT = 180.0
"""Seconds for a run."""
SOLVER = 2.0
"""Seconds for a policy that takes a time limit, each time it is asked."""
PEAK, TIME = 0.03, 0.10
"""The targets: how far a prediction may be off, and a peak over its budget."""
UNSTEADY = TIME / 2
"""A run whose steps scatter by more is done again."""
RUNS = 3
MIB = 2**20

Row = dict[str, Any]


# -- budgets --------------------------------------------------------------------------------------


def made_and_recorded(step: str) -> tuple[Trace, Machine]:
    return recorded(parse(step).make(), tier=None)


def in_process(step: str) -> tuple[Trace, Machine]:
    """The step recorded as it runs here, and this machine."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(made_and_recorded, step).result()


def least_share(trace: Trace, machine: Machine, policy: str) -> tuple[float, str]:
    """The least of `SHARES` at which the policy says that it fits, and why not at less.

    0: it plans no such step, or does not fit at any.
    """
    full, why = trace.peak + trace.slack, ""
    for share in SHARES:
        problem = Problem(trace, machine, int(share * (1 - SPARE) * full))
        try:
            found = policies.ask(policies.configured(policy), problem)
        except PenstockError as error:
            return 0.0, str(error).splitlines()[0]
        if not found.missing:
            return share, why
        why = f"at {share:.0%} its plan lacks {found.missing / MIB:.0f} MiB"
    return 0.0, why


def carried_out(
    step: str, trace: Trace, machine: Machine, policy: str
) -> tuple[float, Failed | list[Ran]]:
    """Runs at the least share that fits, or the next: a run has other slack than the recording."""
    least, why = least_share(trace, machine, policy)
    if not least:
        return least, Failed(why)
    for share in SHARES[SHARES.index(least) :]:
        trial = Trial(step, f"{share:.0%}", policy)
        ran = attempt(trial, LIMIT)
        if not (REFUSED in ran.why if isinstance(ran, Failed) else lacks(ran)):
            break
    runs: list[Ran] = []
    while not isinstance(ran, Failed):
        runs.append(ran)
        if scatter(ran) <= UNSTEADY or len(runs) == RUNS:
            return share, runs
        ran = attempt(trial, LIMIT)
    return share, ran


def lacks(ran: Ran) -> bool:
    """Did the plans of its late steps need more than the budget, as was foretold?"""
    return median(report.simulated_peak or 0 for report in ran.late or ran.reports) > ran.budget


def scatter(ran: Ran) -> float:
    """How far steps lie from their median, in the median: as a share of it."""
    seconds = [report.seconds for report in ran.late]
    if not seconds:
        return 0.0
    middle = median(seconds)
    return median(abs(each - middle) for each in seconds) / middle


# -- rows -----------------------------------------------------------------------------------------


def row(policy: str, model: str, share: float, plain: Answer, runs: Failed | list[Ran]) -> Row:
    """The figures of one policy on one step."""
    asked = {"policy": policy, "model": model, "share": share}
    if isinstance(plain, Failed):
        return {**asked, "failed": f"the plain run: {plain.why}"}
    if isinstance(runs, Failed):
        return {**asked, "failed": runs.why}
    found = {
        **asked,
        "differing": sorted({what for one in runs for what in one.bits.differing(plain.bits)}),
    }
    if not all(one.planned for one in runs):
        return {**found, "failed": "no step was planned"}
    ran, highest = min(runs, key=scatter), max(runs, key=over)
    return {
        **found,
        "runs": len(runs),
        "scatter": scatter(ran),
        "budget": highest.budget,
        "peak": peak_of(highest),
        "over": over(highest),
        "plain_seconds": plain.seconds,
        "seconds": ran.seconds,
        **errors(ran),
        "fetched": max(report.stalls["fetch"] for report in ran.planned),
        "fallbacks": sum(
            report.mode != "planned" for report in ran.reports[after_recording(ran) :]
        ),
        "events": sorted({event for report in ran.planned for event in report.events}),
        "decisions": ran.planned[-1].decisions,
        "planning": max(report.planning_seconds for report in ran.reports),
        "steps": [
            {
                "mode": report.mode,
                "seconds": report.seconds,
                "predicted_seconds": report.predicted_seconds,
                "pace": report.pace,
                "peak": report.peak,
                "predicted_peak": report.predicted_peak,
                "simulated_peak": report.simulated_peak,
                "fetched": report.stalls["fetch"],
                "events": report.events,
            }
            for report in ran.reports
        ],
    }


def peak_of(ran: Ran) -> int:
    return max(report.peak for report in ran.planned)


def over(ran: Ran) -> float:
    return peak_of(ran) / ran.budget - 1


def errors(ran: Ran) -> dict[str, float]:
    """Predicted over measured, less 1."""
    found: dict[str, list[float]] = {
        "peak_error": [],
        "simulated_peak_error": [],
        "seconds_error": [],
        "simulated_error": [],
    }
    for report in ran.late:
        assert report.predicted_peak is not None and report.predicted_seconds is not None
        assert report.simulated_peak is not None
        found["simulated_peak_error"].append(report.simulated_peak / report.peak - 1)
        found["peak_error"].append(report.predicted_peak / report.peak - 1)
        found["seconds_error"].append(report.predicted_seconds / report.seconds - 1)
        found["simulated_error"].append(report.predicted_seconds / report.pace / report.seconds - 1)
    return {name: median(values) for name, values in found.items()}


def after_recording(ran: Ran) -> int:
    """How many steps were recorded before the first other one."""
    modes = [report.mode for report in ran.reports]
    return next((n for n, mode in enumerate(modes) if mode != "recorded"), len(modes))


def badness(one: Row) -> tuple[bool, bool, float]:
    """Larger is worse: other bits, then no figures, then the largest part of a target that is used."""
    if "failed" in one:
        return bool(one.get("differing")), True, 0.0
    parts = (one["over"] / PEAK, abs(one["peak_error"]) / PEAK, abs(one["seconds_error"]) / TIME)
    return bool(one["differing"]), False, max(parts)


def shown(rows: Iterable[Row]) -> Table:
    table = Table(
        title=f"Policies carried out, size {SIZE}: predicted against measured, worst first"
    )
    text = ("policy", "step", "bits", "events")
    heads = ("policy", "step", "bits", "share", "budget", "peak", "peak error", "plain s", "s")
    for head in (*heads, "s error", "simulated", "scatter", "fetched", "events"):
        table.add_column(head, justify="left" if head in text else "right")
    for one in sorted(rows, key=badness, reverse=True):
        bits = "DIFFERENT" if one.get("differing") else "same" if "differing" in one else ""
        named = one["policy"], one["model"], bits, f"{one['share']:.0%}" if one["share"] else ""
        if "failed" in one:
            table.add_row(*named, *[""] * 9, one["failed"][:90])
            continue
        table.add_row(
            *named,
            f"{one['budget'] / MIB:.0f}",
            f"{one['peak'] / MIB:.0f} ({one['over']:+.1%})",
            f"{one['peak_error']:+.1%}",
            f"{one['plain_seconds']:.2f}",
            f"{one['seconds']:.2f}",
            f"{one['seconds_error']:+.0%}",
            f"{one['simulated_error']:+.0%}",
            f"{one['scatter']:.0%}",
            f"{one['fetched']:.2f}",
            "; ".join(event[:60] for event in one["events"]),
        )
    return table


def summary(rows: list[Row]) -> str:
    ran = [one for one in rows if "failed" not in one]
    late = [one for one in ran if abs(one["seconds_error"]) > TIME]
    return (
        f"{len(rows)} runs: {len(ran)} with figures; other bits in "
        f"{sum(bool(one.get('differing')) for one in rows)}; over the budget by more than {PEAK:.0%} in "
        f"{sum(one['over'] > PEAK for one in ran)}; peak off by more than {PEAK:.0%} in "
        f"{sum(abs(one['peak_error']) > PEAK for one in ran)}, time by more than {TIME:.0%} in "
        f"{len(late)}, of which {sum(one['scatter'] > UNSTEADY for one in late)} have steps that scatter "
        f"by more than {UNSTEADY:.0%}"
    )


def known(path: Path | None) -> dict[tuple[str, str], Row]:
    """By policy and step, the rows that the file holds, if it is about this size."""
    return {(one["policy"], one["model"]): one for one in earlier(path, size=SIZE)["rows"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=MODELS, default=MODELS, help="steps")
    parser.add_argument("--policy", nargs="*", help="default: all")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--again", action="store_true", help="also what the file holds already")
    parser.add_argument("--minutes", type=float, help="begin no run after so many")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 200)
    texts = options.policy or [policies.limited(name, SOLVER) for name in policies.names()]
    ends = time.monotonic() + 60 * (options.minutes or 1e9)
    rows = known(options.json)
    done: list[Row] = []
    for model in options.only:
        wanted = [text for text in texts if options.again or (text, model) not in rows]
        if not wanted or time.monotonic() > ends:
            continue
        step = f"zoo:{model}?size={SIZE}"
        trace, machine = in_process(step)
        plain = attempt(Trial(step), LIMIT)
        for text in wanted:
            if time.monotonic() > ends:
                break
            share, runs = carried_out(step, trace, machine, text)
            found = row(text, model, share, plain, runs)
            facts = {**where(), "size": SIZE}
            found |= {"commit": facts["commit"], "load": os.getloadavg()[0]}
            # Portions may run side by side.
            rows = {**rows, **known(options.json), (text, model): found}
            done.append(found)
            console.print(shown(done[-1:]))
            if options.json:
                write(options.json, {**facts, "rows": list(rows.values())})
    asked = [one for (text, model), one in rows.items() if text in texts and model in options.only]
    console.print(shown(asked))
    console.print(summary(asked))
    if missing := len(texts) * len(options.only) - len(asked):
        console.print(f"{missing} more are to be run: ask again")


if __name__ == "__main__":
    main()
