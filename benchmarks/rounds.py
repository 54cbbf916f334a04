"""The demo's runs in turn, several times over: how much slower is a step inside half of its memory?

    python benchmarks/rounds.py [--rounds 3] [--json FILE]

A process keeps for its life what it was dealt at its start (pages, cores, neighbours), and a machine
drifts from minute to minute; one pass of the demo cannot tell such luck from the price of a plan.
So each round runs every method in a process of its own, one after the other, and a method's ratio is
the median over rounds of its median step over the plain one's of the same round. `own` is free of
luck altogether: the planned steps over what this same process would take for the step without a
budget, by the op times that it measured; `stalled` is the part of a step that waits for copies.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from _where import where, write

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from demo import OWN_NEEDS, Demo, Row

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="in each run")
    parser.add_argument("--layers", type=int, default=8, help="fewer for a quick look")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rounds: list[dict[str, dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as folder:
        demo = Demo(Path(folder), options.steps, options.layers)
        for _ in range(options.rounds):
            plain, needs, data = demo.plain()
            runs = {"plain": plain, "checkpointing": demo.checkpointing()}
            runs["half"] = demo.penstock("half", needs // 2)
            runs["quarter"] = demo.penstock("quarter", needs // 4, data + needs // 4 + OWN_NEEDS)
            rounds.append({name: facts(demo, name, row, plain) for name, row in runs.items()})
            Console(width=120).print(table(rounds))
    if options.json:
        write(options.json, {**where(), "rounds": rounds})


def facts(demo: Demo, name: str, row: Row, plain: Row) -> dict[str, Any]:
    """One run's figures; those of Penstock's report where it wrote one."""
    found: dict[str, Any] = {
        "same": row.losses == plain.losses,
        "seconds": median(row.seconds),
        "ratio": median(row.seconds) / median(plain.seconds),
        "peak": row.peak,
        "predicted_peak": row.predicted_peak,
        "predicted_seconds": row.predicted_seconds,
    }
    report = demo.out / f"{name}.json"
    if report.exists():
        body = json.loads(report.read_text())
        planned = [step for step in body["steps"] if step["mode"] == "planned"]
        found |= {
            "own": median(step["seconds"] for step in planned) / body["without_budget"]["seconds"],
            "stalled": median(sum(step["stalls"].values()) / step["seconds"] for step in planned),
            "moved": median(sum(step["traffic"].values()) for step in planned),
        }
    return found


def table(rounds: list[dict[str, dict[str, Any]]]) -> Table:
    shown = Table(title=f"Median of {len(rounds)} rounds")
    heads = ("run", "MiB", "s", "ratio", "ratios", "own", "stalled", "moved MiB", "losses")
    for head in heads:
        shown.add_column(head, justify="left" if head in ("run", "losses") else "right")
    for name in rounds[0]:
        runs = [each[name] for each in rounds]

        def middle(what: str, form: str, runs: list[dict[str, Any]] = runs) -> str:
            found = [run[what] for run in runs if what in run]
            return format(median(found), form) if found else ""

        shown.add_row(
            name,
            f"{max(run['peak'] for run in runs) / MIB:.0f}",
            middle("seconds", ".2f"),
            middle("ratio", ".3f"),
            " ".join(f"{run['ratio']:.2f}" for run in runs),
            middle("own", ".3f"),
            middle("stalled", ".1%"),
            f"{median(run['moved'] for run in runs) / MIB:.0f}" if "moved" in runs[0] else "",
            "same" if all(run["same"] for run in runs) else "DIFFERENT",
        )
    return shown


if __name__ == "__main__":
    main()
