"""`make demo`: GPT-2 trained plainly, with checkpointing, and inside half and a quarter of its memory.

Each row of the table is a process of its own that runs `train_gpt2.py`, which knows nothing of
Penstock. The last one is the plain script again, under the hard limit on the address space under
which the quarter ran.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
SCRIPT = HERE / "train_gpt2.py"
OWN_NEEDS = 256 << 20
"""Bytes of address space for what the planner and its threads need beside the script."""
PLAIN_PAGES = {"THP_MEM_ALLOC_ENABLE": "0"}
"""Penstock asks torch for huge pages; a plain run is to stay what it is, also when measured."""
RECORDED = 2  # steps before Penstock's plan runs
WARM_UP = 1  # steps of the other runs that do not count
console = Console(width=None if sys.stdout.isatty() else 160)


@dataclass(frozen=True)
class Row:
    """What one run came to. Bytes count above the base."""

    name: str
    losses: list[float]
    seconds: list[float]  # of the steps that count
    peak: int  # of any step
    planned_peak: int | None = None  # of those that followed a plan
    predicted_peak: int | None = None  # of these, too
    predicted_seconds: float | None = None
    note: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5, help="in each run; 4 or more")
    parser.add_argument("--layers", type=int, default=8, help="fewer for a quick look")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the reports")
    options = parser.parse_args()
    if options.steps < 4:
        parser.error(f"--steps {options.steps}: two steps are recorded, and two or more must count")
    demo = Demo(options.out, options.steps, options.layers)
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()

    plain, needs, data = demo.plain()
    rows = [plain, demo.checkpointing(), demo.penstock("half", needs // 2)]
    quarter = needs // 4
    limit = data + quarter + OWN_NEEDS
    rows.append(demo.penstock("quarter", quarter, limit))
    died = demo.plain_dies(limit)

    console.print(table(rows, died, limit, needs))
    equal = all(row.losses == plain.losses for row in rows)
    console.print(
        f"{time.perf_counter() - began:.0f} s in all. Open {options.out / 'quarter.html'} in a "
        "browser to see the quarter's plan and run.",
        soft_wrap=True,
    )
    return 0 if equal and died else 1


@dataclass(frozen=True)
class Demo:
    out: Path
    steps: int
    layers: int

    def plain(self) -> tuple[Row, int, int]:
        """The script as it is; with it the bytes that its step needs, and its address space."""
        row, took = self._measured("plain", "plain")
        kept = max(took["peaks"][:-1])
        row = replace(row, note=f"{mib(kept)} with what the C library keeps")
        return row, row.peak, took["data"]

    def checkpointing(self) -> Row:
        title = "HF gradient checkpointing"
        return self._measured("checkpointing", title, "--checkpointing")[0]

    def penstock(self, name: str, budget: int, limit: int | None = None) -> Row:
        """The script under `penstock run`, inside `budget` bytes."""
        reports = [self.out / f"{name}.json"]
        if limit is not None:  # one page is enough to look at
            reports.append(self.out / f"{name}.html")
        options = [part for path in reports for part in ("--report", str(path))]
        command = ["-m", "penstock", "run", "--budget", str(budget), *options]
        self._run(name, [*command, *self._script(name)], limit)
        steps = json.loads(reports[0].read_text())["steps"]
        planned = [step for step in steps[RECORDED:] if step["mode"] == "planned"]
        found = self._result(name)
        return Row(
            f"Penstock, {mib(budget)}",
            found["losses"],
            found["seconds"][RECORDED:],
            max(step["peak"] for step in steps),
            max(step["peak"] for step in planned),
            max(step["predicted_peak"] for step in planned),
            median(step["predicted_seconds"] for step in planned),
            "; ".join(dict.fromkeys(event for step in planned for event in step["events"])),
        )

    def plain_dies(self, limit: int) -> str:
        """The plain script under `limit`: how it dies, or nothing if it lives."""
        errors = self._run("limited", self._script("limited"), limit, may_fail=True)
        last = (errors.strip().splitlines() or [""])[-1]
        return last if "can't allocate memory" in last else ""

    def _measured(self, name: str, title: str, *options: str) -> tuple[Row, dict[str, Any]]:
        """A run without Penstock, whose last step tells what it needs and does not count."""
        out = self.out / f"{name}.memory.json"
        command = [str(HERE / "measured.py"), str(out), str(self.steps - 1)]
        self._run(name, [*command, *self._script(name, *options)])
        found, took = self._result(name), json.loads(out.read_text())
        counted = found["seconds"][WARM_UP:-1]
        return Row(title, found["losses"], counted, took["peaks"][-1]), took

    def _script(self, name: str, *options: str) -> list[str]:
        size = ["--steps", str(self.steps), "--layers", str(self.layers)]
        return [str(SCRIPT), *size, "--out", str(self.out / f"{name}.losses.json"), *options]

    def _result(self, name: str) -> Any:
        return json.loads((self.out / f"{name}.losses.json").read_text())

    def _run(
        self,
        name: str,
        arguments: Sequence[str],
        limit: int | None = None,
        *,
        may_fail: bool = False,
    ) -> str:
        """Run Python to its end; returns what it wrote on stderr.

        `limit`: bytes of RLIMIT_DATA, hard, from its first moment.
        """

        def confine() -> None:
            assert limit is not None
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

        began = time.perf_counter()
        console.print(f"{name} ...", end=" ")
        child = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=PLAIN_PAGES | os.environ if "penstock" not in arguments else None,
            preexec_fn=None if limit is None else confine,  # noqa: PLW1509  (no threads here)
        )
        if limit is not None:
            in_force = resource.prlimit(child.pid, resource.RLIMIT_DATA)
            assert in_force == (limit, limit), f"RLIMIT_DATA is {in_force}, not {limit}"
        errors = child.communicate()[1]
        console.print(f"{time.perf_counter() - began:.0f} s")
        if child.returncode and not may_fail:
            sys.exit(f"{errors}\nthe run {name!r} failed with exit code {child.returncode}")
        return errors


def table(rows: Sequence[Row], died: str, limit: int, needs: int) -> Table:
    plain = rows[0]
    shown = Table(
        title="GPT-2, batch 8 x 512: bytes above the base, "
        f"step seconds as the median of {len(plain.seconds)} steps",
        caption=f"load of this machine over the last minute: {os.getloadavg()[0]:.1f}",
    )
    heads = ("run", "peak predicted", "measured", "in any step", "of plain", "step predicted")
    for head in (*heads, "measured"):
        shown.add_column(head, justify="left" if head == "run" else "right")
    for head in ("of plain", "losses", "note"):
        shown.add_column(head)
    for row in rows:
        seconds = median(row.seconds)
        shown.add_row(
            row.name,
            "" if row.predicted_peak is None else mib(row.predicted_peak),
            "" if row.planned_peak is None else mib(row.planned_peak),
            mib(row.peak),
            f"{row.peak / needs:.0%}",
            "" if row.predicted_seconds is None else f"{row.predicted_seconds:.2f} s",
            f"{seconds:.2f} s",
            f"{seconds / median(plain.seconds):.3f}x",
            "equal" if row.losses == plain.losses else "NOT EQUAL",
            row.note,
        )
    outcome = died or "it lived, which it should not"
    shown.add_row(f"plain, RLIMIT_DATA {mib(limit)}, as the quarter had", *[""] * 8, outcome)
    return shown


def mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.0f} MiB"


if __name__ == "__main__":
    sys.exit(main())
