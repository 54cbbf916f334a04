"""What a link can still carry while each op runs, as transfers are booked on it."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ledger"]

_Bytes: TypeAlias = float | NDArray[np.float64]
_Ops: TypeAlias = int | NDArray[np.int64]


class Ledger:
    """One direction of a link. Slots are ops: in each, so many bytes as the link moves meanwhile."""

    def __init__(self, seconds: NDArray[np.float64], bandwidth: float) -> None:
        self.slots = seconds * bandwidth
        self.free = self.slots.copy()

    def finish(self, nbytes: _Bytes, start: _Ops) -> NDArray[np.int64]:
        """The op in which `nbytes` have gone that begin with op `start`.

        The number of ops, if the step ends before.
        """
        before = self._before()
        found = np.searchsorted(before, np.asarray(before[start] + nbytes)) - 1
        return np.maximum(found, start)

    def latest_start(self, nbytes: _Bytes, stop: _Ops) -> NDArray[np.int64]:
        """The last op with which `nbytes` can begin and be there when op `stop` starts.

        -1, if even the first is too late.
        """
        before = self._before()
        found = np.searchsorted(before, np.asarray(before[stop] - nbytes), side="right") - 1
        latest: NDArray[np.int64] = np.minimum(found, np.asarray(stop) - 1)
        return latest

    def book(self, nbytes: float, start: int, *, also: "Ledger | None" = None) -> slice:
        """Fill slots from op `start` on, and say which.

        What `also` has there is taken too: a link that the bytes share.
        """
        ahead = np.cumsum(self.free[start:])
        last = int(np.searchsorted(ahead, nbytes))  # the op that is filled in part
        taken = self.free[start : start + last + 1].copy()
        if last < len(ahead):
            taken[-1] = nbytes - (ahead[last - 1] if last else 0.0)
        filled = slice(start, start + last + 1)
        self.free[filled] -= taken
        if also is not None:
            also.free[filled] = np.maximum(also.free[filled] - taken, 0.0)
        return filled

    def give_way(self, other: "Ledger", filled: slice) -> None:
        """Where `other` was booked and has less left than a slot of this link, lose as much.

        Both end in the same link. What was booked here counts in `other` too, so this errs on the
        side of `other`.
        """
        lacking = np.maximum(self.slots[filled] - other.free[filled], 0.0)
        self.free[filled] = np.maximum(self.free[filled] - lacking, 0.0)

    def is_full(self, start: int, stop: int) -> bool:
        """Is no byte free from op `start` to just before op `stop`?"""
        return not bool((self.free[start:stop] > 0).any())

    def _before(self) -> NDArray[np.float64]:
        """Free bytes before each op, and in the whole step."""
        return np.concatenate(([0.0], np.cumsum(self.free)))
