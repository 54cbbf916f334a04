"""Policies compared on steps x machines x budgets, in processes, with results that outlive a run.

Each point that is found becomes one line of JSON in a file, keyed by what it is about: the trace, the
machine, the budget, the text of the policy. Whoever asks again gets it from there. A point that takes
longer than its limit is given up with its process, and the others go on.
"""

import json
import math
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple, TypeAlias

from penstock import policies
from penstock.errors import InternalError, PenstockError, UsageError
from penstock.ir.machine import Machine
from penstock.ir.policy import Problem
from penstock.ir.trace import Trace
from penstock.simulate.run import unbounded
from penstock.sizes import Share

__all__ = [
    "Case",
    "Entry",
    "Standing",
    "add",
    "compare",
    "kept",
    "level",
    "measured",
    "remembered",
    "settled",
    "standings",
]


class Case(NamedTuple):
    """A step on a machine, each with the name by which it was asked for."""

    step: str
    on: str
    trace: Trace
    machine: Machine


@dataclass(frozen=True, slots=True)
class Entry:
    """What a policy made of a case at a budget: one line of the results.

    What a run measured has the same form: `foretold` and `foretold_peak` are then what was predicted.
    """

    key: str
    step: str
    on: str
    budget: int  # bytes
    policy: str  # as it was asked for
    plain: float  # seconds of the step that keeps everything
    peak: int = 0  # predicted, as all that follows; or measured
    seconds: float = 0.0
    shortfall: int = 0  # bytes by which the plan misses the budget, on the device and below
    stalled: float = 0.0  # seconds
    again: float = 0.0  # seconds of recomputation
    moved: int = 0  # bytes over all links
    took: float = 0.0  # seconds of planning
    problem: str = ""  # why there is no plan
    limit: float = 0.0  # seconds after which planning was given up; 0: it was not
    asked: str = ""  # the budget in the words it was asked in; empty: in bytes
    full: int = 0  # bytes of the step that keeps everything; 0: unknown
    below: int = 0  # bytes of the shortfall that the tiers below lack
    swaps: int = 0  # decisions of the plan
    recomputes: int = 0
    places: int = 0
    cut_short: bool = False  # a time limit ended the policy's search: nothing is proven
    foretold: float = 0.0  # seconds
    foretold_peak: int = 0  # bytes

    @property
    def fits(self) -> bool:
        return not self.problem and not self.shortfall

    @property
    def at(self) -> tuple[str, str, str]:
        """Which problem it is about. Runs under one share have budgets that differ by some bytes."""
        return self.step, self.on, self.asked or str(self.budget)

    @property
    def least(self) -> int:
        """Bytes on the device with which this plan would fit."""
        return self.budget + self.shortfall - self.below

    @property
    def slowdown(self) -> float:
        """The step's time over that of the step that keeps everything; NaN if that takes none."""
        return self.seconds / self.plain if self.plain else math.nan


def compare(
    cases: Sequence[Case],
    budgets: Sequence[int | Share],
    names: Sequence[str],
    *,
    results: Path | None = None,
    processes: int | None = None,
    limit: float | None = None,
    within: float | None = None,
    told: Callable[[Entry], None] = lambda entry: None,
) -> list[Entry]:
    """Each policy on each case at each budget, in that order; `told` hears of each as it is found.

    What `results` holds already is not done again, and what is found is added to it. `limit` is in
    seconds of planning, for each point; a point that was given up is tried again under a longer one.
    `within`: seconds for all of them; those that are not found by then say so, and are not kept.
    Raises `UsageError` for a policy that does not exist, or if `results` is no such file.
    """
    for name in names:
        policies.configured(name)
    known = settled(results, limit)
    asked = list(_entries(cases, budgets, names))
    # A point that is asked for twice, as by a share and its bytes, is found once.
    jobs = {e.key: _Job(case, e) for case, e in asked if e.key not in known}
    for _, entry in asked:
        if entry.key in known:
            told(known[entry.key])
    workers = max(1, min(processes or os.cpu_count() or 1, len(jobs)))
    with closing(_found(cases, list(jobs.values()), workers, limit, within)) as all_found:
        for found in all_found:
            known[found.key] = found
            if results is not None:
                add(results, found)
            told(found)
    for key, (_, entry) in jobs.items():
        if key not in known:
            assert within is not None
            known[key] = replace(entry, problem=f"not found within {within:g} s")
            told(known[key])
    return [_as_asked(known[entry.key], entry) for _, entry in asked]


def remembered(
    cases: Sequence[Case],
    budgets: Sequence[int | Share],
    names: Sequence[str],
    known: Mapping[str, Entry],
) -> list[Entry]:
    """Those points of `compare` that are among the `known` ones, as `kept` reads them from a file."""
    asked = _entries(cases, budgets, names)
    return [_as_asked(known[entry.key], entry) for _, entry in asked if entry.key in known]


def _as_asked(found: Entry, entry: Entry) -> Entry:
    """A point may have been found under other names: two steps may be the same problem."""
    return replace(
        found,
        step=entry.step,
        on=entry.on,
        policy=entry.policy,
        asked=entry.asked,
        full=entry.full,
    )


def _entries(
    cases: Sequence[Case], budgets: Sequence[int | Share], names: Sequence[str]
) -> Iterator[tuple[int, Entry]]:
    """What is asked for: the number of its case, and the entry as far as it is known."""
    for number, case in enumerate(cases):
        trace, machine = case.trace, case.machine
        full = trace.peak + trace.slack
        plain = float(unbounded(trace, machine).seconds)
        # What decides a prediction, and no label.
        about = repr((trace.device, trace.slack, trace.ops, trace.values)), repr(machine)
        digests = [sha256(text.encode()).hexdigest() for text in about]
        for budget in budgets:
            nbytes = budget.of(full) if isinstance(budget, Share) else budget
            share = f"{100 * budget.fraction:g}%" if isinstance(budget, Share) else ""
            for name in names:
                key = sha256("\n".join([*digests, str(nbytes), name]).encode()).hexdigest()[:32]
                entry = Entry(key, case.step, case.on, nbytes, name, plain, asked=share, full=full)
                yield number, entry


# -- the file of results ------------------------------------------------------------------------

_HEAD = b'{"key": "'


def kept(path: Path) -> dict[str, Entry]:
    """The points in a file of results, by key; none if there is no file.

    A last line that was only half written, as a kill leaves it, is cut off. Raises `UsageError` for a
    file that holds anything else.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    *lines, rest = content.split(b"\n")
    entries = [_entry(f"{path}, line {n}", line) for n, line in enumerate(lines, 1)]
    if rest:
        if not (rest.startswith(_HEAD) or _HEAD.startswith(rest)):
            raise UsageError(_no_result(f"{path}, line {len(lines) + 1}"))
        os.truncate(path, len(content) - len(rest))
    return {entry.key: entry for entry in entries}


def settled(results: Path | None, limit: float | None) -> dict[str, Entry]:
    """The points in `results` that need not be found again: none that `limit` gives more time."""
    known = {} if results is None else kept(results)
    return {
        key: entry
        for key, entry in known.items()
        if not entry.limit or (limit is not None and limit <= entry.limit)
    }


def _entry(where: str, line: bytes) -> Entry:
    try:
        body = json.loads(line)
        entry = Entry(**body)
    except (ValueError, TypeError):
        raise UsageError(_no_result(where)) from None
    if any(type(getattr(entry, field.name)) is not field.type for field in fields(Entry)):
        raise UsageError(_no_result(where))
    return entry


def _no_result(where: str) -> str:
    return f"{where}: no result of penstock compare; delete the line, or name another file"


def add(path: Path, entry: Entry) -> None:
    """One more line; written whole, so that several programs may add to one file."""
    line = json.dumps(asdict(entry), allow_nan=False) + "\n"
    try:
        with path.open("ab", buffering=0) as file:
            file.write(line.encode())
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None


# -- processes ----------------------------------------------------------------------------------


class _Job(NamedTuple):
    case: int
    entry: Entry  # what is known before


_Answer: TypeAlias = Entry | None  # None: ready for the first job


class _Worker:
    """A process that plans one point after another, and can be given up."""

    def __init__(self) -> None:
        context = get_context(
            "spawn"
        )  # a fork would copy the locks of torch's threads, held or not
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.job: _Job | None = None
        self.case = -1  # that it was told last
        self.ends = math.inf  # on the monotonic clock

    def give(self, job: _Job, cases: Sequence[Case], limit: float | None) -> None:
        case = cases[job.case]
        told = (case.trace, case.machine) if job.case != self.case else None
        self.job, self.case = job, job.case
        self.ends = time.monotonic() + (math.inf if limit is None else limit)
        with suppress(BrokenPipeError, ConnectionResetError):  # it is dead: reading will tell
            self.pipe.send((told, job.entry))

    def end(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


def _found(
    cases: Sequence[Case],
    jobs: Sequence[_Job],
    processes: int,
    limit: float | None,
    within: float | None,
) -> Generator[Entry, None, None]:
    """Each job done, as it is done, until `within` seconds are over."""
    waiting = deque(jobs)
    workers = [_Worker() for _ in range(processes if jobs else 0)]
    over = math.inf  # until one is ready: the time that a process takes to start does not count
    try:
        while workers and time.monotonic() < over:
            patience = min(over, *(worker.ends for worker in workers)) - time.monotonic()
            ready = wait(
                [worker.pipe for worker in workers],
                None if patience == math.inf else max(0.0, patience),
            )
            for worker in list(workers):
                is_lost = False
                if worker.pipe in ready:
                    answer, is_lost = _answer(worker)
                    if within is not None and over == math.inf:
                        over = time.monotonic() + within
                elif worker.job is not None and time.monotonic() >= worker.ends:
                    assert limit is not None
                    gave_up = f"planning was given up after {limit:g} s"
                    lost = float(limit)
                    answer = replace(worker.job.entry, problem=gave_up, limit=lost, took=lost)
                    is_lost = True
                else:
                    continue
                worker.job, worker.ends = None, math.inf
                if is_lost or not waiting:
                    worker.end()
                    workers.remove(worker)
                if is_lost and waiting:
                    workers.append(_Worker())
                elif not is_lost and waiting:
                    worker.give(waiting.popleft(), cases, limit)
                if answer is not None:
                    yield answer
    finally:
        for worker in workers:
            worker.end()


def _answer(worker: _Worker) -> tuple[_Answer, bool]:
    """What it says, and whether it died instead."""
    try:
        answer: _Answer = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join()
        died = f"its process ended with code {worker.process.exitcode}"
        if worker.job is None:
            raise InternalError(f"a process that was to compare policies: {died}") from None
        return replace(worker.job.entry, problem=died), True
    return answer, False


def _serve(pipe: Connection) -> None:
    """The life of a worker; it ends with the pipe."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # who waits for it gets the signal too, and ends it
    try:
        pipe.send(None)
        while True:
            told, entry = pipe.recv()
            if told is not None:
                trace, machine = told
            try:
                answer = measured(trace, machine, entry)
            except Exception as error:  # a policy's bug is a fact about that policy
                bug = f"a bug: {type(error).__name__}: {_line(error)}"
                answer = replace(entry, problem=bug)
            pipe.send(answer)
    except (EOFError, BrokenPipeError):
        pass


def measured(trace: Trace, machine: Machine, entry: Entry) -> Entry:
    """`entry` with what its policy makes of its budget."""
    policy = policies.configured(entry.policy)
    began = time.perf_counter()
    try:
        found = policies.ask(policy, Problem(trace, machine, entry.budget))
    except PenstockError as error:
        return replace(entry, problem=_line(error), took=time.perf_counter() - began)
    timeline = found.timeline
    return replace(
        entry,
        peak=int(timeline.peak),
        seconds=float(timeline.seconds),
        shortfall=int(found.missing),
        stalled=float(timeline.stall_seconds),
        again=float(timeline.recompute_seconds),
        moved=int(sum(timeline.traffic.values())),
        took=time.perf_counter() - began,
        below=int(found.overfull),
        swaps=len(found.plan.swaps),
        recomputes=len(found.plan.recomputes),
        cut_short=found.plan.cut_short,
        places=len(found.plan.places),
    )


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or "without a message"


# -- who is best --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Standing:
    """A policy over all problems: each step on each machine at each budget is one."""

    policy: str
    problems: int
    fitted: int  # how many it fits
    slowdown: float  # over keep-all, mean of those that it fits; NaN if it fits none
    behind: float  # its time over that of the fastest policy there, mean of the same
    wins: int  # how often none is faster
    failed: int  # how often it made no plan
    took: float  # seconds of planning, at most


_EQUAL = 1e-9
"""Relative difference of two times that counts as none."""
_NOTICED = 5e-4
"""The same for a person who chooses."""


def standings(entries: Sequence[Entry]) -> list[Standing]:
    """Best first: who fits most, then who is least slow there."""
    fastest: dict[tuple[str, str, str], float] = {}
    for entry in filter(lambda entry: entry.fits, entries):
        fastest[entry.at] = min(fastest.get(entry.at, math.inf), entry.seconds)
    found = []
    for name in dict.fromkeys(entry.policy for entry in entries):
        own = [entry for entry in entries if entry.policy == name]
        fit = [entry for entry in own if entry.fits]
        behind = [_ratio(e.seconds, fastest[e.at]) for e in fit]
        found.append(
            Standing(
                name,
                len(own),
                len(fit),
                _mean([entry.slowdown for entry in fit]),
                _mean(behind),
                sum(ratio <= 1 + _EQUAL for ratio in behind),
                sum(bool(entry.problem) for entry in own),
                max(entry.took for entry in own),
            )
        )
    return sorted(found, key=_place)


def level(found: Sequence[Standing]) -> list[Standing]:
    """Those of `standings` whom nothing that one would notice sets apart from the first."""
    first = found[0]
    return [
        one
        for one in found
        if one.fitted == first.fitted > 0
        and (one is first or one.slowdown <= first.slowdown * (1 + _NOTICED))
    ]


def _ratio(one: float, other: float) -> float:
    return one / other if other else 1.0


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _place(standing: Standing) -> tuple[float, float, str]:
    slowdown = math.inf if math.isnan(standing.slowdown) else standing.slowdown
    return -standing.fitted / standing.problems, slowdown, standing.policy
