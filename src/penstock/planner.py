"""What a session knows of each shape of the step, and the plans that it makes of it.

A step is planned from what its recording measured. Then a few planned steps are charted: what ops
take beside copies, how fast the links are under load, how many bytes the allocator holds beyond
values. From the first chart a new plan is made, from the others a better prediction of the same one.
Where freed memory may stay with the process, steps then get faster: a few of them tell by how much.

Simulation is not exact to a few percent, least of all in what copies cost compute: ops are timed beside
those of the plan in force. So a policy may have rivals, whose plans are tried; the fastest stays.
"""

from collections import deque
from dataclasses import dataclass, field, replace
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from penstock import policies
from penstock.engine.log import Log
from penstock.engine.program import Program, compile_program
from penstock.errors import NeedError
from penstock.ir.machine import Faults, Machine
from penstock.ir.plan import Plan
from penstock.ir.policy import Doubting, Policy, Problem
from penstock.ir.timeline import Timeline
from penstock.ir.trace import Trace
from penstock.record.step import Recording
from penstock.simulate.run import price
from penstock.solve.best import Outcome, outcome

__all__ = ["Course", "Planner"]

CHARTED = 3
"""Planned steps of each shape that are measured op by op, while all that is freed goes back."""
CHARTED_ONCE = 1
"""The same where freed memory may stay afterwards: that is worth more than better charts."""
_YOUNG = 3
"""Planned steps of a shape before it is held to the last byte that its ops need."""
_SOON = 8
"""Steps of other shapes, after which one that was charted too seldom is not waited for."""
SETTLING = 3
"""Steps after them that tell what it saves if what is freed stays: the first still takes it all anew."""
_TRIED = 4
"""Other plans that are tried at most: one if faults cost something else, and those of rivals."""
LEARNING = CHARTED + (1 + _TRIED) * SETTLING
"""Planned steps after which no more is learnt of a shape."""
_TELLING, _MOST_MORE = 50, 2.0
"""One part in so many of the step must be saved to tell anything; how much more than was foretold."""
_GAIN = 0.03
"""Share of the step that a plan must then save by simulation to be tried: the other was measured."""
_LOSS = 0.15
"""Share of the step that a rival's may take longer by simulation, and still be tried."""
_CORRECTIONS = 6
"""Later plans for one shape, made because the device held more than was planned."""
_RESERVE = 128
"""One part in so many of the budget is left free: what the allocator takes is learnt a step late."""
_FIRST_USED = 4 << 20
"""Bytes that the first planned step may take for good: the code of copies, their threads' stacks."""
_PACED = 3
"""Steps whose median tells the machine's pace."""
_PEAKS = 5
"""Steps whose peaks tell that of the next, by their median."""
_OWN = "a plan for what was learnt"
"""What an event calls a new plan of the same policy."""
_LATEST = 0.2
"""What the last one counts among the steps that came after those of a shape."""
_REMEMBERED = 32
"""Shapes of the step that are kept."""


@dataclass(eq=False)
class Course:
    """One shape of the step: its recording, what measured steps taught, the plan in force."""

    recording: Recording  # its trace as it is known now: seconds, slack
    outcome: Outcome
    program: Program
    anew: float  # seconds that it takes where nothing that is freed stays
    policy: Policy  # whose plan that is
    charts: int = CHARTED  # how many are to be made
    age: int = 0  # planned steps that were measured
    seconds: list[NDArray[np.float64]] = field(default_factory=list)  # by chart: ops x (own, host)
    # Seconds of steps of the plan in force, run as they will be from now on.
    calm: list[float] = field(default_factory=list)
    idle: int = 0  # steps of other shapes since one of this
    has_adapted: bool = False  # did a smaller step follow it, and tell how fast the links are?
    # Of the steps that came after one of this shape of late, those of each.
    successors: "dict[Course, float]" = field(default_factory=dict)
    # Whose plans may yet be tried, by name; None: nothing has settled.
    rivals: list[tuple[str, Policy]] | None = None
    tried: "_Before | None" = None  # the plan before the one that is tried now
    corrections: int = 0
    # Seconds of the last steps, charted ones too, as if the plan in force had been all along.
    steps: deque[float] = field(default_factory=lambda: deque(maxlen=_PACED))
    # Bytes at the peaks of its last steps, once it is charted; True: of those whose freed memory stays.
    peaks: dict[bool, deque[int]] = field(
        default_factory=lambda: {keeps: deque(maxlen=_PEAKS) for keeps in (False, True)}
    )

    @property
    def slack(self) -> int:
        """Bytes that the device holds beyond values."""
        return self.recording.trace.slack

    @property
    def pace(self) -> float:
        """How fast the machine is now: measured over simulated seconds, the median of a few steps."""
        simulated = self.outcome.timeline.seconds
        return median(self.steps) / simulated if self.steps and simulated else 1.0

    def foretold(self, *, keeps: bool) -> float:
        """Seconds of the plan in force by simulation; `keeps`: what is freed stays."""
        return self.outcome.timeline.seconds if keeps else self.anew

    def foretold_peak(self, *, keeps: bool) -> int:
        """Bytes at the peak of its next step: as the last ones of the plan in force, or as simulated.

        The plan's peak is a bound that the engine keeps to; how far below it the C library and the
        order of ops beside copies leave a step, only steps can tell.
        """
        seen = self.peaks[keeps]
        return int(median(seen)) if seen else self.outcome.timeline.peak

    def ran(self, seconds: float, peak: int, *, keeps: bool) -> None:
        """A planned step took so long, and so many bytes."""
        self.age += 1
        anew = self.foretold(keeps=keeps)
        self.steps.append(seconds * self.outcome.timeline.seconds / anew if anew else seconds)
        if self.is_charted:
            self.peaks[keeps].append(peak)

    def scale(self, now: float, before: float) -> None:
        """Another plan is in force: what the last steps would have taken under it."""
        factor = now / before if before else 1.0
        self.steps = deque((seconds * factor for seconds in self.steps), self.steps.maxlen)

    @property
    def is_new(self) -> bool:
        """Is the plan in force the one that was made of the recording?"""
        return not self.seconds

    @property
    def is_charted(self) -> bool:
        return len(self.seconds) >= self.charts

    @property
    def is_young(self) -> bool:
        """May its device hold more beyond values than is known yet?"""
        return self.age < _YOUNG

    @property
    def is_awaited(self) -> bool:
        """Are charts missing, and may its next step come soon? A last odd batch comes once an epoch."""
        return not self.is_charted and self.idle < _SOON

    @property
    def is_settling(self) -> bool:
        """Is it still to be measured what its steps take, or those of a plan that is tried?"""
        return self.is_charted and (self.rivals is None or self.tried is not None)

    @property
    def has_settled(self) -> bool:
        """Do enough steps of the plan in force tell that?"""
        return len(self.calm) >= SETTLING


class _Before(NamedTuple):
    """A plan that was measured, while another is tried."""

    plan: Plan
    seconds: float  # of its steps
    policy: Policy


class Planner:
    """Plans recorded steps for one policy, and plans again as it learns."""

    def __init__(self, policy: Policy, machine: Machine) -> None:
        self.policy, self.machine = policy, machine
        self.courses: list[Course] = []  # latest first
        self._last: Course | None = None  # that of the last step

    def plan(self, recording: Recording, budget: int) -> Course:
        """Plan a step that was just recorded. Raises `NeedError` if the policy lacks something."""
        found = policies.ask(self.policy, self._problem(recording.trace, budget, is_first=True))
        program = _compiled(recording, found)
        charts = CHARTED_ONCE if self._may_keep_freed(recording.trace) else CHARTED
        course = Course(recording, found, program, self._anew(found), self.policy, charts)
        others = [other for other in self.courses if not _same_shape(other, course)]
        self.courses = [course, *others][:_REMEMBERED]
        self._came(course)
        return course

    def knows(self, recording: Recording) -> bool:
        """Is it of a step that makes the same calls as one that is planned?"""
        return any(course.recording.funcs == recording.funcs for course in self.courses)

    def course_of(self, program: Program | None) -> Course | None:
        return next((course for course in self.courses if course.program is program), None)

    def passed(self, course: Course | None, *, teaches: bool) -> None:
        """A step was not recorded, but followed `course`, or none; is that one measured by it?"""
        for other in self.courses:
            other.idle += 1
        if course is not None:
            if teaches:
                course.idle = 0
            self._came(course)

    def _came(self, course: Course) -> None:
        """The last step was one of `course`."""
        if self._last is not None:
            shares = {one: share * (1 - _LATEST) for one, share in self._successors().items()}
            self._last.successors = {**shares, course: shares.get(course, 0.0) + _LATEST}
        self._last = course

    def likely(self) -> Course | None:
        """Of which shape the next step is likely to be: what mostly came after the last, or its own."""
        shares = self._successors()
        return max(shares, key=shares.__getitem__, default=self._last)

    def _successors(self) -> dict[Course, float]:
        """Of the steps that came after one like the last, those of each shape that is still kept."""
        shares = {} if self._last is None else self._last.successors
        return {one: share for one, share in shares.items() if one in self.courses}

    def learn(
        self, course: Course, log: Log, measured: Timeline, needed: int, lacked: int, budget: int
    ) -> None:
        """A step of `course` was followed and charted, in `needed` bytes."""
        is_first = course.is_new
        # If something was evicted that the plan had room for, it had less by what it lacked.
        unforeseen = _unforeseen(course, lacked, budget)
        course.seconds.append(log.seconds())
        self.machine = log.rates(self.machine)
        more = unforeseen if lacked else needed - measured.peak
        self._plan_again(course, course.slack + more, budget, keep=not (is_first or unforeseen))

    def adapt(self, course: Course, log: Log, budget: int) -> None:
        """A smaller step followed `course`, and tells of the links what its own would."""
        course.has_adapted = True
        self.machine = log.rates(self.machine)
        self._plan_again(course, course.slack, budget, keep=False)

    def settle(self, course: Course, budget: int) -> list[str]:
        """A few steps of `course` ran as later ones will: is another plan faster?

        The first such steps tell what it saves that freed memory stays. Then others are tried in turn.
        Says what is tried, and what came of it.
        """
        events = []
        if course.rivals is None:
            course.rivals = [(_OWN, self.policy)] if self._learn_faults(course, budget) else []
            if isinstance(self.policy, Doubting) and course.outcome.plan.decisions:
                course.rivals += [*self.policy.rivals().items()][: _TRIED - 1]
        elif course.tried is not None:
            events.append(self._judge(course, budget))
        while course.rivals and course.tried is None:
            name, rival = course.rivals.pop(0)
            if self._try(course, rival, budget):
                events.append(f"trial: {name} in the next {SETTLING} steps")
        return events

    def _learn_faults(self, course: Course, budget: int) -> bool:
        """Freed memory stayed in a few steps: did it save what was foretold? False: it tells nothing."""
        # By what is known now: another shape may have settled since this one was priced.
        foretold = course.anew - price(course.outcome.schedule, self.machine).seconds
        if foretold * _TELLING < course.anew:
            return False
        factor = min(max(0.0, (course.anew - min(course.calm)) / foretold), _MOST_MORE)
        self.machine = self._with(self.machine.device.faults.scaled(factor))
        self._plan_again(course, course.slack, budget, keep=True)
        return True

    def _try(self, course: Course, rival: Policy, budget: int) -> bool:
        """Follow the plan of `rival`, should simulation not think it too slow."""
        before = course.outcome
        try:
            other = policies.ask(rival, self._problem(course.recording.trace, budget))
        except NeedError:
            return False
        ratio = other.timeline.seconds / before.timeline.seconds
        may_be_faster = ratio <= (1 - _GAIN if rival is self.policy else 1 + _LOSS)
        is_another = other.plan.decisions != before.plan.decisions
        if is_another and may_be_faster and other.missing <= before.missing:
            course.tried = _Before(before.plan, min(course.calm), course.policy)
            course.scale(other.timeline.seconds, before.timeline.seconds)
            course.policy, course.calm = rival, []
            self._follow(course, other)
        return course.tried is not None

    def _judge(self, course: Course, budget: int) -> str:
        """Another plan was tried: is it faster than the one before?"""
        assert course.tried is not None
        before, course.tried = course.tried, None
        took = min(course.calm)
        compared = f"{took:.3g} s against {before.seconds:.3g} s before"
        if took <= before.seconds:
            return f"trial: stays, {compared}"
        problem, missing = self._problem(course.recording.trace, budget), course.outcome.missing
        found = outcome(problem, before.plan)
        if found.missing > missing:  # more slack was learnt meanwhile, for which it has no room
            found = policies.ask(before.policy, problem)
        if found.missing <= missing:
            course.policy, course.calm = before.policy, [before.seconds]
            self._follow(course, found)
            course.steps.append(before.seconds)
            return f"trial: gone back, {compared}"
        return f"trial: stays, {compared}, for whose plan there is no room now"

    def weigh(self, course: Course, slack: int, budget: int) -> bool:
        """The device holds `slack` bytes beyond values now: did that change what was planned?"""
        if slack - course.slack <= budget // 200:
            return False
        self._plan_again(course, slack, budget, keep=True)
        return True

    def exceeds(self, course: Course, excess: int, budget: int) -> bool:
        """A step of `course` needed `excess` bytes more than the budget: should the plan be new?"""
        unforeseen = _unforeseen(course, excess, budget)
        return unforeseen > budget // 100 and course.corrections < _CORRECTIONS

    def correct(self, course: Course, excess: int, budget: int) -> None:
        """Plan anew, with so much more slack."""
        course.corrections += 1
        slack = course.slack + _unforeseen(course, excess, budget)
        self._plan_again(course, slack, budget, keep=False)
        course.calm = []

    def _with(self, faults: Faults) -> Machine:
        return replace(self.machine, device=replace(self.machine.device, faults=faults))

    def _may_keep_freed(self, trace: Trace) -> bool:
        return bool(self.machine.device.faults) and trace.is_dense

    def _anew(self, found: Outcome) -> float:
        if not self.machine.device.faults:
            return found.timeline.seconds
        return price(found.schedule, self._with(Faults())).seconds

    def _problem(self, trace: Trace, budget: int, *, is_first: bool = False) -> Problem:
        return Problem(trace, self.machine, budget - _reserve(budget, is_first=is_first))

    def _plan_again(self, course: Course, slack: int, budget: int, *, keep: bool) -> None:
        """Plan anew with what was learnt; or `keep` the plan, and predict it better."""
        known = course.recording.trace
        trace = known.relearnt(max(0, slack), _typical(len(known.ops), course.seconds))
        problem = self._problem(trace, budget)
        found = outcome(problem, course.outcome.plan)
        if not keep or found.shortfall > course.outcome.shortfall:
            other = policies.ask(course.policy, problem)
            if other.missing and course.policy is not self.policy:  # there was room for it before
                course.policy, other = self.policy, policies.ask(self.policy, problem)
            course.scale(other.timeline.seconds, found.timeline.seconds)
            found = other
        course.recording = replace(course.recording, trace=trace)
        self._follow(course, found)

    def _follow(self, course: Course, found: Outcome) -> None:
        if found.plan.decisions != course.outcome.plan.decisions:
            for peaks in course.peaks.values():
                peaks.clear()
        course.outcome = found
        course.program = _compiled(course.recording, found)
        course.anew = self._anew(found)


def _reserve(budget: int, *, is_first: bool) -> int:
    """Bytes of it that no plan uses; of small ones the first leaves more, for the one step it lasts."""
    return budget // _RESERVE + (min(_FIRST_USED, budget // 32) if is_first else 0)


def _unforeseen(course: Course, excess: int, budget: int) -> int:
    """Of the bytes that a step needed beyond the budget, those that its plan was not known to lack."""
    foreseen = course.outcome.shortfall - _reserve(budget, is_first=course.is_new)
    return max(0, excess - max(0, foreseen))


def _compiled(recording: Recording, found: Outcome) -> Program:
    return compile_program(
        recording.funcs, found.plan, found.schedule, found.timeline, recording.initial
    )


def _same_shape(one: Course, other: Course) -> bool:
    return (
        one.program.funcs == other.program.funcs
        and one.program.marked_sizes == other.program.marked_sizes
    )


def _typical(ops: int, charts: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Ops x (own, host) seconds; NaN where no chart says anything.

    The median of each op, so that a disturbance does not count; but times are skewed, and a sum of
    medians is too low: scaled, so that the whole is the median whole.
    """
    found = np.full((ops, 2), np.nan)
    if not charts:
        return found
    stacked = np.stack(charts)
    told = ~np.isnan(stacked).all(axis=0)
    found[told] = np.nanmedian(stacked[:, told], axis=0)
    always = ~np.isnan(stacked).any(axis=0)
    if (low := found[always].sum()) > 0:
        found *= np.median(stacked[:, always].sum(axis=1)) / low
    return found
