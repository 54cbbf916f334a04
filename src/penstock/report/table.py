"""Tables and lines for the terminal."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from penstock.errors import mib
from penstock.ir.machine import Machine
from penstock.ir.timeline import Timeline
from penstock.ir.trace import Trace
from penstock.leaderboard import Entry, standings
from penstock.report.words import spoken
from penstock.search import by_policy, front
from penstock.session import StepReport
from penstock.simulate.run import unbounded
from penstock.solve.best import Outcome

__all__ = ["comparison", "curves", "forecast", "holders", "leaderboard", "step_line"]


def step_line(report: StepReport, budget: int) -> str:
    """One step in one line."""
    stalled = sum(report.stalls.values())
    parts = [
        f"step {report.number}",
        f"{report.mode:9}",
        f"{report.seconds:7.3f} s",
        f"peak {mib(report.peak)} of {mib(budget)}",
        f"stall {stalled:.3f} s",
    ]
    return "  ".join([*parts, *report.events])


def forecast(trace: Trace, machine: Machine, budget: int, found: Outcome) -> Table:
    """What a plan will take, beside the step without a budget."""
    timeline, plain = found.timeline, unbounded(trace, machine).seconds
    table = Table(title=f"{found.plan.policy or 'plan'}: {_decisions(found)}", show_header=False)
    rows = {
        "budget": mib(budget),
        "predicted peak": _against(timeline.peak, trace.peak + trace.slack),
        "predicted step": f"{timeline.seconds:.4g} s ({_ratio(timeline.seconds, plain)} of {plain:.4g} s)",
        "stalls": _stalls(timeline),
        "recomputation": f"{timeline.recompute_seconds:.3g} s",
        "traffic": ", ".join(f"{lane} {mib(n)}" for lane, n in timeline.traffic.items()) or "none",
        "at the peak": holders(timeline.at_peak()),
        "machine": machine.device.name,
    }
    if found.plan.cut_short:
        rows["search"] = "ended by its time limit: not proven the best"
    if found.shortfall:
        rows["does not fit"] = (
            f"{mib(found.shortfall)} are missing at {trace.describe_op(found.schedule.worst)}"
            if found.schedule.worst is not None
            else mib(found.shortfall)
        )
    if found.overfull:
        rows["does not fit below"] = f"{mib(found.overfull)} more than the tiers hold"
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def comparison(entries: Sequence[Entry]) -> Table:
    """Policies side by side on one step: what each makes of each budget, or why it makes nothing."""
    table = Table(title=entries[0].step if entries else None)
    for name in ("budget", "policy", "peak", "fits", "step", "of plain", "stall", "again", "moved"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for before, entry in zip((None, *entries), entries, strict=False):
        if before is not None and entry.at != before.at:
            table.add_section()
        # Of a run that failed, the bytes of its share were never known.
        budget = mib(entry.budget) if entry.budget else entry.asked
        if entry.problem:
            table.add_row(budget, entry.policy, entry.problem)
            continue
        table.add_row(
            budget,
            entry.policy,
            mib(entry.peak),
            "yes" if entry.fits else f"no, {mib(entry.shortfall)} over",
            f"{entry.seconds:.4g} s",
            "~" * entry.cut_short + _ratio(entry.seconds, entry.plain),
            f"{entry.stalled:.3g} s",
            f"{entry.again:.3g} s",
            mib(entry.moved),
        )
    if any(entry.cut_short for entry in entries):
        table.caption = "~ a time limit ended the search: not proven the best"
    return table


def leaderboard(entries: Sequence[Entry]) -> Table:
    """Policies over many problems (each step on each machine at each budget), best first."""
    problems = {entry.at for entry in entries}
    solved = {entry.at for entry in entries if entry.fits}
    title = f"{len(problems)} problems, of which {len(solved)} are fitted by some policy"
    table = Table(title=title)
    for name in ("policy", "fits", "of plain", "of best", "wins", "no plan", "planning"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for standing in standings(entries):
        table.add_row(
            standing.policy,
            f"{standing.fitted / standing.problems:.0%}",
            f"{standing.slowdown:.3f}x" if standing.fitted else "-",
            f"{standing.behind:.3f}x" if standing.fitted else "-",
            str(standing.wins),
            str(standing.failed),
            f"{standing.took:.1f} s",
        )
    table.caption = (
        "of plain: the step's time over that of the step that keeps everything; of best: over that of "
        "the fastest policy; both are means over what the policy fits. planning: the longest"
    )
    return table


def curves(points: Sequence[Entry], plain: float) -> Table:
    """Step seconds by budget (rows) and policy (columns); a star marks what nothing beats in both."""
    best = set(front(points))
    columns = dict(by_policy(points))
    table = Table(title=f"Step seconds by budget; the plain step takes {plain:.4g} s")
    table.add_column("budget", justify="right")
    for name in columns:
        table.add_column(name, justify="right")
    for row in zip(*columns.values(), strict=True):
        table.add_row(mib(row[0].budget), *(_cell(point, best) for point in row))
    return table


def _cell(point: Entry, best: set[Entry]) -> str:
    if not point.fits:
        return "-"
    return f"{point.seconds:.4g}{' *' if point in best else ''}"


def holders(held: Mapping[str, int], most: int = 5) -> str:
    """What fills the memory, largest first."""
    shown = [f"{spoken(what)} {mib(n)}" for what, n in list(held.items())[:most]]
    return ", ".join(shown)


def _decisions(found: Outcome) -> str:
    counts: Sequence[str] = [f"{n} {what}s" for what, n in found.plan.counts().items() if n]
    return ", ".join(counts) or "keeps everything"


def _stalls(timeline: Timeline) -> str:
    found = [
        f"{seconds:.3g} s for {cause}" for cause, seconds in timeline.stalls.items() if seconds
    ]
    return ", ".join(found) or "none"


def _against(nbytes: int, of: int) -> str:
    return f"{mib(nbytes)} ({nbytes / of:.0%} of {mib(of)})" if of else mib(nbytes)


def _ratio(seconds: float, plain: float) -> str:
    return f"{seconds / plain:.2f}x" if plain else "-"
