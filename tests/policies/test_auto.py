"""auto: the best of several answers, and of what can be blended of them."""

from dataclasses import replace

import pytest

from hosts import host
from penstock import policies
from penstock.errors import NeedError, UsageError
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.machines import find
from penstock.policies.auto import Auto
from penstock.simulate.roofline import priced
from penstock.solve.best import outcome
from steps import STEPS, chain

MIB = 2**20
TRACE = chain(24, "4M", "1s")
ASKED = Auto().asked(host(MIB))

# A link that carries one layer's value in the time of three.
PART = Problem(TRACE, host(4 * MIB / 3), 36 * MIB)


def test_where_copies_hide_only_in_part_it_beats_all_that_it_asks():
    found = policies.ask(Auto(), PART)
    assert found.shortfall == 0
    assert found.plan.policy == "auto"
    for name in ASKED:
        one = policies.ask(policies.configured(name), PART)
        assert one.shortfall or found.timeline.seconds < 0.98 * one.timeline.seconds, name


def test_without_blends_it_is_the_best_answer():
    found = policies.ask(Auto(blends=0), PART)
    answers = list(Auto(blends=0).answers(PART))
    assert found.rank == min(answer.rank for answer in answers)
    assert found.plan in [answer.plan for answer in answers]


def test_a_blend_that_gains_little_is_not_taken():
    assert Auto(gain=0.9)(PART) == Auto(blends=0)(PART)


def test_its_rivals_plan_what_the_policies_do_that_it_names():
    rivals = Auto(tried="capuchin chen:widths=1").rivals()
    assert list(rivals) == ["capuchin", "chen:widths=1"]
    for name, rival in rivals.items():
        assert policies.ask(rival, PART).plan == policies.ask(policies.configured(name), PART).plan
    assert Auto(tried="").rivals() == {}


@pytest.mark.parametrize("option", ["among", "direct", "tried"])
def test_a_name_that_is_none_is_told_before_anyone_is_asked(option):
    """Rivals are asked when a session has run for some ten steps."""
    with pytest.raises(UsageError, match="no policy is called 'capuchine'"):
        policies.configured(f"auto:{option}=keep capuchine")


def test_where_nobody_can_plan_it_says_whom_it_asked():
    problem = replace(PART, machine=PART.machine.with_tiers())
    with pytest.raises(NeedError, match="none of swap-all can plan"):
        Auto(among="swap-all")(problem)


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_fits_is_left_alone(step):
    problem = Problem(STEPS[step], host(MIB), STEPS[step].peak)
    assert Auto()(problem).decisions == ()


@pytest.mark.parametrize("step", STEPS)
def test_a_machine_without_tiers_is_planned_too(step):
    trace = STEPS[step]
    problem = Problem(trace, host(MIB).with_tiers(), int(0.8 * trace.peak))
    found = outcome(problem, Auto()(problem))
    assert found.plan.swaps == ()
    assert found.rank <= policies.ask(policies.configured("chen"), problem).rank


def test_where_ops_can_use_the_slow_memory_whoever_places_values_there_is_asked_too():
    """A budget below what the largest op uses: nothing fits that has to be there."""
    machine = find("xeon-optane")
    trace = priced(parse("f a x:I4M w:P64M -> h:A4M\nb b h w -> g:G64M\no c g w -> ~w"), machine)
    problem = Problem(trace, machine, 40 * MIB)
    assert policies.ask(Auto(direct=""), problem).shortfall
    found = policies.ask(Auto(), problem)
    assert not found.shortfall
    assert found.plan.places
    for name in ("autotm", "sentinel"):
        assert found.rank <= policies.ask(policies.configured(name), problem).rank
