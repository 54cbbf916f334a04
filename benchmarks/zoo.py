"""Every workload of the zoo at full size, in a share of its memory: is what was predicted measured?

    python benchmarks/zoo.py [--budget 60%] [--policy auto] [--only gpt2 resnet] [--json FILE]

Each workload runs in two fresh processes: plain PyTorch, then inside a session. Losses, parameters
and buffers must be the same, bit for bit. Peaks are resident bytes above the base; the predicted
peak and time stand beside the median of the steps that they predict (after the charted ones). Plain
steps run as ever; then some more in which freed blocks do not count, for their peaks. The
predicted time follows the pace of the machine in the steps before; `simulated` is the error without.
With `--json`, rows of workloads that this run leaves out stay in the file, each with its commit.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from _children import last_said
from _where import earlier, where, write
from penstock.api import fit
from penstock.dispatch.resident import CAllocator, CpuMeter, live_tensor_bytes
from penstock.planner import LEARNING
from penstock.record.settle import settle
from penstock.trials import RECORDED, bits_of
from penstock.zoo.workloads import Size, names, workload

WARM_UP = 2
"""Plain steps that do not count."""
MEASURED = 10
"""Planned steps after those from which the session still learns: one step of a shared machine may take a
quarter longer than the next, and of four such the median says little."""
TIGHT = 6
"""Plain steps before all others in which the C library returns what is freed, as while a session records:
they tell the peak (later, what libraries hardly touch lies in pages that others have touched). So many at
the end tell the seconds; then so many more, in which it keeps all, as where there is room."""
MIB = 2**20


def child(name: str, size: str, budget: str | None, policy: str) -> dict[str, Any]:
    """Run one workload; bits, seconds and peaks of its steps.

    Penstock asks torch for huge pages when it is imported: here for the plain run as well.
    """
    settle()
    work = workload(name, size)  # type: ignore[arg-type]
    steps = RECORDED + work.kinds * LEARNING + MEASURED
    losses: list[list[float]] = []

    def digest() -> str:
        return bits_of([*work.parameters(), *work.buffers()])

    def step(number: int) -> None:
        results: list[Tensor] = work.step(number)
        losses.append([float(loss.detach()) for loss in results])

    def timed(number: int) -> float:
        begun = time.perf_counter()
        step(number)
        return time.perf_counter() - begun

    if budget is None:
        allocator = CAllocator()
        meter = CpuMeter()
        base = meter.resident() - live_tensor_bytes(torch.device("cpu"))
        peaks = []
        for number in range(TIGHT):
            meter.reset_peak()
            step(number)
            peaks.append(meter.peak() - base)
        allocator.loosen()
        seconds = [timed(number) for number in range(TIGHT, steps)]
        found = {"losses": [*losses], "bits": digest(), "peaks": peaks, "seconds": seconds}
        allocator.tighten()
        tight = [timed(number) for number in range(steps, steps + TIGHT)]
        allocator.keep()
        kept = [timed(number) for number in range(steps + TIGHT, steps + 2 * TIGHT)]
        return found | {"tight": tight, "kept": kept if allocator.keeps else []}
    with fit(budget, policy=policy, device="cpu") as session:
        for number in range(steps):
            step(number)
    trace = session.trace
    assert trace is not None and session.outcome is not None
    return {
        "losses": losses,
        "bits": digest(),
        "kinds": work.kinds,
        "ops": len(trace.ops),
        "budget": session.budget,
        "by": session.outcome.plan.policy,
        "steps": [
            {
                "mode": one.mode,
                "seconds": one.seconds,
                "peak": one.peak,
                "predicted_seconds": one.predicted_seconds,
                "pace": one.pace,
                "predicted_peak": one.predicted_peak,
                "stalls": one.stalls,
                "decisions": one.decisions,
                "events": one.events,
            }
            for one in session.reports
        ],
    }


def in_process(*arguments: str) -> dict[str, Any]:
    """What `child` returns in a process of its own."""
    return last_said(__file__, "--child", *arguments)


def row(name: str, plain: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """One workload's figures."""
    if failed := plain.get("failed") or run.get("failed"):
        return {"name": name, "failed": failed}
    planned = [one for one in run["steps"] if one["mode"] == "planned"]
    late = planned[run["kinds"] * LEARNING :] or planned
    same = plain["losses"] == run["losses"] and plain["bits"] == run["bits"]
    if not late:
        return {"name": name, "failed": "no step was planned", "same": same}

    def error(what: str) -> float:
        return median(one[f"predicted_{what}"] / one[what] - 1 for one in late)

    return {
        "name": name,
        "same": same,
        "ops": run["ops"],
        "by": run["by"],
        "budget": run["budget"],
        "plain_peak": max(plain["peaks"]),
        "plain_seconds": median(plain["seconds"][WARM_UP:]),
        "peak": max(one["peak"] for one in planned),
        "over": max(one["peak"] for one in planned) / run["budget"] - 1,
        "seconds": median(one["seconds"] for one in late),
        "peak_error": error("peak"),
        "seconds_error": error("seconds"),
        "simulated_error": median(
            one["predicted_seconds"] / one["pace"] / one["seconds"] - 1 for one in late
        ),
        "events": sorted({event for one in planned for event in one["events"]}),
        "steps": [
            {fact: value for fact, value in one.items() if fact not in ("decisions", "events")}
            for one in run["steps"]
        ],
    }


def shown(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Zoo: predicted against measured")
    for head in (
        "workload",
        "ops",
        "by",
        "budget",
        "peak",
        "peak error",
        "plain s",
        "s",
        "s error",
        "simulated",
        "bits",
    ):
        table.add_column(head, justify="left" if head in ("workload", "by", "bits") else "right")
    for one in rows:
        if "failed" in one:
            table.add_row(one["name"], "", one["failed"][:90])
            continue
        table.add_row(
            one["name"],
            str(one["ops"]),
            one["by"],
            f"{one['budget'] / MIB:.0f}",
            f"{one['peak'] / MIB:.0f} ({one['over']:+.1%})",
            f"{one['peak_error']:+.1%}",
            f"{one['plain_seconds']:.2f}",
            f"{one['seconds']:.2f}",
            f"{one['seconds_error']:+.1%}",
            f"{one['simulated_error']:+.1%}",
            "same" if one["same"] else "DIFFERENT",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", default="60%")
    parser.add_argument("--policy", default="auto")
    parser.add_argument("--size", choices=get_args(Size), default="full")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, metavar=("NAME", "BUDGET"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    common = ["--size", options.size, "--policy", options.policy]
    if options.child:
        name, budget = options.child
        asked = None if budget == "none" else budget
        print(json.dumps(child(name, options.size, asked, options.policy)))
        return
    console = Console(width=None if sys.stdout.isatty() else 160)
    rows = []
    before = earlier(options.json, asked=options.budget, size=options.size)
    kept = {row["name"]: row for row in before["rows"]}
    for name in options.only or names():
        plain = in_process(name, "none", *common)
        run = in_process(name, options.budget, *common)
        rows.append(row(name, plain, run))
        console.print(shown(rows[-1:]))
        if options.json:
            facts = {**where(), "asked": options.budget, "size": options.size}
            kept[name] = {"commit": facts["commit"], **rows[-1]}
            write(options.json, {**facts, "rows": list(kept.values())})
    console.print(shown(rows))


if __name__ == "__main__":
    main()
