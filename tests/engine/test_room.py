"""Room that a plan did not foresee: who has to go."""

from collections.abc import Iterator

import pytest
import torch
from torch import UntypedStorage

from gates import GatedStore
from penstock.engine.engine import Engine
from penstock.engine.lanes import ThreadLane
from penstock.engine.program import Program, compile_program
from penstock.engine.residency import MountedTier, Place
from penstock.ir.machine import Device, Machine
from penstock.ir.plan import Plan
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.ir.trace import ValueId
from penstock.solve.best import outcome
from runs import MIB

CPU = torch.device("cpu")
BUDGET = 10 * MIB

TWO_VALUES = parse("""
    f a  x:I1K -> p:A1M  1ms    # value 1
    f b  x     -> q:A1M  1ms    # value 2
    f c  p     -> r:A1K  1ms
    f d  q     -> s:A1K  1ms
""")


class Full:
    """A meter of a device that holds all of the budget."""

    def resident(self) -> int:
        return BUDGET

    def used(self) -> int:
        return BUDGET

    def peak(self) -> int:
        return BUDGET

    def reset_peak(self) -> None:
        pass


@pytest.fixture
def engine() -> Iterator[Engine]:
    store = GatedStore(CPU)
    tier = MountedTier(store, ThreadLane("out", store, CPU), ThreadLane("back", store, CPU))
    made = Engine(CPU, [tier], BUDGET, Full(), 0)
    yield made
    made.close()


def program() -> Program:
    found = outcome(Problem(TWO_VALUES, Machine(Device("cpu", 1 << 40)), 1 << 40), Plan())
    calls = [torch.ops.aten.relu.default] * len(TWO_VALUES.ops)
    return compile_program(calls, found.plan, found.schedule, found.timeline, {})


@pytest.mark.parametrize("is_known", [True, False])
def test_what_is_fetched_unplanned_sends_away_what_is_used_last_if_that_is_known(
    engine: Engine, *, is_known: bool
) -> None:
    """Of p and q, p was touched first, and op 2, which is to run, reads it."""
    if is_known:
        engine._enter(program(), 3)  # `follow` counts an op when it begins to prepare it
    p, q = UntypedStorage(MIB), UntypedStorage(MIB)
    for tick, value, storage in ((1, 1, p), (2, 2, q)):
        engine._tick = tick
        engine._bind(ValueId(value), storage)
    engine._tick = 3
    engine._room_for_fetch(MIB)
    away = [storage for storage in (p, q) if engine.manager.meet(storage).place is not Place.HERE]
    assert away == [q if is_known else p]
