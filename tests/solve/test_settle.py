"""A solver that knows bytes only roughly, asked until the simulator agrees."""

import pytest

from penstock.errors import SolveError
from penstock.ir.machine import Device, Machine
from penstock.ir.plan import Recompute
from penstock.ir.policy import Problem
from penstock.solve.best import outcome
from penstock.solve.settle import Answer, settled
from steps import chain

MIB = 2**20
TRACE = chain(8, "1M")
MACHINE = Machine(Device("cpu", 2**40))


def dropped() -> list[Recompute]:
    """One value of the chain remade: less than everything kept."""
    gap = next(TRACE.gaps(MIB))
    assert gap.stop is not None
    return [Recompute(gap, gap.stop)]


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_from_however_low_a_budget_what_a_solver_can_do_is_found(share: float) -> None:
    """It has one answer and wants nearly what the step takes to give it: asked for less, it fails."""
    problem = Problem(TRACE, MACHINE, int(share * TRACE.peak))
    wanted = outcome(problem, problem.given.plus(dropped()))
    need = int(max(wanted.schedule.need))
    assert need < TRACE.peak
    asked = []

    def solve(nbytes: int, seconds: float) -> Answer:
        asked.append(nbytes)
        if nbytes < 0.95 * need:
            raise SolveError("none with so few bytes")
        return Answer(dropped(), need, cut_short=False)

    assert settled(problem, solve, [], 60.0) == wanted.plan
    assert max(asked) <= max(TRACE.peak, need)


@pytest.mark.parametrize(("proven", "seconds"), [(True, 60.0), (False, 60.0), (True, 0.0)])
def test_a_plan_says_whether_a_time_limit_ended_the_search(proven: bool, seconds: float) -> None:
    problem = Problem(TRACE, MACHINE, TRACE.peak)
    answer = Answer(dropped(), TRACE.peak, cut_short=not proven)
    found = settled(problem, lambda *_: answer, [dropped()], seconds)
    assert found.cut_short == (not proven or not seconds)
