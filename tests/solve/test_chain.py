"""Rotor's dynamic programme: the authors' values, and schedules that do what the table says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import SolveError
from penstock.solve.chain import Block, Chain, Saving, in_units, solve

# The authors' own pure-Python routine on n blocks and a free loss block: by n, the seconds from the
# smallest budget (4) on, until everything is kept.
GOLDEN = {
    5: [25, 20, 19, 18, 17, 17, 16, 15],
    10: [75, 50, 44, 40, 38, 37, 37, 36, 35, 35, 34, 34, 33, 33, 32, 32, 31, 30],
}


def uniform(blocks):
    """Forward 1 s, backward 2 s, inputs of 1, 2 saved."""
    body = [Block((Saving(1.0, 2.0, 2),), 1.0, 1)] * blocks
    return Chain((*body, Block((Saving(0.0, 0.0, 0),), 0.0, 1)))


@pytest.mark.parametrize("blocks", GOLDEN)
def test_uniform_chains_take_what_the_authors_say(blocks):
    table = solve(uniform(blocks), 40)
    assert table.least == 4
    assert not np.isfinite(table.seconds[:4]).any()
    expected = GOLDEN[blocks]
    assert table.seconds[4 : 4 + len(expected)].tolist() == expected
    assert set(table.seconds[3 + len(expected) :].tolist()) == {3 * blocks}
    assert uniform(blocks).seconds == 3 * blocks


@st.composite
def chains(draw):
    number = st.integers(1, 4)

    def saving(entry):
        return Saving(
            float(draw(number)),
            float(draw(number)),
            entry + draw(st.integers(0, 4)),
            draw(st.integers(0, 2)),
            draw(st.integers(0, 2)),
        )

    blocks = []
    for _ in range(draw(st.integers(1, 5))):
        options = tuple(saving(1) for _ in range(draw(st.integers(1, 2))))
        passing = min(option.forward for option in options)
        blocks.append(Block(options, passing, draw(number), draw(st.integers(0, 2))))
    return Chain(tuple(blocks), draw(st.integers(0, 2)))


@settings(max_examples=60)
@given(chain=chains())
def test_a_schedule_takes_the_seconds_and_bytes_of_its_entry(chain):
    table = solve(chain, 40)
    finite = np.flatnonzero(np.isfinite(table.seconds))
    assert (np.diff(table.seconds[finite]) <= 0).all(), "more room never costs time"
    for budget in finite[:: max(1, len(finite) // 5)].tolist():
        seconds, most = carried_out(chain, table.runs(budget))
        assert seconds == table.seconds[budget]
        assert most <= budget
    assert table.seconds[40] == chain.seconds or not np.isfinite(table.seconds[40])


def carried_out(chain, runs):
    """Seconds, and the most bytes held at once: kept inputs, saved sets, and the run's own.

    What a run reads must be there: the result of the run before it, or what was kept or saved.
    """
    blocks = chain.blocks
    sizes = [*(block.input for block in blocks), chain.output]
    kept, saved, due = {0: 0}, {}, len(blocks) - 1
    seconds, most, at = 0.0, 0, 0  # the block whose input the run before left
    for run in runs:
        n = run.block
        held = sum(kept.values()) + sum(saved.values())
        if run.verb == "keep":
            assert at == n
            kept[n] = sizes[n]
            continue
        if run.verb == "back":
            assert n == due and n in saved
            option = blocks[n].options[run.option]
            most = max(most, held + option.backward_scratch)
            seconds += option.backward
            del saved[n]
            kept.pop(n, None)
            due, at = n - 1, -1
            continue
        assert at == n or n in kept or n - 1 in saved, "its input is there"
        at = n + 1
        if run.verb == "pass":
            seconds += blocks[n].passing
            continue
        option = blocks[n].options[run.option]
        seconds += option.forward
        saved[n] = option.saved
        most = max(most, held + option.saved + option.forward_scratch)
    assert due == -1
    return seconds, most


def test_too_little_room_is_said_with_the_least_that_will_do():
    table = solve(uniform(5), 20)
    with pytest.raises(SolveError, match="6 blocks fits into 3 bytes; the least is 4"):
        table.runs(3)


def test_units_are_rounded_up():
    chain = Chain((Block((Saving(1.0, 1.0, 5, 1, 9),), 1.0, 8, 3, 4),), 7)
    expected = Chain((Block((Saving(1.0, 1.0, 2, 1, 3),), 1.0, 2, 1, 1),), 2)
    assert in_units(chain, 4) == expected


def test_what_is_held_beside_the_chain_counts():
    bare, full = uniform(5), uniform(5)
    full = Chain(tuple(Block(b.options, b.passing, b.input, 0, 3) for b in full.blocks))
    assert solve(full, 40).least > solve(bare, 40).least
