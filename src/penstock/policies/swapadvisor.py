"""swapadvisor: breed size classes; in each class, room is made by what is needed again last.

Idea      The device's memory is a number of objects of each size class. Where a class has no free
          object, the member whose next use is farthest leaves, and its object is what the newcomer
          waits for. The swaps follow from the classes, so a genetic algorithm breeds classes and
          counts, and a simulation says how fit they are.
Assumes   A step that repeats itself; one tier with a queue for each direction. Model state moves too.
Inferred  The order of the ops stays as recorded: the paper breeds schedules too, our plans carry no
          order, so that half of an individual is left out. What is bred instead beside the classes is
          the least age of a victim, for which the paper names no value. The spread of mutated counts
          is not stated either: a quarter of the count. A copy back starts as soon as its object is
          free, a fresh value takes the object that became free last. State that is clean is copied
          out all the same: our swaps know no copy that is still valid below. What is given, small
          values and workspace are set aside, at their largest. The paper: 144 individuals, half an hour.
Symbols   CLS: by size, ascending, its class; each step is 0 or 1. CNT: by class, its objects. CNTEXT:
          by size, the objects of its class.
Reads     The trace with its seconds, the first tier (past its room, the next), the budget.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from penstock.ir.plan import Plan
from penstock.ir.policy import Accounting, Counts, Need, Paper, Problem
from penstock.simulate.least import MOVABLE_FROM
from penstock.solve.best import outcome
from penstock.solve.classes import Objects
from penstock.solve.pressure import Pressure
from penstock.solve.search import Ledger, genetic

__all__ = ["Allocation", "Swapadvisor", "cross", "repaired"]


@dataclass(frozen=True, slots=True)
class Allocation:
    """An individual. Classes are counted from 0."""

    cls: tuple[int, ...]
    cnt: tuple[int, ...]
    age: int = 0  # a victim was last used at least so many of the longest copies out ago


_AGES = 4  # 0 to 3


def cross(
    one: Allocation, two: Allocation, cut: int, sizes: Sequence[int], memory: int
) -> tuple[Allocation, Allocation]:
    """Two children: each has CLS and CNTEXT of one parent before `cut`, of the other from there on."""
    return _child(one, two, cut, sizes, memory), _child(two, one, cut, sizes, memory)


def _child(
    tail: Allocation, head: Allocation, cut: int, sizes: Sequence[int], memory: int
) -> Allocation:
    counts = [head.cnt[c] for c in head.cls[:cut]] + [tail.cnt[c] for c in tail.cls[cut:]]
    cls = _valid((*head.cls[:cut], *tail.cls[cut:]))
    return Allocation(cls, repaired(cls, _averaged(cls, counts), sizes, memory), head.age)


def _valid(cls: Sequence[int]) -> tuple[int, ...]:
    """The smallest increases after which classes rise by steps of 0 or 1, from class 0."""
    raised = np.maximum.accumulate(np.array(cls)).tolist()
    for i in range(len(raised) - 1, 0, -1):
        raised[i - 1] = max(raised[i - 1], raised[i] - 1)
    return tuple(c - raised[0] for c in raised)


def _averaged(cls: Sequence[int], counts: Sequence[float]) -> list[int]:
    members: defaultdict[int, list[float]] = defaultdict(list)
    for c, count in zip(cls, counts, strict=True):
        members[c].append(count)
    return [max(1, int(sum(found) / len(found) + 0.5)) for _, found in sorted(members.items())]


def repaired(
    cls: Sequence[int], cnt: Sequence[int], sizes: Sequence[int], memory: int
) -> tuple[int, ...]:
    """Counts reduced, by as many bytes in each class, until all objects fit; one is left in each."""
    nbytes = dict(zip(cls, sizes, strict=True))  # the largest of each class comes last
    left = list(cnt)
    while (excess := sum(n * nbytes[c] for c, n in enumerate(left)) - memory) > 0:
        shrinking = [c for c, n in enumerate(left) if n > 1]
        if not shrinking:
            break
        for c in shrinking:
            left[c] -= min(left[c] - 1, -(-excess // (len(shrinking) * nbytes[c])))
    return tuple(left)


@dataclass(frozen=True, slots=True)
class Swapadvisor:
    """Size classes by a genetic algorithm, swaps by Belady's rule within each."""

    population: int = 20
    evaluations: int = 160  # allocations that are simulated
    mutation: float = 0.1  # probability of each change
    smallest: int = MOVABLE_FROM  # bytes: smaller values are kept
    seed: int = 0
    time_limit: float = 40.0  # seconds
    accounting: Accounting = "ours"

    paper: ClassVar = Paper(
        "SwapAdvisor: Pushing Deep Learning Beyond the GPU Memory Limit via Smart Swapping",
        "Huang, Jin, Li",
        "ASPLOS",
        2020,
    )
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TIER, Need.SECONDS})
    counts: ClassVar = Counts(workspace=False, slack=False)

    def __call__(self, problem: Problem) -> Plan:
        asked = Objects(problem, self.smallest)
        if Pressure(problem).is_relieved or not asked.sizes:
            return problem.given
        longest = problem.machine.tiers[0].write.seconds(asked.sizes[-1])

        def plan(one: Allocation) -> Plan:
            return problem.given.plus(asked.swaps(one.cls, one.cnt, one.age * longest))

        def children(
            one: Allocation, two: Allocation, random: np.random.Generator
        ) -> tuple[Allocation, Allocation]:
            cut = int(random.integers(len(asked.sizes) + 1))
            return cross(one, two, cut, asked.sizes, asked.memory)

        ledger = Ledger[Allocation](
            lambda one: outcome(problem, plan(one)).rank,
            evaluations=self.evaluations,
            time_limit=self.time_limit,
        )
        genetic(
            ledger,
            self.first_generation(asked),
            cross=children,
            mutate=lambda one, random: self.mutated(one, asked, random),
            seed=self.seed,
        )
        return replace(plan(ledger.best), cut_short=ledger.is_cut_short)

    def first_generation(self, asked: Objects) -> list[Allocation]:
        """A class for each size, one class for all, and random ones; objects for all that is alive."""
        random = np.random.default_rng(self.seed)
        found = []
        for number in range(max(2, self.population)):
            share = (1.0, 0.0, float(random.random()))[min(number, 2)]
            cls = (0, *np.cumsum(random.random(len(asked.sizes) - 1) < share).tolist())
            cnt = [asked.most(cls, c) for c in range(cls[-1] + 1)]
            cnt = list(repaired(cls, cnt, asked.sizes, asked.memory))
            found.append(Allocation(cls, tuple(cnt), number % _AGES))
        return found

    def mutated(self, one: Allocation, asked: Objects, random: np.random.Generator) -> Allocation:
        """Steps of CLS flip, and what follows shifts with them; counts move; so may the age."""
        flips = random.random(len(one.cls)) < self.mutation
        rises = (np.diff(one.cls, prepend=0) > 0) != flips
        rises[0] = False
        cls = tuple(np.cumsum(rises).tolist())
        cnt = _averaged(cls, [one.cnt[c] for c in one.cls])
        noise = random.normal(size=len(cnt)) * (random.random(len(cnt)) < self.mutation)
        cnt = [max(1, round(n + max(1, n / 4) * d)) for n, d in zip(cnt, noise, strict=True)]
        age = int(random.integers(_AGES)) if random.random() < self.mutation else one.age
        return Allocation(cls, repaired(cls, cnt, asked.sizes, asked.memory), age)
