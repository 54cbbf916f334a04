"""flashneuron: write what waits for backward straight to the SSD, in forward order, until the rest fits.

Idea      Phase 1 takes saved values in the order in which forward makes them, until those that stay fit
          beside the resident set: model state and the largest op. Phase 2, while writing lasts longer
          than forward, exchanges the last that cannot be compressed for others that can. What was
          written comes back as memory frees, in the order in which backward reads it.
Assumes   Each iteration alike; model state and workspace resident; writes end before backward begins.
Inferred  `fits` is at most, and an exchange stops at as many bytes as it gave up (the paper's own
          example wants both). Copies back start after an op, as long as what is free then holds them and
          the largest op; never before later ops leave them room. Where the formula promises too much
          (gradients that pile up), more is taken, still in forward order. The SSD is the lowest tier.
Not here  Compression: a plan has no codec yet, and rounding to FP16 would change results. So no value
          counts as compressible and phase 2 finds nothing to exchange. Nor the two-ended arena: planned
          offsets are the allocator's business.
Reads     The trace, the last tier, the budget.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar, NamedTuple

from penstock.ir.plan import Plan
from penstock.ir.policy import Need, Paper, Problem
from penstock.ir.trace import Gap, Op, OpIndex, Phase, Trace, ValueId
from penstock.solve.best import Outcome, outcome
from penstock.solve.pressure import Pressure
from penstock.solve.segments import backward_after
from penstock.solve.swaps import as_room_allows

__all__ = ["Flashneuron", "Tensor", "phase_1", "phase_2"]


class Tensor(NamedTuple):
    """What the selection sees of a saved value."""

    nbytes: int
    ratio: float = 1.0  # bytes over compressed bytes; 1: it cannot be compressed


@dataclass(frozen=True, slots=True)
class Flashneuron:
    """Forward order, eager copies back, backward after the last write."""

    smallest: int = 1 << 20  # bytes: smaller values are kept

    paper: ClassVar = Paper(
        "FlashNeuron: SSD-Enabled Large-Batch Training of Very Deep Neural Networks",
        "Bae, Lee, Jin, Son, Kim, Jang, Ham, Lee",
        "FAST",
        2021,
        "https://www.usenix.org/conference/fast21/presentation/bae",
    )
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TIER})

    def __call__(self, problem: Problem) -> Plan:
        trace, tier = problem.trace, problem.machine.tiers[-1]
        gaps = sorted(
            problem.free_saved_gaps(self.smallest),
            key=lambda gap: (trace.values[gap.value].producer or 0, gap.value),
        )
        tensors = [Tensor(trace.values[gap.value].nbytes) for gap in gaps]
        first = phase_1(tensors, problem.budget - trace.slack - resident(trace))
        forward = sum(op.seconds for op in trace.ops if op.phase is Phase.FORWARD)
        chosen = phase_2(tensors, first, forward, tier.write.bandwidth)
        order = [*chosen, *(n for n in range(len(gaps)) if n not in set(chosen))]

        @cache
        def taking(count: int) -> Outcome:
            return written(problem, [gaps[n] for n in order[:count]])

        low, high = len(chosen), len(order)
        if not taking(low).shortfall:
            return taking(low).plan
        if taking(high).shortfall:
            return min((taking(high), taking(low)), key=lambda found: found.shortfall).plan
        while high - low > 1:  # `low` falls short, `high` fits
            middle = (low + high) // 2
            low, high = (middle, high) if taking(middle).shortfall else (low, middle)
        return taking(high).plan


def resident(trace: Trace) -> int:
    """Bytes of model state and of what the largest op touches beside it."""
    state = sum(trace.values[v].nbytes for v in trace.initial if _is_state(trace, v))
    return state + largest(trace)


def largest(trace: Trace) -> int:
    """Bytes of the op that touches most beside model state."""
    return max((_touched(trace, op) for op in trace.ops), default=0)


def _touched(trace: Trace, op: Op) -> int:
    values = (v for v in {*op.reads, *trace.fresh[op.index]} if not _is_state(trace, v))
    return sum(trace.values[v].nbytes for v in values) + op.workspace


def _is_state(trace: Trace, value: ValueId) -> bool:
    return trace.values[value].kind.is_state


def phase_1(tensors: Sequence[Tensor], room: int) -> list[int]:
    """The positions of the first tensors without which the rest fits in `room` bytes."""
    kept, count = sum(tensor.nbytes for tensor in tensors), 0
    while count < len(tensors) and kept > room:
        kept -= tensors[count].nbytes
        count += 1
    return list(range(count))


def phase_2(
    tensors: Sequence[Tensor], chosen: Sequence[int], seconds: float, bandwidth: float
) -> list[int]:
    """Exchange tensors of `chosen` until writing it takes no more than `seconds`, or none is left."""
    found = list(chosen)
    spare = [n for n, tensor in enumerate(tensors) if tensor.ratio > 1 and n not in set(found)]
    spare.sort(key=lambda n: -tensors[n].ratio)
    while sum(tensors[n].nbytes / tensors[n].ratio for n in found) > seconds * bandwidth:
        given_up = next((n for n in reversed(found) if tensors[n].ratio <= 1), None)
        if given_up is None:
            break
        taken, nbytes = 0, 0
        while taken < len(spare) and nbytes < tensors[given_up].nbytes:
            nbytes += tensors[spare[taken]].nbytes
            taken += 1
        if nbytes < tensors[given_up].nbytes:
            break
        found = sorted({*found, *spare[:taken]} - {given_up})
        del spare[:taken]
    return found


def written(problem: Problem, gaps: list[Gap]) -> Outcome:
    """The outcome if the values of `gaps` go to the SSD, and backward waits until they are there."""
    trace, pressure, begins = problem.trace, Pressure(problem), backward_after(problem.trace)
    for gap in gaps:
        pressure.relieve(gap, trace.values[gap.value].nbytes)
    back = drawn(trace, pressure, gaps, begins)
    tier = problem.machine.tiers[-1]
    swaps = as_room_allows(trace, tier, gaps, pressure, after=lambda gap: back[gap] - 1)
    fenced = (replace(swap, fence=begins[swap.gap.start]) for swap in swaps)
    return outcome(problem, problem.given.plus(fenced))


def drawn(
    trace: Trace, pressure: Pressure, gaps: list[Gap], begins: list[OpIndex]
) -> dict[Gap, int]:
    """With which op each value comes back: when what is free holds it and the largest op."""
    found: dict[Gap, int] = {}
    queue = deque(sorted(gaps, key=lambda gap: gap.stop or 0))
    reserve, early = largest(trace), 0  # `early`: bytes that are back and not used yet
    closing = [0] * (len(trace.ops) + 1)
    for op in trace.ops:
        early -= closing[op.index]
        gone = sum(trace.values[v].nbytes for v in trace.freed_after[op.index]) + op.workspace
        free = gone - pressure.over(op.index) - early - reserve
        while queue and begins[queue[0].start] <= op.index:
            gap = queue[0]
            nbytes = trace.values[gap.value].nbytes
            assert gap.stop is not None
            if gap.stop > op.index + 1:
                if free <= nbytes:
                    break
                free, early = free - nbytes, early + nbytes
                closing[gap.stop] += nbytes
            found[queue.popleft()] = op.index + 1
    return {gap: found.get(gap, gap.stop or 0) for gap in gaps}
