"""Steps that never ran: is what was predicted from fake tensors what a plain step takes?

    make bench-prediction

Calibrates this machine first (or takes `--machine FILE`). Then, for each workload: its step recorded
on fake tensors and priced; the same step recorded for real (exact bytes of live storages); and plain
PyTorch in processes of its own (resident bytes above the base, seconds). As calibration does, it runs
each step twice, the others between, and the faster run counts: others may use the machine. `slower` is
the other one's time over it. Worst first.

`s` is what the plain step takes by the C library's own settings. The other two are times of a session:
`kept s` where the library keeps all that is freed, as with room enough; `tight s` where it returns all,
as while a session learns. One number foretells the first two: what the library returns of its own
accord makes little difference at these sizes. Peaks are those of steps before which it has kept nothing.

With `--json`, rows of workloads that this run leaves out stay in the file, each with its commit.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from _children import last_said
from _steps import recorded
from _where import earlier, where, write
from penstock.api import calibrate
from penstock.ir.store import load
from penstock.record.fake import record_fake
from penstock.simulate.roofline import priced
from penstock.simulate.run import unbounded
from penstock.zoo.workloads import Size, names, workload
from zoo import MIB, WARM_UP, in_process

RUNS = 2
SKIPPED = {"moe": "what it does depends on its data", "varying": "its shapes vary"}


def live_peak(trace: Any) -> int:
    """The most bytes of live storages, all that they have, without workspaces."""
    values = tuple(replace(value, nbytes=value.allocated) for value in trace.values)
    trace = replace(trace, values=values)
    return int((trace.live - trace.columns.workspace).max())


def predicted(name: str, size: str, machine: Any) -> dict[str, Any]:
    trace = priced(record_fake(lambda: workload(name, size).step, label=name), machine)
    return {
        "live": live_peak(trace),
        "peak": trace.peak + trace.slack,
        "tight": trace.seconds,
        "kept": unbounded(trace, machine).seconds,
    }


def ran(name: str, size: str) -> dict[str, Any]:
    """The same of a real step; run it in a process of its own."""
    trace, _ = recorded(workload(name, size).step, tier="none")
    return {"live": live_peak(trace), "peak": trace.peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--machine", type=Path, help="a machine file; default: calibrate first")
    parser.add_argument("--size", choices=get_args(Size), default="middle")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--recorded", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.recorded:
        print(json.dumps(ran(options.recorded, options.size)))
        return
    console = Console(width=None if sys.stdout.isatty() else 160)
    machine = load(options.machine) if options.machine else calibrate(tier="none")
    asked = options.only or [one for one in names() if one not in SKIPPED]
    plain: dict[str, list[Any]] = {name: [] for name in asked}
    for _ in range(RUNS):
        for name in asked:
            plain[name].append(in_process(name, "none", "--size", options.size))
    rows = []
    for name in asked:
        real = last_said(__file__, "--recorded", name, "--size", options.size)
        if failed := [one["failed"] for one in (real, *plain[name]) if one.get("failed")]:
            console.print(f"{name}: {failed[0]}")
            continue
        guess = predicted(name, options.size, machine)
        peak = max(nbytes for one in plain[name] for nbytes in one["peaks"][1:])
        times = [median(one["seconds"][WARM_UP:]) for one in plain[name]]
        seconds = min(times)
        tight, kept = (
            min(median(one[how][1:]) for one in plain[name]) for how in ("tight", "kept")
        )
        rows.append(
            {
                "name": name,
                "live": real["live"],
                "live_error": guess["live"] / real["live"] - 1,
                "peak": peak,
                "peak_error": guess["peak"] / peak - 1,
                "recorded_peak": real["peak"],
                "seconds": seconds,
                "seconds_error": guess["kept"] / seconds - 1,
                "slower": max(times) / seconds - 1,
                "kept_seconds": kept,
                "kept_seconds_error": guess["kept"] / kept - 1,
                "tight_seconds": tight,
                "tight_seconds_error": guess["tight"] / tight - 1,
            }
        )
    rows.sort(key=lambda row: -abs(row["seconds_error"]))
    table = Table(title=f"Predicted without running, {options.size} size")
    sizes = ("live MiB", "error", "resident MiB", "error")
    times = ("s", "error", "slower", "kept s", "error", "tight s", "error")
    for head in ("workload", *sizes, *times):
        table.add_column(head, justify="left" if head == "workload" else "right")
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['live'] / MIB:.1f}",
            f"{row['live_error']:+.2%}",
            f"{row['peak'] / MIB:.1f}",
            f"{row['peak_error']:+.1%}",
            f"{row['seconds']:.3f}",
            f"{row['seconds_error']:+.1%}",
            f"{row['slower']:+.0%}",
            f"{row['kept_seconds']:.3f}",
            f"{row['kept_seconds_error']:+.1%}",
            f"{row['tight_seconds']:.3f}",
            f"{row['tight_seconds_error']:+.1%}",
        )
    console.print(table)
    for what in ("live", "peak", "seconds", "kept_seconds", "tight_seconds"):
        off = median(abs(row[f"{what}_error"]) for row in rows)
        console.print(f"median error of {what}: {off:.1%}")
    if options.json:
        facts = {**where(), "size": options.size}
        kept = {row["name"]: row for row in earlier(options.json, size=options.size)["rows"]}
        kept |= {row["name"]: {"commit": facts["commit"], **row} for row in rows}
        write(options.json, {**facts, "rows": list(kept.values())})


if __name__ == "__main__":
    main()
