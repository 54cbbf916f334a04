"""What a policy sees, what it must be, and what it says of itself."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, Protocol, runtime_checkable

from penstock.ir.machine import Machine
from penstock.ir.plan import Plan
from penstock.ir.trace import Trace

__all__ = ["Need", "Paper", "Policy", "Problem"]


@dataclass(frozen=True, slots=True)
class Problem:
    """All that a policy may look at."""

    trace: Trace
    machine: Machine
    budget: int  # bytes on the device, for everything the step needs
    given: Plan = field(default_factory=Plan)  # already decided: extend it, never contradict it


@dataclass(frozen=True, slots=True)
class Paper:
    """Where a policy comes from."""

    title: str
    authors: str
    venue: str
    year: int
    address: str = ""


class Need(StrEnum):
    """What a policy cannot do without. The caller checks, so that no policy has to."""

    TIER = "a tier below the device"
    SECONDS = "measured seconds for every op"


@runtime_checkable
class Policy(Protocol):
    """A frozen dataclass of this shape; its fields are the paper's own parameters."""

    paper: ClassVar[Paper | None]  # None: ours
    needs: ClassVar[frozenset[Need]]

    def __call__(self, problem: Problem) -> Plan: ...
