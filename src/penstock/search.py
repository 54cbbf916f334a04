"""Searches over plans: the curve from budget to step time, and the largest batch that fits."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from penstock.ir.machine import Machine
from penstock.ir.trace import Trace
from penstock.leaderboard import Case, Entry, compare, measured
from penstock.simulate.least import least_budget
from penstock.simulate.run import unbounded

__all__ = ["Largest", "budgets_for", "by_policy", "curve", "front", "largest"]


def budgets_for(trace: Trace, points: int) -> list[int]:
    """Budgets from the least that any plan could meet to all that the plain step takes."""
    least, most = least_budget(trace).nbytes, trace.peak + trace.slack
    if points < 2 or least >= most:
        return [most]
    return [round(least + (most - least) * step / (points - 1)) for step in range(points)]


def curve(
    trace: Trace,
    machine: Machine,
    budgets: Sequence[int],
    names: Sequence[str],
    *,
    processes: int | None = None,
    limit: float | None = None,
    told: Callable[[Entry], None] = lambda entry: None,
) -> list[Entry]:
    """Each policy at each budget, in parallel processes; `told` hears of each as it is found.

    In the order of `names`, then of `budgets`. A policy that cannot plan the step says so in its
    entries, and so do those that were not found within `limit` seconds; `UsageError` for a policy that
    does not exist is raised at once.
    """
    case = Case(trace.label, machine.device.name, trace, machine)
    # All policies at one budget first: where time runs out, they can still be compared.
    found = compare([case], budgets, names, processes=processes, within=limit, told=told)
    return [entry for n in range(len(names)) for entry in found[n :: len(names)]]


def front(points: Sequence[Entry], over: Literal["budget", "peak"] = "budget") -> list[Entry]:
    """The points that no other beats in both bytes and time, by rising bytes (Pareto)."""
    best: list[Entry] = []
    fitting = (point for point in points if point.fits)
    for point in sorted(fitting, key=lambda point: (getattr(point, over), point.seconds)):
        if not best or point.seconds < best[-1].seconds:
            best.append(point)
    return best


def by_policy(points: Sequence[Entry]) -> Iterator[tuple[str, list[Entry]]]:
    """The points of each policy, in the order in which policies were asked."""
    names = dict.fromkeys(point.policy for point in points)
    return ((name, [point for point in points if point.policy == name]) for name in names)


@dataclass(frozen=True, slots=True)
class Largest:
    """The largest size of a step that fits, and what was found on the way."""

    size: int  # 0: not even the smallest fits
    point: Entry | None  # of that size
    tried: tuple[tuple[int, Entry], ...]  # in the order of trial


def largest(
    trace_of: Callable[[int], Trace],
    machine: Machine,
    budget: int,
    policy: str,
    *,
    at_most: int = 1 << 20,
    told: Callable[[int, Entry], None] = lambda size, point: None,
) -> Largest:
    """The largest `size` for which `policy` fits `trace_of(size)` into `budget`.

    Doubles until it does not fit, then halves the interval: about 2 log2(size) traces. Assumes that
    what fits in one size fits in all smaller ones.
    """
    tried: list[tuple[int, Entry]] = []

    def fits(size: int) -> bool:
        trace = trace_of(size)
        plain = unbounded(trace, machine).seconds
        point = Entry("", str(size), machine.device.name, budget, policy, plain)
        if least_budget(trace).nbytes > budget:
            point = replace(point, problem="one of its ops needs more at once")
        else:
            point = measured(trace, machine, point)
        tried.append((size, point))
        told(size, point)
        return point.fits

    low, high = 0, 1
    while high <= at_most and fits(high):
        low, high = high, 2 * high
    high = min(high, at_most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return Largest(low, dict(tried).get(low), tuple(tried))
