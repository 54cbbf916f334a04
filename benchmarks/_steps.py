"""A step as it runs here, recorded."""

from collections.abc import Callable

from penstock.ir.machine import Machine
from penstock.ir.trace import Trace
from penstock.session import Session

__all__ = ["recorded"]


def recorded(step: Callable[[int], object], *, tier: str | None) -> tuple[Trace, Machine]:
    """The step as a session on the CPU records it, and this machine with that tier.

    It runs until its recording is whole: a step with two optimizers is recorded more than once.
    """
    found: list[Trace] = []
    session = Session("100%", policy="keep", tier=tier, device="cpu", on_recorded=found.append)
    with session:
        number = 0
        while not found:
            step(number)
            number += 1
    return found[0], session.machine
