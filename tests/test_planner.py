"""What charts teach: op times that disturbances do not move, and the pace of the machine."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from penstock.ir.machine import Device, Faults, Link, Machine, Tier
from penstock.ir.plan import Plan
from penstock.ir.policy import Policy, Problem
from penstock.ir.text import parse
from penstock.ir.trace import Trace
from penstock.planner import CHARTED, SETTLING, Course, Planner, _typical
from penstock.policies.keep import Keep
from penstock.policies.swap_all import SwapAll
from penstock.record.step import Recording
from runs import MIB


def chart(*own: float) -> np.ndarray:
    """A chart of ops that took these seconds; nothing passed between them."""
    return np.array([[seconds, 0.0] for seconds in own])


def test_a_disturbed_op_does_not_count() -> None:
    found = _typical(2, [chart(1.0, 2.0), chart(1.0, 50.0), chart(1.0, 2.0)])
    assert found[:, 0].tolist() == pytest.approx([1.0, 2.0])


def test_the_sum_is_the_median_sum_though_each_op_is_usually_faster() -> None:
    """One op is slow in each chart, another one each time: the sum of medians would be 3."""
    charts = [chart(4.0, 1.0, 1.0), chart(1.0, 4.0, 1.0), chart(1.0, 1.0, 4.0)]
    found = _typical(3, charts)
    assert found[:, 0].sum() == pytest.approx(6.0)
    assert found[:, 0].tolist() == pytest.approx([2.0, 2.0, 2.0])


def test_an_op_that_no_chart_saw_stays_unknown() -> None:
    found = _typical(2, [chart(1.0, np.nan), chart(3.0, np.nan)])
    assert found[0, 0] == pytest.approx(2.0)
    assert np.isnan(found[1, 0])
    assert np.isnan(_typical(2, [])).all()


def planned(seconds: str, budget: int) -> tuple[Planner, Course]:
    """A step of two ops that keeps everything."""
    trace = parse(f"f a x:I1M -> h:A4M! {seconds}\nb b h -> g:T4M {seconds}")
    planner = Planner(Keep(), Machine(Device("cpu", 1 << 40)))
    calls = (torch.ops.aten.relu.default,) * len(trace.ops)
    return planner, planner.plan(Recording(trace, calls, {}), budget)


def test_what_a_plan_is_known_to_lack_teaches_nothing_when_it_is_lacked() -> None:
    budget = 4 * MIB
    planner, course = planned("1ms", budget)
    trace = course.recording.trace
    for beyond, slack in ((-MIB, 0), (MIB, MIB)):
        measured = course.outcome.timeline
        lacked = measured.peak - budget + beyond
        planner.learn(course, Charted(trace), measured, budget, lacked, budget)
        assert course.slack == pytest.approx(slack, abs=1024)


@pytest.mark.parametrize(("beyond", "is_new"), [(0, False), (MIB, True)])
def test_what_a_plan_is_known_to_lack_is_no_reason_for_a_new_one(beyond, is_new) -> None:
    """Else slack would grow with each step, and the predicted peak far above the measured one."""
    budget = 4 * MIB
    planner, course = planned("1ms", budget)
    lacking = course.outcome.timeline.peak - budget
    assert lacking > 4 * MIB
    assert planner.exceeds(course, lacking + beyond, budget) is is_new
    planner.correct(course, lacking + beyond, budget)
    assert course.slack == pytest.approx(beyond, abs=1024)


def test_the_pace_is_that_of_the_last_steps_and_stays_when_the_plan_changes() -> None:
    """Charted ones too: after these a single disturbed step must not be all that is known."""
    budget = 64 * MIB
    planner, course = planned("1s", budget)
    assert course.pace == 1.0
    course.steps.extend([2.0, 2.2])
    assert course.pace == pytest.approx(1.05)
    planner.weigh(course, MIB, budget)  # priced anew, and kept
    course.steps.append(9.0)
    assert course.pace == pytest.approx(1.1)
    course.steps.extend([4.0] * 5)
    assert course.pace == pytest.approx(2.0)
    course.steps.extend([3.0, 3.2])
    planner.correct(course, 8 * MIB, budget)  # another plan, which takes as long
    assert course.pace == pytest.approx(1.6)
    course.scale(3.0, 2.0)  # one that takes half as long again
    assert list(course.steps) == pytest.approx([6.0, 4.5, 4.8])


class Charted:
    """What a log of an undisturbed step says."""

    def __init__(self, trace: Trace) -> None:
        self._seconds = np.array([(op.seconds, op.host_seconds) for op in trace.ops])

    def seconds(self) -> NDArray[np.float64]:
        return self._seconds

    def rates(self, machine: Machine) -> Machine:
        return machine


def test_a_step_that_takes_less_than_its_values_leaves_no_slack() -> None:
    budget = 64 * MIB
    planner, course = planned("1s", budget)
    trace = course.recording.trace
    course.recording = replace(course.recording, trace=replace(trace, slack=2 * MIB))
    for _ in range(2):  # after the first step the policy is asked again
        needed = trace.peak - 3 * MIB
        planner.learn(course, Charted(trace), course.outcome.timeline, needed, 0, budget)
        assert course.slack == 0
        assert course.outcome.timeline.peak == trace.peak


PEAK = 90 * MIB
KEPT = Faults(large=2.0**-22)  # a block of 40 MiB: 10 s of faults
STAYING = """
    f a x:I10M -> h:A40M! 30s
    f b x      -> y:A40M! 30s
    b c y h    -> g:T40M  30s
    b d g      -> k:T10M  30s
    b e k      -> m:T40M  30s
"""


def staying(policy, budget: int = 400 * MIB) -> tuple[Planner, Course]:
    """A step of 150 s, of which 42.5 are page faults, that has been charted."""
    trace = parse(STAYING)
    tier = Tier("host", 1 << 40, Link(2.0**40), Link(2.0**40))
    planner = Planner(policy, Machine(Device("cpu", 1 << 40, faults=KEPT), (tier,)))
    calls = (torch.ops.aten.relu.default,) * len(trace.ops)
    course = planner.plan(Recording(trace, calls, {}), budget)
    course.seconds = [chart(*[30.0] * 5)] * 3
    return planner, course


def settle(planner: Planner, course: Course, seconds: float) -> list[str]:
    """So many steps that took so long, in which what was freed stayed: what is said of it?"""
    assert course.is_settling
    for _ in range(SETTLING):
        course.ran(seconds, PEAK, keeps=True)
        course.calm.append(seconds)
    assert course.has_settled
    return planner.settle(course, 400 * MIB)


def test_a_step_is_foretold_with_what_is_freed_given_back_and_with_it_kept() -> None:
    _, course = staying(Keep())
    assert course.foretold(keeps=False) == 150.0
    assert course.foretold(keeps=True) == 107.5
    course.ran(300.0, PEAK, keeps=False)
    assert course.pace == pytest.approx(2.0)
    course.ran(215.0, PEAK, keeps=True)
    assert course.pace == pytest.approx(2.0)


def test_the_peak_is_foretold_as_simulated_until_steps_tell_that_of_the_plan() -> None:
    planner, course = staying(Changing())
    simulated = course.outcome.timeline.peak
    charted, course.seconds = course.seconds, []
    course.ran(150.0, PEAK, keeps=False)  # charted: it does not run as later ones will
    course.seconds = charted
    assert course.foretold_peak(keeps=False) == simulated
    for peak in (88, 90, 95, 91, 90, 90):
        course.ran(110.0, peak * MIB, keeps=True)
    assert course.foretold_peak(keeps=True) == 90 * MIB
    assert course.foretold_peak(keeps=False) == simulated
    planner.weigh(course, 4 * MIB, 400 * MIB)  # the same plan, priced anew
    assert course.foretold_peak(keeps=True) == 90 * MIB
    settle(planner, course, 145.0)  # another plan
    assert course.foretold_peak(keeps=True) == course.outcome.timeline.peak != 90 * MIB


def test_steps_that_keep_what_is_freed_teach_how_much_that_saves() -> None:
    planner, course = staying(Keep())
    settle(planner, course, 128.75)  # it saves half of what was foretold
    assert not course.is_settling
    assert course.foretold(keeps=True) == pytest.approx(128.75)
    assert course.foretold(keeps=False) == 150.0
    assert course.pace == pytest.approx(1.0)


@dataclass
class Changing:
    """Swaps all while faults are dear, and nothing when they are known to be cheap."""

    paper = None
    needs = frozenset()
    plans: list[Plan] = field(default_factory=list)

    def __call__(self, problem: Problem) -> Plan:
        is_dear = problem.machine.device.faults.large >= KEPT.large
        self.plans.append((SwapAll() if is_dear else Keep())(problem))
        return self.plans[-1]


@pytest.mark.parametrize(("then", "is_back"), [(120.0, False), (149.0, True)])
def test_another_plan_is_tried_and_stays_only_if_it_is_faster(then: float, is_back: bool) -> None:
    planner, course = staying(Changing())
    before = course.outcome.plan
    assert before.swaps
    settle(planner, course, 145.0)
    assert course.is_settling and not course.outcome.plan.decisions
    settle(planner, course, then)
    assert not course.is_settling
    assert (course.outcome.plan == before) is is_back
    assert min(course.steps) == min(then, 145.0)  # what the plan in force took


class Doubtful(SwapAll):
    """Swaps all; may it be better not to?"""

    def rivals(self) -> dict[str, Policy]:
        return {"swap-all": SwapAll(), "keep": Keep()}  # the first leads to the same plan


@pytest.mark.parametrize(("then", "is_back"), [(0.9, False), (1.1, True)])
def test_the_plan_of_a_rival_is_tried(then: float, is_back: bool) -> None:
    planner, course = staying(Doubtful())
    before, usual = course.outcome.plan, course.foretold(keeps=True)
    assert settle(planner, course, usual) == [f"trial: keep in the next {SETTLING} steps"]
    assert course.is_settling and before.swaps and not course.outcome.plan.decisions
    (event,) = settle(planner, course, usual * then)
    assert event.startswith("trial: gone back, " if is_back else "trial: stays, ")
    assert f"{usual * then:.3g} s against {usual:.3g} s before" in event
    assert not course.is_settling
    assert (course.outcome.plan == before) is is_back
    assert min(course.steps) == pytest.approx(usual * min(then, 1.0))
    planner.correct(course, MIB, 400 * MIB)  # what was found out is not forgotten
    assert bool(course.outcome.plan.swaps) is is_back


def test_the_plan_of_a_rival_is_given_up_where_it_no_longer_fits() -> None:
    planner, course = staying(Doubtful())
    usual = course.foretold(keeps=True)
    settle(planner, course, usual)
    settle(planner, course, usual / 2)
    assert not course.outcome.plan.decisions
    planner.correct(course, 320 * MIB, 400 * MIB)
    assert course.outcome.plan.swaps


def test_steps_before_a_correction_say_nothing_of_the_plan_after_it() -> None:
    planner, course = staying(Doubtful())
    usual = course.foretold(keeps=True)
    settle(planner, course, usual)
    course.calm = [usual / 2] * (SETTLING - 1)  # of the one that is tried
    planner.correct(course, 320 * MIB, 400 * MIB)
    assert course.is_settling and not course.has_settled
    settle(planner, course, 2 * usual)
    assert not course.is_settling and min(course.calm) == usual


def test_one_that_takes_too_long_by_simulation_is_not_tried(monkeypatch) -> None:
    monkeypatch.setattr("penstock.planner._LOSS", -0.5)  # they are about as fast
    planner, course = staying(Doubtful())
    before = course.outcome.plan
    settle(planner, course, course.foretold(keeps=True))
    assert not course.is_settling and course.outcome.plan == before


def test_a_shape_that_comes_seldom_is_not_waited_for() -> None:
    """Else a last batch of its own would have all steps of an epoch give back what they free."""
    planner, course = planned("1s", 64 * MIB)
    seldom = replace(course, seconds=[])
    planner.courses = [seldom, course]
    course.seconds = [chart(1.0, 1.0)] * CHARTED
    assert not seldom.is_charted and seldom.is_awaited
    for _ in range(20):
        planner.passed(course, teaches=True)
    assert not (seldom.is_charted or seldom.is_awaited)
    planner.passed(seldom, teaches=True)
    assert seldom.is_awaited


def test_shapes_that_settle_one_after_the_other_teach_the_same_thing_once() -> None:
    planner, first = staying(Keep())
    second = replace(first, program=object(), steps=first.steps.copy())
    planner.courses.append(second)
    for course in (first, second):
        for _ in range(SETTLING):
            course.calm.append(128.75)
            course.ran(128.75, PEAK, keeps=True)  # both save half of what was foretold
    for course in (first, second):
        planner.settle(course, 400 * MIB)
        assert planner.machine.device.faults == KEPT.scaled(0.5)
        assert course.foretold(keeps=True) == pytest.approx(128.75)
