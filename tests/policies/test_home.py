"""He et al.: HOME (IEEE Transactions on Computers, 2023)."""

from dataclasses import replace
from itertools import pairwise, product

import pytest
from hypothesis import given, settings

from hosts import host
from penstock.ir.plan import Recompute, Swap
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.policies.capuchin import Capuchin
from penstock.policies.home import KEEP, RECOMPUTE, SWAP, Home, feature_maps, plan
from penstock.solve.best import outcome
from steps import FED_BY_DEAD, STEPS, chain
from strategies import problems

MIB = 2**20
GIB = 2.0**30


def maps_of(problem):
    return feature_maps(problem.trace, list(problem.free_saved_gaps(2**16)))


def in_modules(trace, modules):
    ops = tuple(replace(op, module=m) for op, m in zip(trace.ops, modules, strict=True))
    return replace(trace, ops=ops)


# -- feature maps ---------------------------------------------------------------------------------


def test_a_feature_map_is_what_a_run_of_one_module_saves():
    trace = in_modules(chain(5), ["a", "a", "b", "a", "a", *[""] * 7])
    problem = Problem(trace, host(GIB), 0)
    named = [[trace.values[g.value].name for g in gaps] for gaps in maps_of(problem)]
    assert named == [["h0", "h1"], ["h2"], ["h3", "h4"]]


def test_without_module_paths_each_op_is_a_layer():
    problem = Problem(STEPS["in place"], host(GIB), 0)
    trace = problem.trace
    named = [[trace.values[g.value].name for g in gaps] for gaps in maps_of(problem)]
    assert all(len(gaps) == 1 or gaps == ["c", "m"] for gaps in named)


# -- what a vector means --------------------------------------------------------------------------


def test_a_vector_names_one_action_for_each_map():
    problem = Problem(chain(6), host(GIB), 0)
    maps = maps_of(problem)
    found = plan(problem, maps, (SWAP, RECOMPUTE, KEEP, SWAP, KEEP, KEEP))
    assert {s.gap for s in found.swaps} == {maps[0][0], maps[3][0]}
    assert {r.gap for r in found.recomputes} == {maps[1][0]}
    assert plan(problem, maps, (KEEP,) * 6).decisions == ()


def test_a_copy_back_is_issued_one_feature_map_ahead():
    problem = Problem(chain(6), host(GIB), 2**40)
    maps = maps_of(problem)
    for one, after in pairwise(maps[:5]):
        found = plan(problem, maps, [SWAP if gaps is one else KEEP for gaps in maps])
        (swap,) = found.swaps
        assert swap.evict_at == swap.gap.start + 1
        assert swap.prefetch_at == after[0].stop


def test_what_cannot_be_remade_is_swapped():
    """k is made from h, and h from what is dead by then: with h away too, neither can be remade."""
    problem = Problem(FED_BY_DEAD, host(GIB), 0)
    maps = maps_of(problem)
    assert len(maps) == 2
    found = plan(problem, maps, (RECOMPUTE, RECOMPUTE))
    assert found.recomputes == () or {r.gap for r in found.recomputes} == {maps[1][0]}
    assert {d.gap for d in found.decisions} == {maps[0][0], maps[1][0]}


# -- the search -----------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.35, 0.5, 0.7])
@pytest.mark.parametrize("bandwidth", [0.5 * GIB, 2 * GIB, 8 * GIB])
def test_it_finds_the_best_of_all_vectors_where_they_can_be_counted(bandwidth, share):
    trace = parse("""
        f a  x:I1M -> h:A8M!  2ms
        f b  h     -> i:A4M!  9ms
        f c  i     -> j:A8M!  1ms
        f d  j     -> k:A4M!  4ms
        f l  k     -> o:T1K   1ms
        b l' o k   -> e:T4M   1ms
        b d' e j   -> f:T8M   8ms
        b c' f i   -> g:T4M   2ms
        b b' g h   -> m:T8M   9ms
        b a' m x   -> n:T1M   4ms
    """)
    problem = Problem(trace, host(bandwidth), int(share * trace.peak))
    maps = maps_of(problem)
    vectors = product((KEEP, SWAP, RECOMPUTE), repeat=len(maps))
    best = min(outcome(problem, plan(problem, maps, vector)).rank for vector in vectors)
    assert outcome(problem, Home(particles=40)(problem)).rank == best


def test_the_same_seed_gives_the_same_plan_and_more_evaluations_none_that_is_worse():
    problem = Problem(STEPS["skips"], host(GIB), int(0.5 * STEPS["skips"].peak))
    assert Home(seed=4)(problem) == Home(seed=4)(problem)
    ranks = [outcome(problem, Home(evaluations=n)(problem)).rank for n in (1, 5, 20, 80, 320)]
    assert ranks == sorted(ranks, reverse=True)


@pytest.mark.parametrize("share", [0.35, 0.5, 0.7])
def test_it_is_no_slower_than_the_heuristic_of_the_same_actions(share):
    """Capuchin decides value by value. Where copies are rare enough, when they come back is no matter."""
    trace = chain(8, "4M", "10ms")
    problem = Problem(trace, host(GIB), int(share * trace.peak))
    home = outcome(problem, Home()(problem))
    assert home.shortfall == 0
    assert home.timeline.seconds <= outcome(problem, Capuchin()(problem)).timeline.seconds + 1e-9


def test_a_swarm_that_begins_infeasible_finds_what_fits():
    """Only few of 3^12 vectors fit: what lacks less room is better, so the particles get there."""
    trace = chain(12, "4M", "1ms")
    problem = Problem(trace, host(GIB), 16 * MIB)
    assert outcome(problem, Home()(problem)).shortfall == 0


@settings(max_examples=15)
@given(problems())
def test_only_saved_values_are_touched(problem):
    for decision in Home(evaluations=30)(problem).decisions:
        assert isinstance(decision, Swap | Recompute)
        assert problem.trace.awaits_backward(decision.gap)
