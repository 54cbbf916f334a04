"""What every policy owes, whatever its paper says.

A policy claims nothing about peak or time. That a plan cannot meet the budget is said by the
schedule: `shortfall` bytes are lacking at op `worst`.
"""

from dataclasses import FrozenInstanceError, fields, is_dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock import policies
from penstock.errors import NeedError
from penstock.ir.machine import Device, Link, Machine, Tier
from penstock.ir.plan import Plan, check
from penstock.ir.policy import Need, Paper, Policy, Problem
from penstock.simulate.least import least_budget
from penstock.solve.best import outcome
from steps import STEPS
from strategies import plans, problems

NAMES = policies.names()
GIB = 2.0**30
MACHINES = {
    speed: Machine(Device("cpu", 2**40), (Tier("disk", 2**40, Link(rate), Link(rate), drag),))
    for speed, rate, drag in (("fast", 64 * GIB, 0.0), ("slow", GIB / 4, 0.1))
}
ASKED = policies.load("auto")().asked(MACHINES["slow"])


def owed(policy, problem):
    """The plan of `policy` for `problem`, once it has kept its contract."""
    policies.require(policy, problem)
    plan = policy(problem)
    check(problem.trace, plan, problem.machine)
    assert set(problem.given.decisions) <= set(plan.decisions), "decisions already taken stay"
    found = outcome(problem, plan)
    if found.shortfall:
        assert 0 <= found.schedule.worst < len(problem.trace.ops)
        enough = problem.budget + found.shortfall
        mended = outcome(replace(problem, budget=enough), plan)
        assert mended.shortfall == 0
        assert mended.timeline.peak <= enough
    else:
        assert found.timeline.peak <= problem.budget
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_is_a_frozen_dataclass_that_says_where_it_comes_from(name):
    policy = policies.load(name)()
    assert isinstance(policy, Policy)
    assert is_dataclass(policy)
    assert policy == policies.configured(name)
    assert hash(policy) == hash(policies.configured(name))
    assert policy.paper is None or isinstance(policy.paper, Paper)
    assert policy.needs <= frozenset(Need)
    for field in fields(policy):
        with pytest.raises(FrozenInstanceError):
            setattr(policy, field.name, None)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("speed", MACHINES)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", NAMES)
def test_a_plan_is_valid_and_fits_or_says_what_is_lacking(name, step, speed, share):
    trace = STEPS[step]
    least = least_budget(trace).nbytes
    budget = least + int(share * (trace.peak - least))
    owed(policies.load(name)(), Problem(trace, MACHINES[speed], budget))


@pytest.mark.parametrize("share", [0.6, 0.2])
@pytest.mark.parametrize("step", ["chain", "skips"])
@pytest.mark.parametrize("name", NAMES)
def test_what_the_first_tier_cannot_hold_goes_to_the_next(name, step, share):
    trace, link = STEPS[step], Link(GIB)
    tiers = (Tier("host", 9 * 2**20, link, link), Tier("disk", 2**40, link, link))
    machine = Machine(Device("cpu", 2**40), tiers)
    found = owed(policies.load(name)(), Problem(trace, machine, int(share * trace.peak)))
    assert found.overfull == 0


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", NAMES)
def test_below_the_least_budget_no_plan_fits_and_none_says_so(name, step):
    budget = least_budget(STEPS[step]).nbytes - 1
    found = owed(policies.load(name)(), Problem(STEPS[step], MACHINES["fast"], budget))
    assert found.shortfall > 0


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15)
@given(problem=problems(), slack=st.sampled_from([0, 2**20]), data=st.data())
def test_the_contract_holds_on_random_steps(name, problem, slack, data):
    problem = replace(problem, trace=replace(problem.trace, slack=slack))
    policy = policies.load(name)()
    found = owed(policy, problem)
    assert policy(problem) == found.plan, "a policy is a pure function"


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15)
@given(problem=problems(), data=st.data())
def test_a_given_plan_is_extended_and_never_contradicted(name, problem, data):
    drawn = data.draw(plans(problem.trace, problem.machine))
    owed(policies.load(name)(), replace(problem, given=Plan(drawn.recomputes)))


@pytest.mark.parametrize("name", NAMES)
def test_a_budget_that_holds_everything_costs_no_time(name):
    problem = Problem(STEPS["skips"], MACHINES["fast"], 2 * STEPS["skips"].peak)
    assert owed(policies.load(name)(), problem).timeline.seconds == problem.trace.seconds


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_without_what_it_needs_is_refused_by_name(name):
    policy = policies.load(name)()
    bare = Problem(STEPS["chain"], MACHINES["fast"].with_tiers(), STEPS["chain"].peak // 2)
    if Need.TIER in policy.needs:
        with pytest.raises(NeedError, match=f"{type(policy).__name__} needs a tier"):
            policies.require(policy, bare)
    else:
        assert owed(policy, bare).plan.swaps == ()


@pytest.mark.parametrize("name", NAMES)
def test_measured_seconds_are_asked_for_where_they_are_needed(name):
    policy = policies.load(name)()
    timeless = replace(
        STEPS["chain"], ops=tuple(replace(op, seconds=0.0) for op in STEPS["chain"].ops)
    )
    problem = Problem(timeless, MACHINES["fast"], timeless.peak // 2)
    if Need.SECONDS in policy.needs:
        with pytest.raises(NeedError, match="measured seconds for every op"):
            policies.require(policy, problem)
    else:
        owed(policy, problem)


@settings(max_examples=15)
@given(problem=problems())
def test_auto_is_at_least_as_good_as_every_policy_that_it_asks(problem):
    auto = outcome(problem, policies.load("auto")()(problem))
    for name in ASKED:
        other = outcome(problem, policies.configured(name)(problem))
        assert auto.rank <= other.rank, name


@pytest.mark.parametrize("step", STEPS)
def test_auto_fits_wherever_a_policy_does_that_it_asks(step):
    trace = STEPS[step]
    least = least_budget(trace).nbytes
    for share in (0.0, 0.1, 0.3, 0.6):
        budget = least + int(share * (trace.peak - least))
        problem = Problem(trace, MACHINES["slow"], budget)
        auto, *ranks = (
            outcome(problem, policies.configured(name)(problem)).rank for name in ("auto", *ASKED)
        )
        assert auto <= min(ranks)


def test_auto_may_be_told_whom_to_ask():
    problem = Problem(STEPS["chain"], MACHINES["slow"], int(0.7 * STEPS["chain"].peak))
    wide = policies.ask(policies.configured("auto:among=all"), problem)
    assert "auto" not in policies.load("auto")("all").asked(MACHINES["slow"])
    assert wide.rank <= policies.ask(policies.configured("auto"), problem).rank
    only = policies.ask(policies.configured("auto:among=keep,blends=0"), problem)
    assert only.plan == Plan(policy="keep")


def test_what_is_given_may_already_do():
    problem = Problem(STEPS["chain"], MACHINES["fast"], STEPS["chain"].peak, Plan(policy="mine"))
    assert policies.load("keep")()(problem) == Plan(policy="mine")
