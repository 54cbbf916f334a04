"""Checkmate's and POET's programmes, on graphs whose optima are known."""

import heapq
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import SolveError
from penstock.solve.stages import Paging, forced, peak, plain, relaxed, rounded, solve

LIMIT = 60.0

# Checkmate's test graph `gen_linear_graph`: its own formulation, solved by another open solver; for 3
# to 6 layers also by exhaustive search. By layers and budget: how many nodes run in all.
OPTIMA = {
    (3, 3): 10, (3, 4): 8, (3, 5): 7, (3, 6): 7,
    (4, 3): 15, (4, 4): 11, (4, 5): 10, (4, 6): 9, (4, 7): 9,
    (5, 3): 21, (5, 4): 14, (5, 5): 13, (5, 6): 12, (5, 7): 11, (5, 8): 11,
    (6, 3): 28, (6, 4): 18, (6, 5): 16, (6, 6): 15, (6, 7): 14, (6, 8): 13, (6, 9): 13,
    (8, 3): 45, (8, 4): 26, (8, 5): 22, (8, 6): 21, (8, 7): 20, (8, 8): 19, (8, 9): 18, (8, 10): 17,
}  # fmt: skip


def linear(layers):
    """A chain of 2 layers + 1 nodes, and each of the first half read by its mirror."""
    count = 2 * layers + 1
    edges = [*pairwise(range(count)), *((n, 2 * layers - n) for n in range(layers))]
    return plain([1.0] * count, [1] * count, edges)


@pytest.mark.parametrize(("layers", "budget"), OPTIMA)
def test_unit_chains_have_the_published_optima(layers, budget):
    graph = linear(layers)
    found = solve(graph, budget, LIMIT)
    assert found.proven
    assert round(found.cost) + len(graph.nodes) == OPTIMA[layers, budget]
    assert len(found.again) + len(graph.nodes) == OPTIMA[layers, budget]
    assert peak(graph, found) <= budget


def test_a_budget_of_two_is_too_small():
    with pytest.raises(SolveError, match="no solution"):
        solve(linear(4), 2, LIMIT)


def test_with_room_for_all_nothing_runs_again():
    graph = linear(6)
    all_held = forced(graph, {(t, v) for v in range(13) for t in range(v + 1, 13)})
    assert all_held.again == frozenset()
    assert solve(graph, peak(graph, all_held), LIMIT).cost == 0


@st.composite
def graphs(draw):
    """Small graphs in a fixed order, each node but the first reading some before it."""
    count = draw(st.integers(3, 7))
    edges = []
    for target in range(1, count):
        sources = draw(st.sets(st.integers(0, target - 1), min_size=1, max_size=2))
        edges += [(source, target) for source in sources]
    costs = draw(st.lists(st.integers(1, 4), min_size=count, max_size=count))
    sizes = draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))
    return plain([float(cost) for cost in costs], sizes, edges)


def searched(graph, budget):
    """The least cost by search over sets of resident values; None if nothing fits.

    Moves: let a value go, run again what ran before, run the next node for the first time.
    """
    count = len(graph.nodes)
    queue, known = [(0.0, 0, 0)], {(0, 0): 0.0}
    while queue:
        cost, stage, resident = heapq.heappop(queue)
        if stage == count:
            return cost
        if known[stage, resident] < cost:
            continue
        held = sum(data.nbytes for v, data in enumerate(graph.data) if resident >> v & 1)
        moves = [(cost, stage, resident & ~(1 << v)) for v in range(count) if resident >> v & 1]
        for k in range(stage + 1):
            if resident >> k & 1 or held + graph.data[k].nbytes > budget:
                continue
            if all(resident >> v & 1 for v in graph.nodes[k].reads):
                price = graph.nodes[k].cost if k < stage else 0.0
                moves.append((cost + price, max(stage, k + 1), resident | 1 << k))
        for move in moves:
            if move[0] < known.get(move[1:], float("inf")):
                known[move[1:]] = move[0]
                heapq.heappush(queue, move)
    return None


@settings(max_examples=40)
@given(graph=graphs(), spare=st.integers(0, 6))
def test_no_search_finds_less_and_every_solution_keeps_its_budget(graph, spare):
    budget = spare + max(
        data.nbytes + sum(graph.data[v].nbytes for v in node.reads)
        for data, node in zip(graph.data, graph.nodes, strict=True)
    )
    try:
        found = solve(graph, budget, LIMIT)
    except SolveError:
        return  # within a stage the programme runs nodes in one order, the search in any
    assert peak(graph, found) <= budget
    assert found.cost == sum(graph.nodes[k].cost for _, k in found.again)
    assert searched(graph, budget) <= found.cost
    held = relaxed(graph, budget, LIMIT)
    assert held[1] <= found.cost + 1e-6


@pytest.mark.parametrize("layers", [3, 4, 5])
def test_on_chains_the_search_finds_no_less(layers):
    for budget in range(3, layers + 3):
        assert searched(linear(layers), budget) == round(solve(linear(layers), budget, LIMIT).cost)


def test_more_room_never_costs_more_and_rounding_lies_above_the_optimum():
    graph = linear(6)
    costs = [solve(graph, budget, LIMIT).cost for budget in range(3, 10)]
    assert costs == sorted(costs, reverse=True)
    for budget, cost in zip(range(3, 10), costs, strict=True):
        held, bound = relaxed(graph, budget, LIMIT)
        assert bound <= cost + 1e-6
        assert all(-1e-6 <= share <= 1 + 1e-6 for share in held.values())
    found = rounded(graph, 6, LIMIT)
    assert found.cost >= costs[3]
    assert peak(graph, found) <= 6


def test_a_start_is_taken_and_bettered():
    graph = linear(5)
    start = rounded(graph, 7, LIMIT)
    assert peak(graph, start) <= 7
    assert solve(graph, 7, LIMIT, start=start).cost <= start.cost


def test_where_the_solver_has_no_time_the_start_is_the_answer():
    graph = linear(24)
    start = forced(graph, set())
    budget = peak(graph, start)
    with pytest.raises(SolveError):
        solve(graph, budget, 1e-9)
    assert solve(graph, budget, 1e-9, start=start).cost <= start.cost


# -- POET ----------------------------------------------------------------------------------------


def paged(count, price):
    return Paging((price,) * count, (price,) * count)


def test_copies_that_cost_too_much_leave_checkmates_answer():
    graph = linear(5)
    both = solve(graph, 4, LIMIT, paging=paged(11, 1e3))
    assert both.cost == solve(graph, 4, LIMIT).cost == 3
    assert not both.out and not both.back


def test_where_work_costs_too_much_only_copies_are_made():
    chained = linear(5)
    dear = plain(
        [1e4] * 11, [1] * 11, [(v, k) for k, node in enumerate(chained.nodes) for v in node.reads]
    )
    found = solve(dear, 4, LIMIT, paging=paged(11, 1.0))
    assert not found.again
    # What is away is copied out once and back once.
    assert found.cost == len(found.out) + len(found.back) > 0
    assert {v for _, v in found.out} == {v for _, v in found.back}


def test_both_together_are_never_worse_than_either():
    graph = linear(5)
    alone = solve(graph, 3, LIMIT).cost
    costs = [solve(graph, 3, LIMIT, paging=paged(11, price)).cost for price in (0.1, 0.5, 2.0)]
    assert costs == sorted(costs)
    assert costs[-1] <= alone
