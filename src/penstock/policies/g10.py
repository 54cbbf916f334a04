"""g10: send away what fills the memory longest above the line, to the SSD as long as it keeps up.

Idea      Periods are taken by benefit: bytes times the time above the capacity line that their absence
          covers, under what the links still carry then. A period goes to the SSD; to the host when
          the SSD has no slot left where it begins, or when it is too short for the SSD. Once enough is
          away, what comes back does so as early as there is room (eager prefetch).
Assumes   Kernels and their times are known; all traffic to the SSD passes the link to the host; what
          the plan leaves above the budget, page faults absorb.
Inferred  Nothing here faults: where the plan leaves too much, what is needed last goes too
          (`complete`), and a copy back asks for its own bytes before it is drawn earlier (the code does
          not). Then none is drawn earlier if that is faster: one that waits for room keeps its link from
          those behind it, where pages pass. Where no period scores any more the plan ends; the authors'
          code goes on with arbitrary ones, since its sort is unstable. It also counts its tensor 0
          twice, and always; we do not. A copy back of model state starts no earlier than the step that
          reads it. With one tier that is the SSD (the paper's G10-GDS).
Not here  Pages: hints at kernel starts, LRU between them, and the kernels' slowdown by faults.
Reads     The trace with its seconds, the first and the last tier, the budget.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from penstock.ir.machine import Tier
from penstock.ir.plan import Plan, Swap
from penstock.ir.policy import Accounting, Counts, Need, Paper, Problem
from penstock.ir.trace import Gap, OpIndex
from penstock.simulate.least import MOVABLE_FROM
from penstock.simulate.shelves import Shelves
from penstock.solve.best import best
from penstock.solve.farthest import completed
from penstock.solve.ledger import Ledger
from penstock.solve.pressure import bytes_held
from penstock.solve.swaps import op_starts

__all__ = ["G10", "Move", "estimate"]


@dataclass(frozen=True, slots=True)
class G10:
    """The planner of the paper's released code, then farthest next use first where it gave up."""

    target: float = 0.99  # share of the budget that the estimate shall reach
    lead: float = 0.814e-12  # seconds for each byte by which a value is there before its birth
    fault: float = 45e-6  # seconds that a move takes beside its link's own
    patience: float = 2.5  # how many moves a period must outlast
    smallest: int = MOVABLE_FROM  # bytes: smaller values are kept
    complete: bool = True  # go on until the step fits
    accounting: Accounting = "ours"

    counts: ClassVar = Counts(slack=False)
    paper: ClassVar = Paper(
        "G10: Enabling An Efficient Unified GPU Memory and Storage Architecture with Smart Tensor "
        "Migrations",
        "Zhang, Zhou, Xue, Liu, Huang",
        "MICRO",
        2023,
        "https://arxiv.org/abs/2310.09443",
    )
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TIER, Need.SECONDS})

    def __call__(self, problem: Problem) -> Plan:
        ops = len(problem.trace.ops)
        chosen, hastened = self.moves(problem, estimate(problem, self.lead))
        ways = [[move.swap(ops) for move in way] for way in (hastened, chosen)]
        if not self.complete:
            return problem.given.plus(ways[0])
        return best(problem, (completed(problem, way, self.smallest) for way in ways)).plan

    def moves(
        self, problem: Problem, held: NDArray[np.float64]
    ) -> tuple[list["Move"], list["Move"]]:
        """What leaves, and when it is back: as chosen, and hastened.

        `held` (bytes, by op) is brought down in place.
        """
        planner = _Planner(self, problem, held)
        chosen = planner.chosen()
        return chosen, planner.hastened(chosen)


def estimate(problem: Problem, lead: float) -> NDArray[np.float64]:
    """Bytes held while each op runs, each new value from `lead` seconds a byte before its birth."""
    trace, held = problem.trace, bytes_held(problem).astype(np.float64)
    starts = np.array(op_starts(trace))
    for op in trace.ops:
        for nbytes in (*(trace.values[v].nbytes for v in trace.fresh[op.index]), op.workspace):
            running = int(np.searchsorted(starts, starts[op.index] - lead * nbytes, "right")) - 1
            held[max(running, 0) : op.index] += nbytes
    return held


class Period(NamedTuple):
    """A gap as the paper counts: ops [first, stop), or, looped, from `first` on and up to `stop`."""

    gap: Gap
    nbytes: int
    first: int
    stop: int
    seconds: float
    looped: bool


class Move(NamedTuple):
    """A period away: out within op `clear`, back from op `fetch` on (looped: in the next step)."""

    period: Period
    tier: Tier
    clear: int
    fetch: int

    def swap(self, ops: int) -> Swap:
        gap, fetch = self.period.gap, self.fetch - (ops if self.period.looped else 0)
        return Swap(gap, self.tier.name, OpIndex(gap.start + 1), OpIndex(max(fetch, 0)))


class _Planner:
    """What is held, and what the links still carry, as periods are taken."""

    def __init__(self, policy: G10, problem: Problem, held: NDArray[np.float64]) -> None:
        trace, tiers = problem.trace, problem.machine.tiers
        self.policy, self.held = policy, held
        limit = problem.budget - trace.slack
        self.line, self.target = limit, policy.target * limit
        self.seconds = trace.columns.seconds + trace.columns.host_seconds
        self.starts = np.array(op_starts(trace))
        self.ops, self.step = len(trace.ops), self.starts[-1]
        self.clock = np.concatenate((self.starts[:-1], self.starts + self.step))  # of two steps
        self.ssd, self.host = tiers[-1], tiers[0] if len(tiers) > 1 else None
        self.shelves = Shelves(trace, problem.machine, problem.given)
        self.out = {t.name: Ledger(self.seconds, t.write.bandwidth) for t in tiers}
        self.back = {t.name: Ledger(self.seconds, t.read.bandwidth) for t in tiers}
        self.periods = [
            self._period(gap, trace.values[gap.value].nbytes)
            for gap in problem.free_gaps(policy.smallest)
            if gap.stop is not None and (gap.stop > 0 or gap.start + 1 < self.ops)
        ]
        self.nbytes = np.array([p.nbytes for p in self.periods], np.float64)
        self.first = np.array([p.first for p in self.periods], np.int64)
        self.stop = np.array([p.stop for p in self.periods], np.int64)
        self.looped = np.array([p.looped for p in self.periods], np.bool_)

    def chosen(self) -> list[Move]:
        """The main loop."""
        moves: list[Move] = []
        weight = self.nbytes * [p.seconds for p in self.periods]
        is_open = np.ones(len(self.periods), np.bool_)
        while is_open.any() and (self.held > self.target).any():
            scores = np.where(is_open, self._scores(), 0.0)
            if (top := scores.max()) <= 0.0:
                break
            equal = np.flatnonzero(scores >= top - 1e-12)
            taken = int(equal[weight[equal].argmax()])
            is_open[taken] = False
            if (move := self._place(self.periods[taken])) is not None:
                moves.append(move)
        return moves

    def hastened(self, moves: Iterable[Move]) -> list[Move]:
        """The second pass: each copy back as early as it finds room, the earliest first."""
        found: list[Move] = []
        for move in sorted(moves, key=lambda move: move.fetch):
            period, first, fetch = move.period, move.clear + 1, move.fetch
            if not period.looped:
                lacking = self.held[first:fetch] + period.nbytes > self.target
                fetch = first + int(np.flatnonzero(lacking).max(initial=-1)) + 1
                self.held[fetch : move.fetch] += period.nbytes
            found.append(move._replace(fetch=fetch))
        return found

    def _period(self, gap: Gap, nbytes: int) -> Period:
        assert gap.stop is not None
        first = (gap.start + 1) % self.ops  # after the last op comes the first
        looped = first > gap.stop
        seconds = self.starts[gap.stop] - self.starts[first] + (self.step if looped else 0.0)
        return Period(gap, nbytes, first, gap.stop, float(seconds), looped)

    def _scores(self) -> NDArray[np.float64]:
        """The benefit of every period: bytes times seconds above the line while it is half away."""
        above = np.concatenate(([0.0], np.cumsum(self.seconds * (self.held > self.line))))
        half, name = self.nbytes / 2, self.ssd.name
        gone = self.out[name].finish(half, self.first)
        back = np.maximum(self.back[name].latest_start(half, self.stop), 0)
        around = above[-1] - above[self.first] + above[self.stop]
        within = np.maximum(above[back] - above[gone], 0.0)
        return np.asarray(self.nbytes * np.where(self.looped, around, within))

    def _place(self, period: Period) -> Move | None:
        """Where the period's value goes, with its bytes booked; None: it stays."""
        if self._is_idle(period):
            return None
        ssd, host, patience = self.ssd, self.host, self.policy.patience
        has_room = (
            host is not None
            and self.shelves.peak(host.name) <= host.capacity - period.nbytes
            and period.seconds > patience * self._seconds(host, period.nbytes)
        )
        if period.seconds > patience * (move := self._seconds(ssd, period.nbytes)):
            begun = self._running(self.starts[period.first] + move)
            is_busy = not period.looped and self.out[ssd.name].is_full(period.first, begun)
            tier = host if is_busy and has_room else ssd
        else:
            tier = host if has_room else None
        if tier is None:
            return None
        return self._looped(period, tier) if period.looped else self._booked(period, tier)

    def _is_idle(self, period: Period) -> bool:
        """Would its absence be no use, or is it over at once?"""
        first, stop = period.first, period.stop
        if not period.looped:
            return stop - first == 1 or bool((self.held[first:stop] <= self.target).all())
        rest = np.concatenate((self.held[first:], self.held[:stop]))
        return len(rest) == 1 or bool((rest <= self.target).all())

    def _booked(self, period: Period, tier: Tier) -> Move | None:
        nbytes, name = period.nbytes, tier.name
        clear = int(self.out[name].finish(nbytes, period.first))
        fetch = int(self.back[name].latest_start(nbytes, period.stop))
        if fetch <= clear:
            return None
        for ledgers, start in ((self.out, period.first), (self.back, fetch)):
            shared = None if self.host is None else ledgers[self.host.name]
            if tier is self.ssd:
                ledgers[name].book(nbytes, start, also=shared)
            else:
                filled = ledgers[name].book(nbytes, start)
                ledgers[self.ssd.name].give_way(ledgers[name], filled)
        self.held[clear + 1 : fetch] -= nbytes
        self.shelves.add(period.gap, name)
        return Move(period, tier, clear, fetch)

    def _looped(self, period: Period, tier: Tier) -> Move:
        """Around the end of a step the links count as free."""
        move = self._seconds(tier, period.nbytes)
        clear = self._running(self.starts[period.first] + move)
        fetch = self._running(self.step + self.starts[period.stop] - 1.5 * move)
        self.held[np.arange(clear + 1, fetch) % self.ops] -= period.nbytes
        self.shelves.add(period.gap, tier.name)
        return Move(period, tier, clear, fetch)

    def _seconds(self, tier: Tier, nbytes: int) -> float:
        return self.policy.fault + tier.write.seconds(nbytes)

    def _running(self, seconds: float) -> int:
        """The op that runs then, counted on into the next step."""
        return int(np.searchsorted(self.clock, seconds, "right")) - 1
