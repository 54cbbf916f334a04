"""dymem: offload without barriers, fetch two convolutions ahead, and keep the movable apart.

Idea      Offload what each layer saves while the next ones already run; wait for the copies once, where
          forward ends. In backward, each layer fetches what is needed upstream of it until two
          convolutions have their inputs. In the pool, values that are read more than once, or not by
          the very next layer, stand at the high end; the short-lived ones fill the low end (GTBM:
          group tensors by mobility), so that the former do not split the room of the latter.
Assumes   One tier; a net with forks and joins, else the grouping gains nothing.
Inferred  A layer is an op that closes the gap of a saved value. Where a step spends more arithmetic on
          matrix products than on convolutions, those are meant; where a trace names neither, every
          layer is. No value comes back before there is room for it, where the paper
          blocks until an allocation succeeds. A step that fits as it is stays as it is.
          Not carried: the depth-first order of the layers and the choice of a convolution's algorithm
          (ours are as recorded). The grouping gives addresses, and our plans name none: `arenas` says
          what it makes of a planned step.
Symbols   n: convolutions whose inputs are there, or on their way.
Reads     The trace, the first tier (past its room, the next); the budget, to see whether anything must go.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from penstock.ir.plan import Plan, Swap
from penstock.ir.policy import Need, Paper, Problem
from penstock.ir.trace import Gap, OpIndex, Phase, Trace, ValueId
from penstock.simulate.least import MOVABLE_FROM
from penstock.solve.best import Outcome
from penstock.solve.layers import heavy_kinds, kind_of, layers_of
from penstock.solve.offsets import Buffer, best_fit
from penstock.solve.pressure import Pressure
from penstock.solve.segments import backward_after
from penstock.solve.smartpool import blocks
from penstock.solve.tiers import shelved

__all__ = ["Arenas", "Dymem", "arenas", "fetches", "is_temporary", "two_ended"]


@dataclass(frozen=True, slots=True)
class Dymem:
    """vDNN's offloading with waits per copy, and prefetching by convolutions."""

    ahead: int = 2  # convolutions whose inputs may be there at once
    smallest: int = MOVABLE_FROM  # bytes: smaller values are kept

    paper: ClassVar = Paper(
        "Efficient GPU Memory Management for Nonlinear DNNs",
        "Yang, Cheng",
        "HPDC",
        2020,
    )
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TIER})

    def __call__(self, problem: Problem) -> Plan:
        trace, pressure, begins = problem.trace, Pressure(problem), backward_after(problem.trace)
        if pressure.is_relieved:
            return problem.given
        gaps = list(problem.free_saved_gaps(self.smallest))
        for gap in gaps:
            pressure.relieve(gap, trace.values[gap.value].nbytes)
        swaps = (
            Swap(
                gap,
                problem.machine.tiers[0].name,
                OpIndex(gap.start + 1),
                OpIndex(pressure.earliest_return(gap, trace.values[gap.value].nbytes, at)),
                fence=begins[gap.start],
            )
            for gap, at in fetches(trace, gaps, self.ahead)
        )
        return problem.given.plus(shelved(problem, swaps))


def fetches(trace: Trace, gaps: Sequence[Gap], ahead: int) -> list[tuple[Gap, int]]:
    """Each gap with the op at which its value is fetched (the paper's Algorithm 2)."""
    waiting = sorted(gaps, key=lambda gap: (gap.stop or 0, gap.value))
    layers = dict.fromkeys(gap.stop or 0 for gap in waiting)
    heavy = heavy_kinds(trace, layers_of(trace))
    named = {stop for stop in layers if kind_of(trace.ops[stop].name) in heavy}
    convolutions = named or set(layers)
    # Where backward begins, the loss is the current layer.
    begins = backward_after(trace)
    triggers = sorted({*layers, *(begins[gap.start] for gap in gaps)})
    found: list[tuple[Gap, int]] = []
    fetched = 0
    for current in triggers:
        # The convolutions whose inputs are there already count, as does the current layer.
        here = {gap.stop for gap, _ in found if (gap.stop or 0) > current} & convolutions
        n = len(here) + (current in convolutions)
        counted = current
        for gap in waiting[fetched:]:
            stop = gap.stop or 0
            if stop > current and gap.start + 2 > current:
                break  # it has not left yet
            if stop > current and stop in convolutions and stop != counted:
                if n >= ahead:
                    break
                n, counted = n + 1, stop
            found.append((gap, max(current, gap.start + 2)))
            fetched += 1
    return found


class Arenas(NamedTuple):
    """Bytes of the pool whose two ends fill towards each other, and of what stands outside of it."""

    pool: int
    reclaimed: int


def arenas(found: Outcome) -> Arenas:
    """What grouping by mobility makes of a planned step: the bytes that it fills at most."""
    trace = found.schedule.trace
    layers = layers_of(trace)
    last = {op for it in layers if it.is_classifier for op in range(it.first, it.last + 1)}
    pool: list[Buffer] = []
    is_high: list[bool] = []
    reclaimed: list[Buffer] = []
    met: set[ValueId] = set()
    for block in sorted(blocks(found), key=lambda block: block.buffer.start):
        value = block.value
        if value is None:
            pool.append(block.buffer)
            is_high.append(False)
        elif trace.values[value].producer in last:
            reclaimed.append(block.buffer)
        else:
            pool.append(block.buffer)
            # What comes back is grouped anew, by those who still read it.
            is_high.append(is_temporary(trace, value, is_back=value in met))
            met.add(value)
    outside, bare = two_ended(reclaimed, [False] * len(reclaimed)), two_ended(pool, is_high)
    return Arenas(bare.height, outside.height)


def is_temporary(trace: Trace, value: ValueId, *, is_back: bool = False) -> bool:
    """Is it read more than once in its phase, or first by another op than the next?

    `is_back`: it was away and is back for backward.
    """
    producer = trace.values[value].producer
    if producer is None:
        return True
    phase = Phase.BACKWARD if is_back else trace.ops[producer].phase
    readers = [op for op in trace.readers[value] if trace.ops[op].phase is phase]
    return len(readers) > 1 or (not is_back and any(op != producer + 1 for op in readers))


class TwoEnded(NamedTuple):
    """Offsets in the order in which the buffers were given, and the height at which none meet."""

    offsets: tuple[int, ...]
    height: int


def two_ended(wanted: Sequence[Buffer], is_high: Sequence[bool]) -> TwoEnded:
    """Buffers placed as they come, each by best fit from its own end of the pool.

    The height is the least at which the ends never meet: the paper's squeeze gap is 0 then.
    """
    depth = np.zeros(len(wanted), np.int64)  # of each buffer's near side, from its own end
    for end in (False, True):
        members = [i for i, high in enumerate(is_high) if high is end]
        buffers = [wanted[i] for i in members]
        order = sorted(range(len(buffers)), key=lambda i: buffers[i].start)
        depth[members] = best_fit(buffers, order)
    start, stop, nbytes = np.array(wanted, np.int64).reshape(-1, 3).T
    high, reach = np.array(is_high, np.bool_), depth + nbytes
    height = 0
    for moment in np.unique(start):
        alive = (start <= moment) & (moment < stop)
        ends = (reach[alive & end].max(initial=0) for end in (high, ~high))
        height = max(height, int(sum(ends)))
    offsets = np.where(high, height - reach, depth)
    return TwoEnded(tuple(offsets.tolist()), height)
