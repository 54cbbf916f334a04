"""DeepTM's heat and its network, against the optimum of the integer programme."""

import numpy as np
import pytest
from hypothesis import given, settings

from penstock import machines
from penstock.ir.machine import Device, Link, Machine, Tier
from penstock.ir.plan import Plan, check
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.policies.deeptm import Deeptm, Network
from penstock.solve.best import outcome
from penstock.solve.game import Game, balanced
from penstock.solve.placement import decisions, slow_tier, stored
from steps import STEPS, chain
from strategies import traces

MIB = 2**20
OPTANE = machines.machine("xeon-optane+nvm-sync")
GPU = Machine(Device("cuda", 2**40), (Tier("host", 2**40, Link(2.0**33), Link(2.0**33)),))


def game_of(problem, policy):
    tier = slow_tier(problem.machine)
    return Game(problem, stored(problem, tier, policy.smallest), policy.page, policy.moves)


def by_heat(problem, policy):
    """The plan without the network."""
    game = game_of(problem, policy)
    placed = decisions(problem, slow_tier(problem.machine), game.where(policy.by_heat(game)))
    return outcome(problem, problem.given.plus(placed))


def test_where_everything_fits_all_of_it_is_in_fast_memory():
    problem = Problem(STEPS["skips"], OPTANE, STEPS["skips"].peak)
    assert Deeptm()(problem) == Plan()


@pytest.mark.parametrize("share", [0.2, 0.5])
@pytest.mark.parametrize("step", ["chain", "skips", "in place"])
def test_the_budget_is_never_passed_and_the_network_never_loses_to_heat_alone(step, share):
    trace, policy = STEPS[step], Deeptm(smallest=1, page=1)
    problem = Problem(trace, OPTANE, int(share * trace.peak))
    plan = policy(problem)
    check(trace, plan, OPTANE)
    found = outcome(problem, plan)
    assert found.shortfall == 0
    assert found.rank <= by_heat(problem, policy).rank


def test_a_plan_is_the_same_each_time_and_another_for_another_seed():
    problem = Problem(STEPS["skips"], OPTANE, STEPS["skips"].peak // 2)
    assert Deeptm()(problem) == Deeptm()(problem)
    games = [game_of(problem, Deeptm()) for _ in range(2)]
    one, other = (Deeptm(seed=n).learn(game) for n, game in enumerate(games))
    assert [episode.above for episode in one] != [episode.above for episode in other]


def test_a_toy_comes_near_the_optimum():
    pytest.importorskip("highspy")
    from penstock.policies.autotm import Autotm

    trace = parse("""
        f a  x:I2M -> h:A4M!   1ms
        f b  h     -> y:A3M!   1ms
        f c  y     -> z:A3M    1ms
        b d  z y   -> g:T1M    1ms
        b e  g h   -> k:T1M    1ms
    """)
    problem = Problem(trace, OPTANE, 7 * MIB)
    optimum = Autotm(gap=0.0, page=1, smallest=1).solve(problem)[1]
    found = outcome(problem, Deeptm(smallest=1, page=1)(problem))
    assert found.shortfall == 0
    assert found.timeline.seconds <= 1.05 * optimum.objective


def test_the_weights_are_tuned_until_the_hot_fill_fast_memory():
    chance = np.random.default_rng(3)
    features, nbytes = chance.random((200, 4)), chance.random(200)
    for share in (0.2, 0.5, 0.8):
        limit = share * nbytes.sum()
        weights, fits = balanced(features, nbytes, limit)
        assert fits
        assert 0.9 * limit <= nbytes[features @ weights > 0].sum() <= 1.1 * limit


def test_what_no_weights_can_balance_is_said():
    weights, fits = balanced(np.ones((1, 4)), np.array([10.0]), 5.0)
    assert not fits
    assert np.isfinite(weights).all()


def test_the_network_learns_the_value_of_an_action():
    """One state, of which one action is worth 1 and the other nothing."""
    from penstock.solve.game import Turn

    network = Network(Deeptm(rate=1e-2))
    seen = np.array([0.0, 0.5, 1.0, 1.0])
    for _ in range(300):
        network._learn([Turn(seen, action, float(action), None) for action in (0, 1)] * 8)
    assert network(seen[None])[0] == pytest.approx([0.0, 1.0], abs=0.05)


def test_the_slopes_are_those_of_the_squared_error():
    """One small step lowers the error of what it was made from, whatever the weights."""
    from penstock.solve.game import Turn

    for seed in range(5):
        network = Network(Deeptm(rate=1e-4, seed=seed))
        seen = np.random.default_rng(seed).random((8, 4))
        turns = [Turn(row, n % 2, 3.0, None) for n, row in enumerate(seen)]
        picked = np.array([n % 2 for n in range(8)])
        before = np.abs(network(seen)[np.arange(8), picked] - 3.0).sum()
        network._learn(turns)
        assert np.abs(network(seen)[np.arange(8), picked] - 3.0).sum() < before


def test_without_direct_access_the_plan_swaps():
    problem = Problem(chain(12), GPU, int(0.6 * chain(12).peak))
    plan = Deeptm()(problem)
    check(problem.trace, plan, GPU)
    assert plan.swaps and not plan.places


@settings(max_examples=10)
@given(traces(max_layers=4))
def test_any_step_is_planned(trace):
    for machine in (OPTANE, GPU):
        problem = Problem(trace, machine, trace.peak // 2)
        for moves in ("synchronous", "asynchronous"):
            policy = Deeptm(moves, smallest=1, greedy=5, episodes=5)
            check(trace, policy(problem), machine)


@pytest.mark.parametrize("machine", [OPTANE, GPU])
def test_it_never_loses_to_heat_wherever_that_is_cut(machine):
    trace, policy = STEPS["stateful"], Deeptm(smallest=1, page=1)
    problem = Problem(trace, machine, trace.peak // 2)
    game, found = game_of(problem, policy), outcome(problem, policy(problem))
    rules = policy.rules(game)
    assert len(rules) == 2 * (policy.cuts + 1)
    for rule in rules:
        where = game.where(policy.by_heat(game, rule))
        placed = decisions(problem, slow_tier(machine), where)
        assert found.rank <= outcome(problem, problem.given.plus(placed)).rank
