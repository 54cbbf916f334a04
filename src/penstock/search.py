"""Searches over plans: the curve from budget to step time, and the largest batch that fits."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context

from penstock import policies
from penstock.errors import PenstockError
from penstock.ir.machine import Machine
from penstock.ir.policy import Problem
from penstock.ir.trace import Trace
from penstock.simulate.least import least_budget
from penstock.solve.best import Outcome

__all__ = ["Largest", "Point", "budgets_for", "by_policy", "curve", "front", "largest"]


@dataclass(frozen=True, slots=True)
class Point:
    """What one policy makes of one budget."""

    policy: str  # as it was asked for
    budget: int  # bytes
    peak: int = 0  # predicted, bytes
    seconds: float = 0.0  # predicted
    shortfall: int = 0  # bytes by which the plan misses the budget
    problem: str = ""  # why there is no plan

    @property
    def fits(self) -> bool:
        return not self.problem and not self.shortfall


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
    told: Callable[[Point], None] = lambda point: None,
) -> list[Point]:
    """Each policy at each budget, in parallel processes; `told` hears of each point as it is found.

    In the order of `names`, then of `budgets`. A policy that cannot plan the step says so in its
    points, and so do those that were not found within `limit` seconds; `UsageError` for a policy that
    does not exist is raised at once.
    """
    for name in names:
        policies.configured(name)
    # All policies at one budget first: where time runs out, they can still be compared.
    jobs = [(name, budget) for budget in budgets for name in names]
    workers = min(processes or os.cpu_count() or 1, len(jobs))
    points: dict[tuple[str, int], Point] = {}
    if workers <= 1 and limit is None:
        for job in jobs:
            points[job] = _point(trace, machine, *job)
            told(points[job])
    else:
        for job, point in _in_parallel(trace, machine, jobs, workers, limit):
            points[job] = point
            told(point)
    ordered = [(name, budget) for name in names for budget in budgets]
    return [
        points.get(job) or Point(*job, problem=f"not found within {limit} s") for job in ordered
    ]


def _in_parallel(
    trace: Trace,
    machine: Machine,
    jobs: Sequence[tuple[str, int]],
    workers: int,
    limit: float | None,
) -> Iterator[tuple[tuple[str, int], Point]]:
    """The points of `jobs` as they are found, until `limit` seconds are over."""
    # Spawned: a fork would copy the locks of torch's threads, held or not.
    with ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=_remember, initargs=(trace, machine)
    ) as pool:
        pool.submit(len, ()).result()  # the time that a process takes to start does not count
        waiting = {pool.submit(_of_remembered, *job): job for job in jobs}
        try:
            for done in as_completed(waiting, timeout=limit):
                yield waiting[done], done.result()
        except TimeoutError:
            for worker in list(pool._processes.values()):  # one may be deep in a long search
                worker.kill()
            pool.shutdown(wait=False, cancel_futures=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both budget and time, by rising budget (Pareto)."""
    best: list[Point] = []
    for point in sorted((p for p in points if p.fits), key=lambda p: (p.budget, p.seconds)):
        if not best or point.seconds < best[-1].seconds:
            best.append(point)
    return best


def by_policy(points: Sequence[Point]) -> Iterator[tuple[str, list[Point]]]:
    """The points of each policy, in the order in which policies were asked."""
    names = dict.fromkeys(point.policy for point in points)
    return ((name, [point for point in points if point.policy == name]) for name in names)


@dataclass(frozen=True, slots=True)
class Largest:
    """The largest size of a step that fits, and what was found on the way."""

    size: int  # 0: not even the smallest fits
    point: Point | None  # of that size
    tried: tuple[tuple[int, Point], ...]  # in the order of trial


def largest(
    trace_of: Callable[[int], Trace],
    machine: Machine,
    budget: int,
    policy: str,
    *,
    at_most: int = 1 << 20,
    told: Callable[[int, Point], None] = lambda size, point: None,
) -> Largest:
    """The largest `size` for which `policy` fits `trace_of(size)` into `budget`.

    Doubles until it does not fit, then halves the interval: about 2 log2(size) traces. Assumes that
    what fits in one size fits in all smaller ones.
    """
    tried: list[tuple[int, Point]] = []

    def fits(size: int) -> bool:
        trace = trace_of(size)
        if least_budget(trace).nbytes > budget:
            point = Point(policy, budget, problem="one of its ops needs more at once")
        else:
            point = _point(trace, machine, policy, budget)
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


# -- one point ----------------------------------------------------------------------------------

_remembered: list[tuple[Trace, Machine]] = []


def _remember(trace: Trace, machine: Machine) -> None:
    """In a worker: what all its points are about, sent once."""
    _remembered[:] = [(trace, machine)]


def _of_remembered(name: str, budget: int) -> Point:
    return _point(*_remembered[0], name, budget)


def _point(trace: Trace, machine: Machine, name: str, budget: int) -> Point:
    point = Point(name, budget)
    try:
        found: Outcome = policies.ask(policies.configured(name), Problem(trace, machine, budget))
    except PenstockError as error:
        return replace(point, problem=str(error).splitlines()[0])
    return replace(
        point,
        peak=found.timeline.peak,
        seconds=found.timeline.seconds,
        shortfall=found.missing,
    )
