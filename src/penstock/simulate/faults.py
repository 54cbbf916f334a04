"""What memory costs that comes from the system anew, on a CPU: to take it, and to give it back."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from penstock.ir.machine import Faults
from penstock.ir.trace import Trace
from penstock.simulate.fit import not_negative

__all__ = ["Taken", "fitted_faults", "in_ops", "of_blocks", "of_scratch", "while_freeing"]

_SMALL, _LARGE = 64 << 10, 4 << 20
"""Bytes from which a block comes from the system if none is kept, and from which in huge pages."""


def of_blocks(nbytes: NDArray[np.int64], faults: Faults) -> NDArray[np.float64]:
    """By block of so many bytes: seconds to take it."""
    if_not_large = np.where(nbytes >= _SMALL, faults.small, 0.0)
    rate: NDArray[np.float64] = np.where(nbytes >= _LARGE, faults.large, if_not_large)
    return rate * nbytes


def of_scratch(nbytes: NDArray[np.int64], faults: Faults) -> NDArray[np.float64]:
    """The same of one that the op also gives back."""
    return of_blocks(nbytes, faults) + faults.returned * nbytes


def in_ops(trace: Trace, faults: Faults) -> NDArray[np.float64]:
    """By op of the plain step: seconds to take what it gives out, and its workspace."""
    seconds = of_blocks(trace.columns.nbytes, faults)
    found = of_scratch(trace.columns.workspace, faults)
    for op, made in enumerate(trace.fresh):
        found[op] += seconds[list(made)].sum()
    return found


def while_freeing(trace: Trace, faults: Faults) -> NDArray[np.float64]:
    """By op of the plain step: the host's seconds before it to give back what no op needs any more."""
    found: NDArray[np.float64] = np.multiply(trace.columns.freed_before, faults.returned)
    return found


class Taken(NamedTuple):
    """A step that ran where what is freed goes back, and where it stays."""

    trace: Trace
    tight: float  # seconds of the one
    kept: float  # seconds of the other


def fitted_faults(steps: Sequence[Taken]) -> Faults:
    """The rates that explain best what steps took more, as shares of what they took."""
    units = (Faults(small=1.0), Faults(large=1.0), Faults(returned=1.0))
    columns = np.array(
        [
            [(in_ops(one.trace, unit) + while_freeing(one.trace, unit)).sum() for unit in units]
            for one in steps
        ]
    )
    tight, kept = (np.array(seconds) for seconds in zip(*(step[1:] for step in steps), strict=True))
    return Faults(*not_negative(columns / tight[:, None], 1 - kept / tight))
