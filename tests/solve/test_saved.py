"""What to save at the end of forward: PyTorch's own tables, and exhaustion."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.solve.saved import Result, save


def even_chain():
    """x.cos(), then five times a product and a cos: all of 1 MiB, products of one unit of work."""
    results = [Result(1, 0)]
    for _ in range(5):
        results.append(Result(1, 1, (len(results) - 1,)))
        results.append(Result(1, 0, (len(results) - 1,)))
    results[-1] = Result(1, 0, (len(results) - 2,), needed=False)
    return results


@pytest.mark.parametrize("tenths", range(11))
def test_the_even_chain_of_pytorchs_memory_budget(tenths):
    """test/functorch/test_ac.py of PyTorch; at the whole budget it keeps what is free to remake."""
    found = save(even_chain(), tenths)
    assert (found.nbytes, found.cost) == (min(tenths, 5), max(0, 5 - tenths))


@pytest.mark.parametrize(
    ("nbytes", "seconds", "room", "kept"),
    [
        ([2, 3, 2, 4, 1], [1, 2, 1, 3, 2], 5, 5),
        ([10, 20, 30], [1, 2, 3], 5, 0),
        ([0, 2, 3], [5, 2, 3], 5, 10),
        ([1, 2, 3], [0, 2, 3], 3, 3),
        ([0.5, 1.5, 2.0], [1, 2, 3], 2.0, 3),
        ([], [], 10, 0),
        ([1, 2, 3], [0, 0, 0], 6, 0),
    ],
)
def test_knapsacks_of_pytorchs_tests(nbytes, seconds, room, kept):
    """test/functorch/test_ac_knapsack.py of PyTorch."""
    found = save([Result(size, cost) for size, cost in zip(nbytes, seconds, strict=True)], room)
    assert sum(seconds) - found.cost == kept
    assert found.nbytes <= room


def made_again(results, saved):
    """What must be made again if `saved` is saved."""
    again, pending = set(), [n for n, one in enumerate(results) if one.needed and n not in saved]
    while pending:
        n = pending.pop()
        if n not in again:
            again.add(n)
            pending += [read for read in results[n].reads if read not in saved]
    return again


@settings(max_examples=40)
@given(data=st.data())
def test_no_other_choice_costs_less(data):
    results = [
        Result(
            data.draw(st.integers(0, 4)),
            data.draw(st.integers(0, 4)),
            tuple(data.draw(st.sets(st.integers(0, n - 1), max_size=2))) if n else (),
            needed=data.draw(st.booleans()),
        )
        for n in range(data.draw(st.integers(1, 6)))
    ]
    budget = data.draw(st.integers(0, 10))
    found = save(results, budget)
    assert set(found.again) >= made_again(results, set(found.saved))
    least = min(
        sum(results[n].cost for n in made_again(results, set(saved)))
        for count in range(len(results) + 1)
        for saved in combinations(range(len(results)), count)
        if sum(results[n].nbytes for n in saved) <= budget
    )
    assert found.cost == least
