"""Policies run for real on this machine, one after another, each in a process of its own.

The step comes from an architecture (`hf:gpt2?batch=4`, `zoo:bert`, `package.module:function`). It runs
plainly first; then under each budget with each policy. Parameters must come out the same, bit for bit.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from penstock import policies
from penstock.dispatch.resident import TightAllocator
from penstock.errors import PenstockError, UsageError
from penstock.leaderboard import Entry, add, settled
from penstock.planner import CHARTED
from penstock.session import Session, device_of, settle
from penstock.zoo.architectures import parse

__all__ = ["execute"]

_RECORDED = 3
"""Steps before the first planned one, at most: a step with two optimizers is recorded three times."""
_MEASURED = 4
"""Planned steps that are measured, after those from which the session still learns."""
_STEPS = _RECORDED + CHARTED + _MEASURED


def execute(
    steps: Sequence[str],
    budgets: Sequence[str],
    names: Sequence[str],
    *,
    results: Path | None = None,
    limit: float | None = None,
    told: Callable[[Entry], None] = lambda entry: None,
) -> list[Entry]:
    """Each policy on each step under each budget, measured: `Entry`'s times and bytes are real.

    As `leaderboard.compare` does, it adds what it finds to `results` and does not do it again. `limit`
    is in seconds, for each run of some ten steps. A run whose parameters differ from the plain run's
    has that as its problem. Raises `UsageError` for what names no architecture or policy.
    """
    for name in names:
        policies.configured(name)
    for step in steps:
        parse(step)
    known = settled(results, limit)
    found = []
    for step in steps:
        plain: _Answer | None = None
        for budget in budgets:
            for name in names:
                key = sha256(f"run\n{step}\n{budget}\n{name}".encode()).hexdigest()[:32]
                entry = known.get(key)
                if entry is None:
                    plain = plain or _apart(_Run(step), limit)
                    asked = _Run(step, budget, name)
                    ran = plain if isinstance(plain, _Failed) else _apart(asked, limit)
                    entry = _entry(Entry(key, step, "run here", 0, name, 0.0), plain, ran)
                    if results is not None:
                        add(results, entry)
                found.append(entry)
                told(entry)
    return found


class _Run(NamedTuple):
    step: str
    budget: str | None = None  # None: plain PyTorch
    policy: str = ""


class _Ran(NamedTuple):
    """What a run measured; but for seconds and bits, nothing of a plain one."""

    seconds: float  # of a step
    bits: str  # of all parameters in the end
    budget: int = 0
    peak: int = 0
    stalled: float = 0.0
    moved: int = 0
    took: float = 0.0  # planning


class _Failed(NamedTuple):
    """Why nothing was measured."""

    why: str
    limit: float = 0.0  # seconds after which it was given up; 0: it was not


_Answer: TypeAlias = _Ran | _Failed


def _entry(entry: Entry, plain: _Answer, ran: _Answer) -> Entry:
    if isinstance(plain, _Failed):
        return replace(entry, problem=f"the plain run: {plain.why}", limit=plain.limit)
    if isinstance(ran, _Failed):
        return replace(entry, problem=ran.why, limit=ran.limit)
    return replace(
        entry,
        budget=ran.budget,
        plain=plain.seconds,
        peak=ran.peak,
        seconds=ran.seconds,
        shortfall=max(0, ran.peak - ran.budget),
        stalled=ran.stalled,
        moved=ran.moved,
        took=ran.took,
        problem="" if ran.bits == plain.bits else "its parameters are not those of the plain run",
    )


def _apart(run: _Run, limit: float | None) -> _Answer:
    """The run in a fresh process: memory is measured from what a process holds when it begins."""
    context = get_context("spawn")
    pipe, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, run))
    process.start()
    theirs.close()
    try:
        if not pipe.poll(limit):
            assert limit is not None
            return _Failed(f"it was given up after {limit:g} s", float(limit))
        answer: _Answer = pipe.recv()
    except EOFError:
        process.join()
        return _Failed(f"its process ended with code {process.exitcode}")
    finally:
        process.kill()
        process.join()
        pipe.close()
    return answer


def _child(pipe: Connection, run: _Run) -> None:
    try:
        answer: _Answer = _measured(run)
    except PenstockError as error:
        answer = _Failed(next(iter(str(error).splitlines()), type(error).__name__))
    except Exception as error:  # of somebody's step, or of a policy: a fact about them
        answer = _Failed(f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")
    pipe.send(answer)


def _measured(run: _Run) -> _Ran:
    device = device_of(None)
    settle()
    torch.manual_seed(0)
    with _registering() as parameters, device:
        step = parse(run.step).make()
        if run.budget is not None:
            return _under(run, step, parameters)
        allocator = TightAllocator() if device.type == "cpu" else None
        seconds = []
        for number in range(_STEPS):
            began = time.perf_counter()
            step(number)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        if allocator is not None:
            allocator.close()
        return _Ran(median(seconds[2:]), _bits(parameters))


def _under(run: _Run, step: Callable[[int], Any], parameters: list[nn.Parameter]) -> _Ran:
    with Session(run.budget, policy=run.policy) as session:
        for number in range(_STEPS):
            step(number)
    planned = [report for report in session.reports if report.mode == "planned"]
    if not planned:
        raise UsageError(f"no step of {_STEPS} was planned: each was another than the one before")
    late = planned[CHARTED:] or planned
    return _Ran(
        median(report.seconds for report in late),
        _bits(parameters),
        session.engine.budget,
        max(report.peak for report in planned),
        median(sum(report.stalls.values()) for report in late),
        max(sum(report.traffic.values()) for report in late),
        max(report.planning_seconds for report in session.reports),
    )


@contextmanager
def _registering() -> Iterator[list[nn.Parameter]]:
    """The parameters that modules get while it lasts."""
    found: list[nn.Parameter] = []

    def register(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            found.append(parameter)

    handle = register_module_parameter_registration_hook(register)
    try:
        yield found
    finally:
        handle.remove()


def _bits(parameters: Sequence[nn.Parameter]) -> str:
    digest = sha256()
    for parameter in parameters:
        flat = parameter.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return digest.hexdigest()
