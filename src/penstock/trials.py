"""Policies run for real on this machine, one after another, each in a process of its own.

The step comes from an architecture (`hf:gpt2?batch=4`, `zoo:bert`, `package.module:function`). It runs
plainly first; then under each budget with each policy. Losses, parameters and buffers must come out
the same, bit for bit.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from penstock import policies
from penstock.dispatch.schema import tensors_in
from penstock.errors import PenstockError
from penstock.ir.trace import Trace
from penstock.leaderboard import Entry, add, settled
from penstock.planner import LEARNING
from penstock.record.settle import settle
from penstock.session import Session, StepReport, device_of
from penstock.zoo.architectures import parse

__all__ = ["RECORDED", "Answer", "Bits", "Failed", "Ran", "Trial", "attempt", "bits_of", "execute"]

RECORDED = 3
"""Steps before the first planned one, at most: a step with two optimizers is recorded three times."""
_MEASURED = 4
"""Planned steps that are measured, after those from which the session still learns."""
_STEPS = RECORDED + LEARNING + _MEASURED


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
    is in seconds, for each run of some ten steps. A run that comes to other bits than the plain run
    has that as its problem. Raises `UsageError` for what names no architecture or policy.
    """
    for name in names:
        policies.configured(name)
    for step in steps:
        parse(step)
    known = settled(results, limit)
    found = []
    for step in steps:
        plain: Answer | None = None
        for budget in budgets:
            for name in names:
                key = sha256(f"run\n{step}\n{budget}\n{name}".encode()).hexdigest()[:32]
                entry = known.get(key)
                if entry is None:
                    plain = plain or attempt(Trial(step), limit)
                    asked = Trial(step, budget, name)
                    ran = plain if isinstance(plain, Failed) else attempt(asked, limit)
                    new = Entry(key, step, "run here", 0, name, 0.0, asked=budget)
                    entry = _entry(new, plain, ran)
                    if results is not None:
                        add(results, entry)
                found.append(replace(entry, asked=budget))
                told(found[-1])
    return found


class Trial(NamedTuple):
    """A step that is to run, some ten times."""

    step: str
    budget: str | None = None  # None: plain PyTorch
    policy: str = ""


class Bits(NamedTuple):
    """Checksums of what all steps together came to."""

    losses: str  # each number that a step returned
    parameters: str
    buffers: str

    def differing(self, other: "Bits") -> list[str]:
        """What differs, by name."""
        return [what for what, a, b in zip(self._fields, self, other, strict=True) if a != b]


class Ran(NamedTuple):
    """What a run measured."""

    seconds: float  # of a step
    bits: Bits
    budget: int = 0  # bytes; 0: a plain run
    reports: tuple[StepReport, ...] = ()  # of all steps; none of a plain run
    full: int = 0  # bytes that the recorded step takes without a budget

    @property
    def planned(self) -> list[StepReport]:
        return [report for report in self.reports if report.mode == "planned"]

    @property
    def late(self) -> list[StepReport]:
        """Those of the planned steps that come when the session has learnt, if there are any."""
        return self.planned[LEARNING:] or self.planned


class Failed(NamedTuple):
    """Why nothing was measured."""

    why: str
    limit: float = 0.0  # seconds after which it was given up; 0: it was not


Answer: TypeAlias = Ran | Failed


def _entry(entry: Entry, plain: Answer, ran: Answer) -> Entry:
    if isinstance(plain, Failed):
        return replace(entry, problem=f"the plain run: {plain.why}", limit=plain.limit)
    if isinstance(ran, Failed):
        return replace(entry, problem=ran.why, limit=ran.limit)
    if not ran.planned:
        return replace(entry, problem=_differ(ran, plain) or _NO_PLAN)
    peak, decided = max(report.peak for report in ran.planned), ran.late[-1].decisions
    return replace(
        entry,
        budget=ran.budget,
        plain=plain.seconds,
        peak=peak,
        seconds=ran.seconds,
        shortfall=max(0, peak - ran.budget),
        stalled=median(sum(report.stalls.values()) for report in ran.late),
        moved=max(sum(report.traffic.values()) for report in ran.late),
        took=max(report.planning_seconds for report in ran.reports),
        problem=_differ(ran, plain),
        full=ran.full,
        swaps=decided.get("swap", 0),
        recomputes=decided.get("recompute", 0),
        foretold=median(report.predicted_seconds or 0.0 for report in ran.late),
        foretold_peak=max(report.predicted_peak or 0 for report in ran.planned),
    )


_NO_PLAN = f"no step of {_STEPS} was planned: each was another than the one before"


def _differ(ran: Ran, plain: Ran) -> str:
    differing = " and ".join(ran.bits.differing(plain.bits))
    return f"its {differing} are not those of the plain run" if differing else ""


def attempt(trial: Trial, limit: float | None = None) -> Answer:
    """Run it in a fresh process: memory is measured from what a process holds when it begins.

    `limit` is in seconds.
    """
    context = get_context("spawn")
    pipe, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, trial))
    process.start()
    theirs.close()
    try:
        if not pipe.poll(limit):
            assert limit is not None
            return Failed(f"it was given up after {limit:g} s", float(limit))
        answer: Answer = pipe.recv()
    except EOFError:
        process.join()
        return Failed(f"its process ended with code {process.exitcode}")
    finally:
        process.kill()
        process.join()
        pipe.close()
    return answer


def _child(pipe: Connection, trial: Trial) -> None:
    try:
        answer: Answer = _measured(trial)
    except PenstockError as error:
        answer = Failed(next(iter(str(error).splitlines()), type(error).__name__))
    except Exception as error:  # of somebody's step, or of a policy: a fact about them
        answer = Failed(f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")
    pipe.send(answer)


def _measured(trial: Trial) -> Ran:
    device = device_of(None)
    settle()
    torch.manual_seed(0)
    with _registering() as state, device:
        step = parse(trial.step).make()
        if trial.budget is not None:
            return _under(trial.budget, trial.policy, step, state)
        seconds, losses = [], []
        for number in range(_STEPS):
            began = time.perf_counter()
            result = step(number)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
            losses += _numbers(result)
            del result
        return Ran(median(seconds[2:]), state.bits(losses))


def _under(budget: str, policy: str, step: Callable[[int], Any], state: "_State") -> Ran:
    losses: list[str] = []
    full = [0]  # of each recorded shape of the step; what is learnt of it later is another matter

    def note(trace: Trace) -> None:
        full.append(trace.peak + trace.slack)

    with Session(budget, policy=policy, on_recorded=note) as session:
        for number in range(_STEPS):
            losses += _numbers(step(number))
    bits = state.bits(losses)
    ran = Ran(0.0, bits, session.budget, tuple(session.reports), max(full))
    seconds = [report.seconds for report in ran.late or ran.reports]
    return ran._replace(seconds=median(seconds))


def _numbers(result: Any) -> list[str]:
    """The numbers in what a step returned, in full: read as a script would, so that a session sees it."""
    numbers = [one.item() for one in tensors_in([result]) if one.numel() == 1]
    numbers += [result] if isinstance(result, float) else []
    return [repr(number) for number in numbers]


class _State(NamedTuple):
    """All that modules hold."""

    parameters: list[Tensor]
    buffers: list[Tensor]

    def bits(self, losses: Sequence[str]) -> Bits:
        told = sha256(" ".join(losses).encode()).hexdigest()
        return Bits(told, bits_of(self.parameters), bits_of(self.buffers))


@contextmanager
def _registering() -> Iterator[_State]:
    """The parameters and buffers that modules get while it lasts."""
    found = _State([], [])

    def noted(kept: list[Tensor]) -> Callable[..., None]:
        def note(_module: Any, _name: str, tensor: Tensor | None) -> None:
            if tensor is not None:
                kept.append(tensor)

        return note

    handles = (
        register_module_parameter_registration_hook(noted(found.parameters)),
        register_module_buffer_registration_hook(noted(found.buffers)),
    )
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def bits_of(tensors: Iterable[Tensor]) -> str:
    """A digest of their bytes."""
    digest = sha256()
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return digest.hexdigest()
