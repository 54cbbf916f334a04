"""Where a step lacks room: bytes over the budget, op by op, and what would relieve them."""

import numpy as np
from numpy.typing import NDArray

from penstock.ir.policy import Problem
from penstock.ir.trace import Gap
from penstock.simulate.lower import lower

__all__ = ["Pressure", "bytes_held"]


class Pressure:
    """Bytes over the limit at each op, as values are sent away. What is given counts as done."""

    def __init__(self, problem: Problem) -> None:
        trace = problem.trace
        limit = problem.budget - trace.slack
        self._trace = trace
        self._over: NDArray[np.int64] = bytes_held(problem) - limit

    def over(self, op: int) -> int:
        """Bytes that are lacking at `op`; below 0: bytes that are left."""
        return int(self._over[op])

    @property
    def is_relieved(self) -> bool:
        return bool(self._over.max(initial=0) <= 0)

    @property
    def worst(self) -> int:
        """Bytes that are lacking where most are; 0 if none are."""
        return max(0, int(self._over.max(initial=0)))

    def touches(self, gap: Gap, until: int | None = None) -> bool:
        """Would sending the gap's value away help anywhere?"""
        return any(bool((self._over[a:b] > 0).any()) for a, b in self._trace.idle(gap, until))

    def relieve(self, gap: Gap, nbytes: int, until: int | None = None) -> None:
        """The gap's value is away, up to op `until` (None: as long as it is idle)."""
        for first, last in self._trace.idle(gap, until):
            self._over[first:last] -= nbytes

    def restore(self, gap: Gap, nbytes: int, until: int | None = None) -> bool:
        """Could the value, away up to op `until`, as well stay? If so, it does from here on."""
        stretches = self._trace.idle(gap, until)
        if any(bool((self._over[a:b] + nbytes > 0).any()) for a, b in stretches):
            return False
        self.relieve(gap, -nbytes, until)
        return True

    def earliest_return(self, gap: Gap, nbytes: int, wanted: int) -> int:
        """From which op on, not before `wanted`, the value could be back without lacking room.

        Takes the room that it finds. The op that closes the gap is the latest answer.
        """
        assert gap.stop is not None
        blocked = np.flatnonzero(self._over[wanted : gap.stop] + nbytes > 0)
        first = wanted + int(blocked[-1]) + 1 if blocked.size else wanted
        self._over[first : gap.stop] += nbytes
        return first


def bytes_held(problem: Problem) -> NDArray[np.int64]:
    """By op: the bytes that are held while it runs, if only what is given is done."""
    trace, given = problem.trace, problem.given
    return lower(trace, given).need if given.decisions else trace.live
