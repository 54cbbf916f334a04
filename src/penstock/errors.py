"""Every exception that Penstock raises.

PenstockError
├── TraceError      a recording is inconsistent, or was written by a version we do not know
├── PlanError       a plan does not fit its trace; lists every fault
├── NeedError       a problem lacks what a policy needs
├── SolveError      a solver proved that there is no solution, or found none in its time
├── BudgetError     no plan can meet the budget; says the least that can
├── TierError       a tier below the device failed: full, short write, gone
├── UsageError      an option that a person typed makes no sense
└── InternalError   a bug of ours

StepChanged (a UserWarning)   the step differs from the recorded one

Facts are attributes, the text is made in `__str__`, and all arguments are positional, so that an
error survives the pickling of a worker process.
"""

import difflib
from collections.abc import Iterable, Sequence

__all__ = [
    "BudgetError",
    "InternalError",
    "NeedError",
    "PenstockError",
    "PlanError",
    "SolveError",
    "StepChanged",
    "TierError",
    "TraceError",
    "UsageError",
    "enough_mib",
    "mib",
    "nearest",
]


def mib(nbytes: float) -> str:
    """Bytes as people read them: `1,234 MiB`, with two digits below 10 MiB."""
    value = nbytes / 2**20
    return f"{value:,.0f} MiB" if abs(value) >= 10 else f"{value:,.2f} MiB"


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name, if one of `known` is near: `; did you mean chen?`."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


class PenstockError(Exception):
    """Base of all errors that Penstock raises on purpose."""


class TraceError(PenstockError):
    """A trace, plan, machine or timeline cannot be read, or contradicts itself."""


class PlanError(PenstockError):
    """A plan does not fit its trace. `faults` holds one line for each thing that is wrong."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__(tuple(faults))
        self.faults = tuple(faults)

    def __str__(self) -> str:
        shown = list(self.faults[:20])
        if hidden := len(self.faults) - len(shown):
            shown.append(f"and {hidden} more")
        return "\n".join(shown)


class NeedError(PenstockError):
    """A policy was asked for a plan on a problem that lacks what it needs."""


class SolveError(PenstockError):
    """A solver proved that there is no solution, or found none in the time that it was given."""


class BudgetError(PenstockError):
    """No plan keeps this step inside the budget.

    `budget` and `least` are bytes; `op` is the op that needs the most at once; `holders` says what
    fills the memory there, as (what, bytes), largest first. The step that could not fit has been
    run to its end when a recording raises this, so the model is in a consistent state.
    """

    def __init__(
        self, budget: int, least: int, op: str, holders: Sequence[tuple[str, int]] = ()
    ) -> None:
        super().__init__(budget, least, op, tuple(holders))
        self.budget, self.least, self.op, self.holders = budget, least, op, tuple(holders)

    def __str__(self) -> str:
        filled = ", ".join(f"{what} {mib(nbytes)}" for what, nbytes in self.holders)
        return (
            f"budget {mib(self.budget)} is too small: {self.op} needs {mib(self.least)} at once"
            + (f" ({filled})" if filled else "")
            + f". Raise the budget to {enough_mib(self.least)} or more "
            f"({mib(self.least - self.budget)} are missing), or make the step smaller."
        )


class TierError(PenstockError):
    """A tier below the device failed. No value was lost unless the message says so."""


class UsageError(PenstockError):
    """An option or argument that a person typed is wrong; the message says which and how to mend it."""


class InternalError(PenstockError):
    """A bug of ours. Please report it with the message."""


class StepChanged(UserWarning):
    """The step no longer matches the recorded one; Penstock serves it on demand and plans again."""


def enough_mib(nbytes: int) -> str:
    """Whole MiB, for a budget to ask for: never less than `nbytes`."""
    return f"{-(-nbytes // 2**20):,} MiB"
