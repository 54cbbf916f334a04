"""How heavy the page of a large step is, and how long Chromium takes to show it.

    python benchmarks/report.py [SOURCE] [-m MACHINE] [-b BUDGET] [--repeat 7] [--out FILE]

Without a source: a made-up step of 10,000 ops of which half of the saved values are swapped and a
quarter recomputed. Otherwise an architecture or a trace, and what `capuchin` plans for it. Beside it
the page of a comparison, made up: 30 policies, 20 steps, 3 machines, 4 budgets. Each load is a new
navigation of one browser without a network; milliseconds count from its start. `painted`: when
the first frame with content was on the screen.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from _where import where, write
from penstock import policies
from penstock.ir.machine import Device as Accelerator
from penstock.ir.machine import Link, Machine, Tier
from penstock.ir.policy import Problem
from penstock.report.comparison import comparison_of
from penstock.report.comparison_page import comparison_page
from penstock.report.files import told
from penstock.report.html import page
from penstock.solve.best import Outcome, outcome
from penstock.source import step_and_machine
from simulate import chain, mixed

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import CHROMIUM, Browser, Device
from comparisons import grid

_MOMENTS = """(() => {
  const {navigationStart, domInteractive, loadEventEnd} = performance.timing;
  return {parsed: domInteractive - navigationStart, loaded: loadEventEnd - navigationStart,
          drawn: +document.documentElement.dataset.drawn,
          painted: Math.round(performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? -1)};
})()"""


def made_up() -> tuple[Problem, Outcome]:
    step, link = chain(10_000), Link(8 * 2**30, 20e-6)
    machine = Machine(Accelerator("made up", 2**40), (Tier("disk", 2**40, link, link, drag=0.05),))
    modules = tuple(
        replace(
            op, module=f"model.decoder.layers.{op.index % 5000 // 60}.self_attention.projection"
        )
        for op in step.ops
    )
    step = replace(step, ops=modules, label="10,000 ops, made up")
    problem = Problem(step, machine, int(0.6 * step.peak))
    return problem, outcome(problem, mixed(step))


def asked(source: str, machine: str | None, budget: float) -> tuple[Problem, Outcome]:
    step, described = step_and_machine(source, machine)
    problem = Problem(step, described, int(budget * (step.peak + step.slack)))
    return problem, policies.ask(policies.configured("capuchin"), problem)


def loads(path: Path, repeat: int) -> dict[str, float]:
    """Medians in milliseconds; the first load, which also starts the browser's parts, apart."""
    found = []
    with Browser() as browser:
        for _ in range(repeat + 1):
            browser.open(path, Device())
            browser.ask("new Promise(done => setTimeout(done, 50))")  # the load event has ended
            found.append(browser.ask(_MOMENTS))
        assert browser.complaints == [], browser.complaints
    medians = {key: statistics.median(one[key] for one in found[1:]) for key in found[0]}
    return {"first": found[0]["drawn"], **medians}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?")
    parser.add_argument("-m", "--machine")
    parser.add_argument("-b", "--budget", type=float, default=0.6, help="share of the peak")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()

    if given.source is None:
        problem, found = made_up()
    else:
        problem, found = asked(given.source, given.machine, given.budget)
    about = {
        "step": problem.trace.label,
        "ops": len(problem.trace.ops),
        "values": len(problem.trace.values),
        "decisions": found.plan.counts(),
    }
    points = grid()
    rows = {
        "report": about | figures(lambda: page([told(problem, found)]), given.repeat),
        "comparison": {"points": len(points)}
        | figures(lambda: comparison_page(comparison_of(points)), given.repeat),
    }
    if CHROMIUM is None:
        print("no Chromium here, so nothing was loaded: apt-get install chromium")
    for title, row in rows.items():
        print(f"== {title}")
        for name, value in row.items():
            print(f"{name:>20}  {value:,}" if isinstance(value, int) else f"{name:>20}  {value}")
    if given.out is not None:
        write(given.out, {"where": where(), **rows})


def figures(made: Callable[[], str], repeat: int) -> dict[str, Any]:
    """Of a page: its weight, how long it is made, and how long it takes to be seen."""
    began = time.perf_counter()
    text = made()
    row: dict[str, Any] = {
        "bytes": len(text.encode()),
        "written in seconds": round(time.perf_counter() - began, 2),
    }
    if CHROMIUM is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "page.html")
            path.write_text(text)
            row["milliseconds"] = loads(path, repeat)
    return row


if __name__ == "__main__":
    main()
