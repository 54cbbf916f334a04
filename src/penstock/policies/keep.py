"""keep: keep everything.

Idea      The step as PyTorch runs it: nothing leaves the device.
Assumes   That it fits.
Reads     Nothing.
"""

from dataclasses import dataclass
from typing import ClassVar

from penstock.ir.plan import Plan
from penstock.ir.policy import Need, Problem

__all__ = ["Keep"]


@dataclass(frozen=True, slots=True)
class Keep:
    """Decide nothing beyond what is given."""

    paper: ClassVar[None] = None
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(self, problem: Problem) -> Plan:
        return problem.given
