"""Searches among candidates whose cost only a simulation tells: pattern, swarm, genetic, Bayesian.

They share a `Ledger`, which prices each candidate once and ends a search when enough were priced. It
is the count that ends it, so that a seed gives the same answer on every machine; the time limit is
for steps so long that the count would take too long.
"""

from collections.abc import Callable, Hashable, Sequence
from math import erf, inf, pi, sqrt
from time import monotonic
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from penstock.errors import NeedError

__all__ = ["Ledger", "Rank", "bayesian", "genetic", "pattern", "swarm"]

Rank: TypeAlias = tuple[int, float, int]
"""`Outcome.rank`: bytes that are lacking, seconds, bytes moved. Smaller is better."""
C = TypeVar("C", bound=Hashable)


class _Enough(Exception):
    """No further candidate may be priced."""


class Ledger(Generic[C]):
    """What each candidate costs. Prices at least one, and never one of them twice."""

    def __init__(
        self, cost: Callable[[C], Rank], *, evaluations: int, time_limit: float = inf
    ) -> None:
        self._cost, self._evaluations = cost, evaluations
        self._deadline = monotonic() + time_limit
        self.known: dict[C, Rank] = {}  # in the order in which they were priced
        self.is_cut_short = False  # by its time

    def __call__(self, candidate: C) -> Rank:
        if (rank := self.known.get(candidate)) is not None:
            return rank
        if self.known and len(self.known) >= self._evaluations:
            raise _Enough
        if self.known and monotonic() > self._deadline:
            self.is_cut_short = True
            raise _Enough
        self.known[candidate] = rank = self._cost(candidate)
        return rank

    @property
    def best(self) -> C:
        """The first of those that cost least."""
        return min(self.known, key=self.known.__getitem__)


def pattern(ledger: Ledger[tuple[int, ...]], sizes: Sequence[int]) -> None:
    """From the best of nothing, all and half of one axis alone: steps along each axis in turn.

    Where none helps any more, steps are halved (Hooke and Jeeves). `sizes`: by axis, the largest
    number; zero is the smallest.
    """
    none = (0,) * len(sizes)
    alone = [
        (*none[:axis], number, *none[axis + 1 :])
        for axis, size in enumerate(sizes)
        for number in (size, size // 2)
    ]
    steps = [(size + 3) // 4 for size in sizes]
    try:
        at = min((none, *alone), key=ledger)
        while any(steps):
            before = at
            for axis, step in enumerate(steps):
                for number in (at[axis] + step, at[axis] - step):
                    beside = (*at[:axis], number, *at[axis + 1 :])
                    if 0 <= number <= sizes[axis] and ledger(beside) < ledger(at):
                        at = beside
                        break
            if at == before:
                steps = [step // 2 for step in steps]
    except _Enough:
        return


def swarm(
    ledger: Ledger[tuple[int, ...]],
    starts: Sequence[tuple[int, ...]],
    *,
    iterations: int,
    mutation: float = 0.0,
    choices: Sequence[Sequence[int]] = (),
    seed: int = 0,
) -> None:
    """Particles that take over, place by place, what the leader or their own best does better.

    The leader (P1) is the best particle of the last iteration; P2 is the best that a particle ever
    was. There is no velocity, and no chance unless `mutation`: then each place of an updated particle
    becomes one of its `choices` with that probability. Ends early where nothing moves any more.
    """
    random = np.random.default_rng(seed)
    now, own = list(starts), list(starts)
    try:
        for _ in range(iterations):
            leader = min(now, key=ledger)
            before = [*now, *own]
            for i, particle in enumerate(now):
                now[i] = _drawn(ledger, particle, leader, own[i])
                if mutation:
                    now[i] = _mutated(now[i], choices, mutation, random)
                own[i] = min(own[i], now[i], key=ledger)
            if [*now, *own] == before and not mutation:
                return
    except _Enough:
        return


def _drawn(
    ledger: Ledger[tuple[int, ...]],
    particle: tuple[int, ...],
    leader: tuple[int, ...],
    own: tuple[int, ...],
) -> tuple[int, ...]:
    """One particle's update: at each place the leader's action if that costs less, else its own best's.

    Later places see what was decided at earlier ones.
    """
    for j, (first, second) in enumerate(zip(leader, own, strict=True)):
        like_own = (*particle[:j], second, *particle[j + 1 :])
        like_leader = (*particle[:j], first, *particle[j + 1 :])
        is_led = first != second and ledger(like_leader) < ledger(like_own)
        particle = like_leader if is_led else like_own
    return particle


def _mutated(
    particle: tuple[int, ...],
    choices: Sequence[Sequence[int]],
    probability: float,
    random: np.random.Generator,
) -> tuple[int, ...]:
    return tuple(
        int(random.choice(choices[j])) if random.random() < probability else action
        for j, action in enumerate(particle)
    )


def genetic(
    ledger: Ledger[C],
    population: Sequence[C],
    *,
    cross: Callable[[C, C, np.random.Generator], tuple[C, C]],
    mutate: Callable[[C, np.random.Generator], C],
    seed: int = 0,
    patience: int = 5,
) -> None:
    """Mate random pairs, mutate their children, and let parents and children survive by chance.

    The chance is a softmax over how much slower than the best each is, relative to the best. Ends
    early after `patience` generations without a candidate that was not known. Needs the package
    `pymoo`; `NeedError` if it is missing.
    """
    try:
        from pymoo.algorithms.soo.nonconvex.ga import GA
        from pymoo.core.crossover import Crossover
        from pymoo.core.evaluator import Evaluator
        from pymoo.core.mutation import Mutation
        from pymoo.core.population import Population
        from pymoo.core.problem import Problem
        from pymoo.core.survival import Survival
        from pymoo.core.termination import NoTermination
        from pymoo.operators.selection.rnd import RandomSelection
        from pymoo.problems.static import StaticProblem
    except ImportError:
        raise NeedError("a genetic search needs pymoo: pip install 'penstock[solvers]'") from None

    random = np.random.default_rng(seed)

    class Cross(Crossover):  # type: ignore[misc, unused-ignore]
        def _do(self, _: Any, parents: NDArray[Any], *__: Any, **___: Any) -> NDArray[Any]:
            children = np.empty_like(parents)
            for pair in range(parents.shape[1]):
                made = cross(parents[0, pair, 0], parents[1, pair, 0], random)
                children[0, pair, 0], children[1, pair, 0] = made
            return children

    class Mutate(Mutation):  # type: ignore[misc, unused-ignore]
        def _do(self, _: Any, found: NDArray[Any], *__: Any, **___: Any) -> NDArray[Any]:
            return _column([mutate(one, random) for one in found[:, 0]])

    class Softmax(Survival):  # type: ignore[misc, unused-ignore]
        def _do(self, _: Any, pop: Any, *__: Any, n_survive: int, **___: Any) -> Any:
            tolls = pop.get("F")[:, 0]
            # The largest of log-probability plus Gumbel noise: a draw without replacement.
            luck = (tolls.min() - tolls) / tolls.min() + random.gumbel(size=len(tolls))
            return pop[np.argsort(-luck)[:n_survive]]

    space = Problem(n_var=1, n_obj=1)
    algorithm = GA(
        pop_size=len(population),
        sampling=Population.new("X", _column(population)),
        selection=RandomSelection(),
        crossover=Cross(2, 2, prob=1.0),
        mutation=Mutate(prob=1.0),
        survival=Softmax(filter_infeasible=False),
        eliminate_duplicates=False,
    )
    algorithm.setup(space, termination=NoTermination(), seed=seed)
    stale = 0
    try:
        while stale < patience:
            known = len(ledger.known)
            children = algorithm.ask()
            tolls = np.array([[_toll(ledger(one))] for one in children.get("X")[:, 0]])
            Evaluator().eval(StaticProblem(space, F=tolls), children)
            algorithm.tell(infills=children)
            stale = 0 if len(ledger.known) > known else stale + 1
    except _Enough:
        return


def _column(candidates: Sequence[Any]) -> NDArray[Any]:
    """Candidates as pymoo keeps them: one variable each, of any type."""
    column = np.empty((len(candidates), 1), object)
    for i, candidate in enumerate(candidates):
        column[i, 0] = candidate
    return column


def _toll(rank: Rank) -> float:
    """A rank as one positive number: seconds, or far beyond all seconds the bytes that are lacking."""
    shortfall, seconds, _ = rank
    return 1e9 * (1 + shortfall) if shortfall else max(seconds, 1e-12)


def bayesian(
    ledger: Ledger[tuple[float, ...]], starts: Sequence[tuple[float, ...]], *, seed: int = 0
) -> None:
    """Points between -1 and 1 where a Gaussian process expects the largest improvement.

    Begins with `starts` and goes on until the ledger has enough. The process has a squared
    exponential kernel of length 0.5; the next point is the most promising of 512 drawn at random.
    """
    random = np.random.default_rng(seed)
    try:
        for start in starts:
            ledger(start)
        while True:
            at = np.array(list(ledger.known))
            tolls = _tamed(np.array([_toll(rank) for rank in ledger.known.values()]))
            pool = random.uniform(-1.0, 1.0, (512, at.shape[1])).round(6)
            ledger(tuple(pool[_improvement(at, tolls, pool).argmax()].tolist()))
    except _Enough:
        return


def _tamed(tolls: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standardised; what does not fit is a little worse than the worst that fits."""
    fits = tolls < 1e9
    if fits.any():
        top, low = tolls[fits].max(), tolls[fits].min()
        tolls = np.where(fits, tolls, 2 * top - low)
    spread = tolls.std()
    tamed: NDArray[np.float64] = (tolls - tolls.mean()) / (spread if spread > 0 else 1.0)
    return tamed


def _improvement(
    at: NDArray[np.float64], values: NDArray[np.float64], pool: NDArray[np.float64]
) -> NDArray[np.float64]:
    """By point of `pool`: how far below the least of `values` it is expected to be."""
    seen = np.linalg.inv(_kernel(at, at) + 1e-6 * np.eye(len(at)))
    across = _kernel(pool, at)
    mean = across @ seen @ values
    deviation = np.sqrt(np.maximum(1.0 - np.einsum("ij,jk,ik->i", across, seen, across), 1e-12))
    gain = values.min() - mean
    scaled = gain / deviation
    below = np.array([0.5 * (1 + erf(one / sqrt(2))) for one in scaled.tolist()])
    density = np.exp(-0.5 * scaled**2) / sqrt(2 * pi)
    expected: NDArray[np.float64] = gain * below + deviation * density
    return expected


def _kernel(one: NDArray[np.float64], two: NDArray[np.float64]) -> NDArray[np.float64]:
    apart = ((one[:, None, :] - two[None, :, :]) ** 2).sum(axis=2)
    near: NDArray[np.float64] = np.exp(-apart / (2 * 0.5**2))
    return near
