"""What lies in the tiers below the device while each op runs, if a plan is followed."""

import numpy as np
from numpy.typing import NDArray

from penstock.ir.machine import Machine, Tier
from penstock.ir.plan import Plan
from penstock.ir.trace import Gap, Trace

__all__ = ["Shelves"]


class Shelves:
    """Bytes that lie in each tier while each op runs: those of `plan`'s swaps, and what is added.

    A value counts from the op that opens its gap to the op that closes it, wherever its copies are.
    """

    def __init__(self, trace: Trace, machine: Machine, plan: Plan) -> None:
        self._trace = trace
        self.held: dict[str, NDArray[np.int64]] = {
            tier.name: np.zeros(len(trace.ops), np.int64) for tier in machine.tiers
        }
        for swap in plan.swaps:
            self.add(swap.gap, swap.tier)

    def add(self, gap: Gap, tier: str, sign: int = 1) -> None:
        nbytes = sign * self._trace.values[gap.value].nbytes
        for first, last in self._trace.idle(gap):
            self.held[tier][first:last] += nbytes

    def peak(self, tier: str) -> int:
        """Bytes: the most that lie in `tier` at once."""
        return int(self.held[tier].max(initial=0))

    def is_over(self, tier: Tier, gap: Gap) -> bool:
        """Does `tier` hold more than it can anywhere while the gap's value lies idle?"""
        return any(
            bool((self.held[tier.name][first:last] > tier.capacity).any())
            for first, last in self._trace.idle(gap)
        )
