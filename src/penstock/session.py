"""A session: record the step, plan it, run the plan, plan again when the step changes."""

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

import torch
from torch._ops import OpOverload
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils._python_dispatch import _disable_current_modes

from penstock import policies
from penstock.dispatch.clock import Clock
from penstock.dispatch.compiling import uncompiled
from penstock.dispatch.doors import Doors
from penstock.dispatch.resident import (
    CAllocator,
    CudaMeter,
    live_tensor_bytes,
    meter_for,
)
from penstock.engine.engine import Engine
from penstock.engine.log import Log
from penstock.engine.mount import mount
from penstock.errors import BudgetError, UsageError
from penstock.ir.machine import Machine
from penstock.ir.policy import Policy
from penstock.ir.timeline import Timeline
from penstock.ir.trace import Trace
from penstock.novelty import Novelty
from penstock.planner import Course, Planner
from penstock.record.machine import describe
from penstock.record.measure import stopwatch_for
from penstock.record.settle import settle
from penstock.record.step import Recorder, Recording
from penstock.simulate.allocators import allocations, least_reserved
from penstock.simulate.least import least_budget
from penstock.simulate.run import unbounded
from penstock.sizes import Share, parse_budget, parse_size
from penstock.solve.best import Outcome

__all__ = ["Session", "StepReport", "device_of"]


Mode: TypeAlias = Literal["recorded", "planned", "adapted", "on demand"]


@dataclass(frozen=True)
class StepReport:
    """What one step took. Bytes count above what the process held when the budget took effect."""

    number: int
    mode: Mode  # `adapted`: by the plan of a larger step, which foretells nothing of this one
    seconds: float
    peak: int
    planning_seconds: float = 0.0  # spent before it: to plan, and to move to the plan's start
    predicted_seconds: float | None = None  # simulated, times the machine's pace
    predicted_peak: int | None = None  # as the plan's last steps had it, once some are measured
    simulated_peak: int | None = None
    pace: float = 1.0  # measured over simulated seconds, in the steps before
    stalls: dict[str, float] = field(default_factory=dict)  # seconds by cause
    traffic: dict[str, int] = field(default_factory=dict)  # bytes by link
    decisions: dict[str, int] = field(default_factory=dict)
    events: tuple[str, ...] = ()


class Session:
    """One training loop under a budget. Made by `penstock.fit`; a context manager.

    `on_close` is called with the session when it has ended, however it ended; with it, every planned
    step is measured op by op, not only the first.
    """

    _running: "Session | None" = None

    def __init__(
        self,
        budget: str | int | Share | None = None,
        *,
        policy: str | Policy = "auto",
        tier: str | None = None,
        host_budget: str | None = None,
        disk_budget: str | None = None,
        device: str | torch.device | None = None,
        on_step: Callable[[StepReport], None] | None = None,
        on_recorded: Callable[[Trace], None] | None = None,
        on_close: Callable[["Session"], None] | None = None,
        verify: bool = False,
        base_at_first_tensor: bool = False,
    ) -> None:
        self.asked = None if budget is None else parse_budget(budget)
        self.policy = policies.configured(policy) if isinstance(policy, str) else policy
        self.policy_name = policy if isinstance(policy, str) else type(policy).__name__
        self.device = device_of(device)
        self.reports: list[StepReport] = []
        self._tier = tier
        self._host_budget = None if host_budget is None else parse_size(host_budget, "host budget")
        self._disk_budget = None if disk_budget is None else parse_size(disk_budget, "disk budget")
        self._on_close = on_close
        self._on_step = on_step
        self._verify = verify
        self._on_recorded = on_recorded
        self._base_at_first_tensor = base_at_first_tensor
        self._optimizers: list[int] = []  # ids, in the order in which they were first seen
        self.measured: Timeline | None = None  # of the last charted step
        self.charted: Outcome | None = None  # the plan that it followed
        self.samples: list[tuple[float, int]] = []  # of the same: seconds, bytes held
        self._novelty = Novelty()
        self._recorded: Trace | None = None
        self._course: Course | None = None  # of the step that was followed last
        self._share = 0  # bytes, if the budget is a share
        self._ended: float | None = None  # when the last step ended

    # -- life --------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if Session._running is not None:
            raise UsageError("a Penstock session is already running in this process")
        settle()
        gc.collect()  # tensors that only cycles keep would count against the budget
        with ExitStack() as undo:
            self._open(undo)
            self._undo = undo.pop_all()
        return self

    def _open(self, undo: ExitStack) -> None:
        """Begin; `undo` gets what ends it, also where beginning fails halfway."""
        Session._running = self
        undo.callback(setattr, Session, "_running", None)
        on_cpu = self.device.type == "cpu"
        self._allocator = CAllocator() if on_cpu else None
        if self._allocator is not None:
            undo.callback(self._allocator.loosen)
        self.meter = meter_for(self.device)
        mounted = mount(self._tier, self.device, self._host_budget, self._disk_budget)
        with ExitStack() as tiers:
            for one in mounted:
                tiers.callback(one.close)
            facts = tuple(one.store.probe() for one in mounted)
            may_keep = self._allocator is not None and self._allocator.may_keep
            machine = describe(self.device, facts, may_keep_freed=may_keep)
            self._planner = Planner(self.policy, machine)
            # What a tier beside a CPU fills is a tensor too.
            base = self.meter.resident() - (live_tensor_bytes(self.device) if on_cpu else 0)
            self.engine = Engine(
                self.device,
                mounted,
                self._limit_while_recording(),
                self.meter,
                base if on_cpu else 0,
                verify=self._verify,
                allocator=self._allocator,
                rebase=on_cpu and self._base_at_first_tensor,
            )
            tiers.pop_all()  # the engine closes them
        undo.callback(self.engine.close)
        undo.callback(self.engine.restore)
        if isinstance(self.meter, CudaMeter):  # what is away may be more than there was room for
            share = torch.cuda.get_per_process_memory_fraction(self.device)
            undo.callback(torch.cuda.set_per_process_memory_fraction, share, self.device)
            if isinstance(self.asked, int):
                self._cap(self.asked)
        self._recorder = Recorder(self.device, stopwatch_for(self.device, self.meter))
        undo.callback(self._recorder.close)
        undo.enter_context(uncompiled())
        doors = Doors(self._knock, self._in_thread)
        undo.callback(doors.close)
        doors.open()
        for register, hook in (
            (register_optimizer_step_pre_hook, self._before_optimizer),
            (register_optimizer_step_post_hook, self._after_optimizer),
        ):
            undo.callback(register(hook).remove)
        self._begin()
        self._clock = self.engine.clock = Clock(self.engine.handler)
        undo.enter_context(self._clock)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._undo.__exit__(kind, error, traceback)
        finally:
            if self._on_close is not None:
                self._on_close(self)

    # -- steps -------------------------------------------------------------------------------

    def step(self) -> None:
        """Say that a step has ended. Needed only where no `torch.optim` optimizer steps."""
        with _disable_current_modes():
            self._end()
            self._begin()

    def _begin(self) -> None:
        self._traffic = dict(self.engine.manager.statistics.traffic)
        courses = self._planner.courses
        self.engine.uncharted = [one.program for one in courses if not one.is_charted]
        likely = self._planner.likely()
        # Is nothing left that has all memory given back? Not what is to be recorded, as long as it may
        # be a known step: another one may come but once an epoch.
        is_learnt = likely is not None and not (likely.is_awaited or self._novelty.looked_at)
        self._is_calm = is_learnt and not self._novelty.is_due
        keeps = (
            is_learnt
            and all(course.recording.trace.is_dense for course in courses)
            and self.engine.room.may_keep_freed
        )
        if likely is not None and likely.program is not self.engine.program:
            self._begin_as(likely)  # one change less on its way
        if self._novelty.is_due:
            self._recorder.open()
            self._recorder.begin()
            self.engine.tolerant = True
            self.engine.begin_step(
                self._record,
                may_be_known=not self._novelty.looked_at,
                alike=self._novelty.alike,
            )
        else:
            self._recorder.pause()
            self.engine.tolerant = any(course.is_young for course in courses)
            is_charted = bool(self.engine.uncharted) or self._on_close is not None
            self.engine.begin_step(charted=is_charted)
        if keeps:
            self.engine.room.keep_freed()
        else:
            self.engine.room.return_freed()
        self._await_device()
        self.engine.room.reset_peak()
        self._began = time.perf_counter()
        self._planned_for = 0.0 if self._ended is None else self._began - self._ended

    def _begin_as(self, course: Course) -> None:
        others = [other.program for other in self._planner.courses if other is not course]
        self.engine.follow_program(course.program, others)

    def _record(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._recorder.run(func, args, kwargs, arrived=self.engine.arrived)

    def _await_device(self) -> None:
        """Let a GPU catch up where a step is measured: its time would count for the next one."""
        if self.device.type == "cuda" and (self._novelty.is_due or self.engine.log is not None):
            torch.cuda.synchronize(self.device)

    def _end(self, *, complete: bool = True) -> None:
        self._await_device()
        self._ended = time.perf_counter()
        seconds = self._ended - self._began
        peak, needed = self.engine.room.peak(), self.engine.room.needed()
        happened = self.engine.happened
        is_planned = self.engine.is_following and not happened.fell_back
        followed = self.engine.program if is_planned else None
        log = self.engine.log if followed is not None else None
        if log is not None and self.device.type == "cuda":  # the host did not wait, the device did
            happened.stalls = log.stalls()
        self.engine.end_step()
        is_exact = happened.likeness == 1.0
        mode: Mode = "on demand" if followed is None else "planned" if is_exact else "adapted"
        # Was it a known one, the next step is to be recorded instead.
        recorded = self._novelty.is_due and not self.engine.has_recognised
        moved = self.engine.manager.statistics.traffic.items()
        report = StepReport(
            len(self.reports) + 1,
            "recorded" if recorded else mode,
            seconds,
            peak,
            self._planned_for,
            stalls={
                **{str(c): s for c, s in happened.stalls.items()},
                "fetch": happened.fetch_seconds,
            },
            traffic={lane: nbytes - self._traffic.get(lane, 0) for lane, nbytes in moved},
        )
        course = self._planner.course_of(followed)
        keeps = self.engine.room.keeps_freed
        if followed is not None:
            report = replace(report, decisions=followed.plan.counts())
        if mode == "planned" and followed is not None and course is not None:
            report = replace(
                report,
                predicted_seconds=course.foretold(keeps=keeps) * course.pace,
                predicted_peak=course.foretold_peak(keeps=keeps),
                simulated_peak=followed.predicted.peak,
                pace=course.pace,
            )
        if recorded:
            recording = self._recorder.end(slack=self._slack())
            if recording.trace.ops and not recording.trace.values:
                happened.note(
                    f"nothing ran on {self.device}: say fit(device=...), or set CUDA_VISIBLE_DEVICES"
                )
            self._tell(replace(report, events=tuple(happened.events)))
            if self._novelty.looked_at and self._planner.knows(recording):
                self._novelty.recorded(known=True)
                return
            self._take(recording, complete=complete)
            return
        self._novelty.passed()
        teaches = mode == "planned" and not happened.joined_late
        self._planner.passed(course, teaches=teaches)
        if happened.fell_back:
            self._novelty.changed(begun_alike=happened.begun_alike)
        elif course is not None and mode == "adapted":
            self._novelty.adapted(happened.likeness)
            if log is not None and course.is_new and not course.has_adapted:
                with self._weighing(course):
                    self._planner.adapt(course, log, self.budget)
            self._correct(course, needed)
        elif course is not None and teaches:
            course.ran(seconds, peak, keeps=keeps)
            self._learn(course, log, report, needed)
        self._tell(replace(report, events=tuple(happened.events)))

    def _learn(self, course: Course, log: Log | None, report: StepReport, needed: int) -> None:
        """A planned step ran as planned, in `needed` bytes: what does it say about the next one?"""
        happened, budget = self.engine.happened, self.budget
        self._course = course
        if log is not None:
            self.measured, self.samples = log.chart(report.seconds, happened.stalls), log.samples
            self.charted = course.outcome
            if not (course.is_charted or self.engine.room.keeps_freed):
                with self._weighing(course):
                    self._planner.learn(course, log, self.measured, needed, happened.lacked, budget)
                return
        if self._is_calm and course.is_settling:
            course.calm.append(report.seconds)
            if course.has_settled:
                with self._weighing(course):
                    for event in self._planner.settle(course, budget):
                        happened.note(event)
        self._correct(course, needed)

    def _correct(self, course: Course, needed: int) -> None:
        """Plan `course` anew, if its step needed more than there is."""
        excess = max(self.engine.happened.lacked, needed - self.budget)
        if self._planner.exceeds(course, excess, self.budget):
            self.engine.happened.note("re-plan: the step took more memory than planned")
            with self._weighing(course):
                self._planner.correct(course, excess, self.budget)

    @contextmanager
    def _weighing(self, course: Course) -> Iterator[None]:
        """Planning leaves books behind, which are part of what the process holds."""
        self.engine.manager.rest()
        self.engine.room.return_freed()
        held = self.engine.room.used()
        with self._forgotten():
            yield
        self._follow(course, lambda: course.slack + self.engine.room.used() - held)

    def _take(self, recording: Recording, *, complete: bool) -> None:
        """A step was recorded: can it fit at all, and if it was a whole one, plan it."""
        if self.device.type == "cuda":
            recording = _with_fragmentation(recording)
        trace, happened = recording.trace, self.engine.happened
        budget = self._budget_for(trace)
        least = least_budget(trace)
        # Under a share nothing was tried yet: the step was recorded without a limit.
        if least.nbytes > budget and (happened.overrun or isinstance(self.asked, Share)):
            op = trace.describe_op(least.op)
            raise BudgetError(budget, least.nbytes, op, least.holders)
        if not complete:
            return
        if budget != self.budget:
            self.engine.room.budget = budget
            self._cap(budget)
        self._recorded = trace
        self._novelty.recorded(known=False)
        if self._on_recorded is not None:
            self._on_recorded(trace)
        with self._forgotten():
            course = self._planner.plan(recording, budget)
        self._follow(course, self._slack)

    @contextmanager
    def _forgotten(self) -> Iterator[None]:
        """Planning leaves cycles, and holes in the heap, which would count as the step's.

        What is older is not looked through for such cycles: that would take 0.2 s and more.
        """
        if self._allocator is None:
            yield
            return
        is_ours = gc.get_freeze_count() == 0  # what a script itself froze has to stay so
        if is_ours:
            # What is young now would be looked through late, as old as it is afterwards.
            gc.collect(1)
            gc.freeze()
        try:
            yield
        finally:
            gc.collect()
            if is_ours:
                gc.unfreeze()
        self._allocator.plug()

    def _follow(self, course: Course, slack: Callable[[], int]) -> None:
        """Follow a course that was just planned; `slack`: with the books that planning left."""
        known = slack()
        with self._forgotten():
            self._planner.weigh(course, known, self.budget)
        self._course = course
        self._begin_as(course)

    # -- what is known -----------------------------------------------------------------------

    @property
    def budget(self) -> int:
        """Bytes that the device may hold for the step; of a share, not before one was recorded."""
        return self.engine.room.budget

    @property
    def machine(self) -> Machine:
        """The device and its tiers, with the link rates measured last."""
        return self._planner.machine

    @property
    def trace(self) -> Trace | None:
        """The step that was followed last, with what was learnt of it; None: none was recorded."""
        return self._recorded if self._course is None else self._course.recording.trace

    @property
    def outcome(self) -> Outcome | None:
        """The plan for it, spelled out and priced."""
        return None if self._course is None else self._course.outcome

    def _tell(self, report: StepReport) -> None:
        self.reports.append(report)
        if self._on_step is not None:
            self._on_step(report)

    # -- what torch tells ------------------------------------------------------------------------

    def _before_optimizer(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        if self._novelty.is_due:
            self._recorder.optimizer_begins(optimizer)

    def _after_optimizer(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        if self._novelty.is_due:
            self._recorder.optimizer_ends(optimizer)
        is_new = id(optimizer) not in self._optimizers
        if is_new:
            # A step has one call of each optimizer: it ends with the one that was met last. What
            # ends here is no whole step, and made the optimizer's state.
            self._optimizers.append(id(optimizer))
            self._novelty.is_due = True
        if id(optimizer) == self._optimizers[-1]:
            with _disable_current_modes():
                self._end(complete=not is_new)
                self._begin()

    def _knock(self, reached: torch.Tensor | torch.UntypedStorage, door: str) -> None:
        with _disable_current_modes():
            self.engine.knock(reached, door)

    def _in_thread(self, run: Callable[[], None]) -> Callable[[], None]:
        """What a thread of the script's runs: itself, under a clock of its own."""
        self.engine.share()

        def clocked() -> None:
            with Clock(self.engine.visit):
                run()

        return clocked

    # -- budgets -----------------------------------------------------------------------------

    def _limit_while_recording(self) -> int:
        return self.asked if isinstance(self.asked, int) else self.machine.device.memory

    def _budget_for(self, trace: Trace) -> int:
        match self.asked:
            case Share():  # of the largest step so far: a small one must not squeeze the others
                self._share = max(self._share, self.asked.of(trace.peak + trace.slack))
                return self._share
            case int():
                return self.asked
            case None:
                return self.machine.device.memory

    def _cap(self, nbytes: int) -> None:
        """On a GPU, have the allocator give back what it keeps, and reserve no more than `nbytes`."""
        if isinstance(self.meter, CudaMeter):
            torch.cuda.empty_cache()
            share = min(1.0, nbytes / self.machine.device.memory)
            torch.cuda.set_per_process_memory_fraction(share, self.device)

    def _slack(self) -> int:
        """Bytes that the device must hold beyond living values, now.

        Not what a GPU's allocator keeps for later: that it gives back when it needs to.
        """
        away = self.engine.manager.resident_bytes_away()
        return max(0, self.engine.room.used() - (self._recorder.live_bytes() - away))

    # -- what it leaves ------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """All that `--report` writes."""
        return {
            "penstock": "report",
            "version": 1,
            "budget": self.budget,
            "policy": self.policy_name,
            "machine": asdict(self.machine),
            "least_budget": None if self.trace is None else least_budget(self.trace).nbytes,
            "without_budget": None
            if self.trace is None
            else {
                "peak": self.trace.peak + self.trace.slack,
                "seconds": unbounded(self.trace, self.machine).seconds,
            },
            "steps": [asdict(report) for report in self.reports],
        }


def _with_fragmentation(recording: Recording) -> Recording:
    """With the bytes that CUDA's allocator must hold in pieces that serve nobody, when it holds most."""
    trace = recording.trace
    lost = max(0, least_reserved(allocations(trace)) - trace.peak)
    return replace(recording, trace=replace(trace, slack=trace.slack + lost))


def _forked() -> None:
    if Session._running is not None:
        Session._running.engine.become_child()


os.register_at_fork(after_in_child=_forked)


def device_of(given: str | torch.device | None) -> torch.device:
    """The device that a person named; None: the GPU if there is one. Raises `UsageError`."""
    if given is None:
        given = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(given)
    except RuntimeError:
        raise UsageError(f"device {given!r} is unknown; use cpu, cuda or cuda:0") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(f"device {given!r}: this machine or this build of torch has no CUDA")
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.device("cuda", index)
    if device.type != "cpu":
        raise UsageError(f"device {given!r}: Penstock knows cpu and cuda")
    return device
