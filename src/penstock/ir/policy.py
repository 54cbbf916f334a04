"""What a policy sees, what it must be, and what it says of itself."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

from penstock.ir.machine import Machine
from penstock.ir.plan import Plan, sources_of_remakes
from penstock.ir.trace import Gap, OpIndex, StorageId, Trace

__all__ = ["Accounted", "Accounting", "Counts", "Doubting", "Need", "Paper", "Policy", "Problem"]


@dataclass(frozen=True, slots=True)
class Problem:
    """All that a policy may look at."""

    trace: Trace
    machine: Machine
    budget: int  # bytes on the device, for everything the step needs
    given: Plan = field(default_factory=Plan)  # already decided: extend it, never contradict it

    def free_gaps(self, at_least: int = 1) -> Iterator[Gap]:
        """The gaps of values of `at_least` bytes about which nothing is decided yet.

        A value that a given recomputation starts from must be there then, and so must one of which a
        given copy out starts ahead of its gap: the gaps around are not free. Nor is any gap of a
        storage that is placed, be it for a part of the step.
        """
        given, values = self.given, self.trace.values
        decided = {decision.gap for decision in given.of_gaps}
        placed = {values[place.value].storage for place in given.places}
        early: dict[StorageId, list[OpIndex]] = {}
        wanted = sources_of_remakes(self.trace, given)
        for swap in given.swaps:
            if swap.evict_at <= swap.gap.start:
                early.setdefault(values[swap.gap.value].storage, []).append(swap.evict_at)
        for gap in self.trace.gaps(at_least):
            storage = values[gap.value].storage
            if gap in decided or storage in placed:
                continue
            if any(op == gap.stop or gap.covers(op) for op in early.get(storage, ())):
                continue
            if not any(gap.covers(op) for op in wanted.get(gap.value, ())):
                yield gap

    def free_saved_gaps(self, at_least: int = 1) -> Iterator[Gap]:
        """Those of `free_gaps` in which a saved value waits for backward."""
        return (gap for gap in self.free_gaps(at_least) if self.trace.awaits_backward(gap))


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


@runtime_checkable
class Doubting(Policy, Protocol):
    """A policy that does not take the simulator's word where plans are about as fast.

    A session also tries those of its rivals, and follows the fastest as measured.
    """

    def rivals(self) -> "Mapping[str, Policy]":
        """By name, what an event calls them."""
        ...


Accounting: TypeAlias = Literal["ours", "paper"]
"""Whose rule says what the budget is for: ours (everything) or that of the policy's paper."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What a paper counts against the budget beside activations and gradients. We count it all."""

    workspace: bool = True
    slack: bool = True  # of the allocator
    state: bool = True  # parameters, optimizer state, buffers


@runtime_checkable
class Accounted(Policy, Protocol):
    """A policy whose paper counts memory in another way, on demand."""

    counts: ClassVar[Counts]

    @property
    def accounting(self) -> Accounting: ...
