"""dtr: drop what costs least to remake for its bytes and its idleness; remake it when it is read.

Idea      Nothing is known of what comes. Where an op finds no room, the idle value of the lowest score
          is dropped, and dropped again after every return; what an op reads is remade first, from the
          nearest values that are still there.
Assumes   One device; ops may run twice. Model state and inputs stay (the paper's constants).
Inferred  A plan says of each gap one absence, so a value that left twice in a gap is away from its
          beginning to its last return, and what used it in between remakes it too. Where that misses
          the budget, the replay is repeated with so much less; where that does not help, or where it
          thrashes, the least that it keeps is looked for by halving. A value that no op uses again
          stays until it dies: the paper would evict it. Its samples of the pool, and its sizes below
          which nothing is looked at, are for speed: `smallest` stands for them.
Symbols   h(s) = (c(s) + c(evicted ancestors) + c(evicted descendants)) / (m(s) x staleness): seconds over
          bytes x seconds. h_eq: the closures as classes of a union-find. h_local: c(s) alone.
          h_MSPS: (c(s) + c(evicted ancestors)) / m(s). h_LRU: last access. h_size: 1 / m(s).
Reads     The trace with its seconds, and the budget; at each op only what came before it.
"""

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar, Literal

import numpy as np

from penstock.ir.plan import Plan
from penstock.ir.policy import Accounting, Counts, Need, Paper, Problem
from penstock.simulate.least import MOVABLE_FROM
from penstock.solve.best import Outcome, outcome
from penstock.solve.online import Floats, Idle, Score, least_recently_used, replay

__all__ = ["SCORES", "Dtr"]

_AGAIN = 4
"""Replays around the given budget."""


@dataclass(frozen=True, slots=True)
class Dtr:
    """Dynamic tensor rematerialization, replayed over the recorded step."""

    score: Literal["dtr", "eq", "local", "lru", "size", "msps"] = "dtr"
    thrash: float = 1.0  # seconds of remakes, over those of the step, at which it gives up
    rounds: int = 8  # replays to find the least that it keeps, where the given budget is missed
    smallest: int = MOVABLE_FROM  # bytes: smaller values are kept
    accounting: Accounting = "ours"

    paper: ClassVar = Paper(
        "Dynamic Tensor Rematerialization",
        "Kirisame, Lyubomirsky, Haan, Brennan, He, Roesch, Chen, Tatlock",
        "ICLR",
        2021,
        "https://arxiv.org/abs/2006.09616",
    )
    needs: ClassVar[frozenset[Need]] = frozenset({Need.SECONDS})
    counts: ClassVar[Counts] = Counts(workspace=False, slack=False)

    def __call__(self, problem: Problem) -> Plan:
        """In the given room, and in less where the plan lacks some; else the least that it keeps."""
        room = problem.budget
        for _ in range(_AGAIN):
            found, thrashed = self.replayed(problem, room)
            if not found.shortfall:
                return found.plan
            if thrashed:
                break
            room -= found.shortfall
        # The same replays whatever the budget: with the bytes that it lacks, one of them fits.
        tried: list[Outcome] = []
        floor, ceiling = 0, problem.trace.peak + problem.trace.slack
        for _ in range(max(1, self.rounds)):
            room = (floor + ceiling) // 2
            found, thrashed = self.replayed(problem, room)
            tried.append(found)
            floor, ceiling = (room, ceiling) if thrashed else (floor, room)
        return min(tried, key=lambda found: found.rank).plan

    def replayed(self, problem: Problem, room: int) -> tuple[Outcome, bool]:
        """The plan that the method makes in so many bytes. Did these not do?"""
        now = replace(problem, budget=room)
        found = replay(now, SCORES[self.score], smallest=self.smallest, limit=self.thrash)
        return outcome(problem, problem.given.plus(found.decisions)), found.lacking > 0


def full(idle: Idle) -> Floats:
    remaking = idle.seconds + idle.ancestors() + idle.descendants()
    return _over(remaking, idle.nbytes * idle.staleness)


def by_class(idle: Idle) -> Floats:
    return _over(idle.seconds + idle.neighbourhoods(), idle.nbytes * idle.staleness)


def local(idle: Idle) -> Floats:
    return _over(idle.seconds, idle.nbytes * idle.staleness)


def saving_per_second(idle: Idle) -> Floats:
    return (idle.seconds + idle.ancestors()) / idle.nbytes


def largest(idle: Idle) -> Floats:
    return 1 / idle.nbytes


SCORES: MappingProxyType[str, Score] = MappingProxyType(
    {
        "dtr": full,
        "eq": by_class,
        "local": local,
        "lru": least_recently_used,
        "size": largest,
        "msps": saving_per_second,
    }
)


def _over(seconds: Floats, weight: Floats) -> Floats:
    """What was used just now, or has no weight, leaves last."""
    found = np.full(len(seconds), np.inf)
    np.divide(seconds, weight, out=found, where=weight > 0)
    return found
