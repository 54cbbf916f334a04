"""Integer programmes small enough to be solved by hand, and against trying everything."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import InternalError, SolveError, UsageError
from penstock.solve.milp import Model

pytest.importorskip("highspy")


def test_a_knapsack_is_filled_to_its_best():
    model = Model()
    worth, weight = (10.0, 13.0, 7.0), (3.0, 4.0, 2.0)
    taken = [model.binary(("item", n), cost=-one) for n, one in enumerate(worth)]
    model.at_most(6.0, *zip(taken, weight, strict=True))
    found = model.solve(10)
    assert found.values == {("item", 0): 0.0, ("item", 1): 1.0, ("item", 2): 1.0}
    assert (found.objective, found.proven) == (-20.0, True)
    assert found.bound == pytest.approx(-20.0)


def test_continuous_and_whole_variables_mix():
    model = Model()
    count = model.integer("count", upper=10.0, cost=3.0)
    rest = model.continuous("rest", upper=0.5, cost=1.0)
    model.at_least(2.25, (count, 1.0), (rest, 1.0))
    assert model.solve(10).values == {"count": 2.0, "rest": pytest.approx(0.25)}


def test_costs_far_below_the_solvers_tolerances_still_count():
    model = Model()
    cheap, dear = model.binary("cheap", cost=1e-9), model.binary("dear", cost=2e-9)
    model.at_least(1.0, (cheap, 1.0), (dear, 1.0))
    found = model.solve(10)
    assert (found.values["cheap"], found.objective) == (1.0, 1e-9)


def test_a_programme_without_an_integer_variable_is_proven_too():
    model = Model(offset=5.0)
    x = model.continuous("x", upper=4.0, cost=-1.0)
    model.charge(x, -1.0)
    found = model.solve(10)
    assert (found.objective, found.proven, found.bound) == (-3.0, True, -3.0)


def test_a_variable_named_twice_in_a_row_counts_twice():
    model = Model()
    x = model.continuous("x", cost=1.0)
    model.at_least(6.0, (x, 1.0), (x, 2.0))
    assert model.solve(10).values["x"] == pytest.approx(2.0)


def test_what_is_fixed_stays():
    model = Model()
    x, y = model.binary("x", cost=1.0), model.binary("y", cost=1.0)
    model.fix(x, 1.0)
    model.equal(1.0, (x, 1.0), (y, 1.0))
    assert model.is_fixed(x) and not model.is_fixed(y)
    assert model.solve(10).values == {"x": 1.0, "y": 0.0}


def test_a_start_is_completed_and_never_made_worse():
    model = Model()
    items = [model.binary(n, cost=-1.0 - n % 3) for n in range(20)]
    model.at_most(7.0, *((item, 1.0) for item in items))
    found = model.solve(10, start=dict.fromkeys(range(5), 1.0))
    assert found.proven
    assert found.objective == -20.0  # six of worth 3, and one of 2


def test_contradicting_rows_have_no_solution():
    model = Model()
    x = model.binary("x")
    model.at_least(2.0, (x, 1.0))
    with pytest.raises(SolveError, match="1 variables and 1 constraints has no solution"):
        model.solve(10)


def test_no_time_is_refused():
    with pytest.raises(UsageError, match="time_limit is 0 seconds"):
        Model().solve(0)


def test_two_variables_of_one_name_are_a_bug():
    model = Model()
    model.binary("x")
    with pytest.raises(InternalError, match="two variables are named 'x'"):
        model.continuous("x")


def test_an_empty_programme_costs_its_offset():
    found = Model(offset=2.0).solve(1)
    assert (found.values, found.objective, found.proven) == ({}, 2.0, True)


@settings(max_examples=30)
@given(st.data())
def test_the_optimum_is_that_of_trying_everything(data):
    count = data.draw(st.integers(1, 5))
    whole = st.integers(-5, 5)
    costs = data.draw(st.lists(whole, min_size=count, max_size=count))
    rows = data.draw(st.lists(st.tuples(*[whole] * count, whole), max_size=4))
    feasible = [
        sum(c * x for c, x in zip(costs, bits, strict=True))
        for bits in itertools.product((0, 1), repeat=count)
        if all(sum(f * x for f, x in zip(row, bits, strict=False)) <= row[-1] for row in rows)
    ]
    model = Model()
    columns = [model.binary(n, cost=float(cost)) for n, cost in enumerate(costs)]
    for row in rows:
        model.at_most(float(row[-1]), *zip(columns, map(float, row), strict=False))
    if feasible:
        assert model.solve(10).objective == min(feasible)
    else:
        with pytest.raises(SolveError):
            model.solve(10)
