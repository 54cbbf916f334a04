"""A recorded step as a chain of blocks, and the schedules of that chain as plans."""

import time
from bisect import bisect_left
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from penstock.ir.plan import Decision, Plan, Recompute
from penstock.ir.policy import Problem
from penstock.ir.trace import Gap, OpIndex, Phase, ValueId
from penstock.solve.best import best, outcome
from penstock.solve.chain import Block, Chain, Run, Saving, Table, in_units, solve
from penstock.solve.condense import ahead_of, others_than, scratch
from penstock.solve.settle import together

__all__ = ["Blocks", "Cut"]

Cut: TypeAlias = tuple[OpIndex, set[ValueId]]
"""An op after which a block ends, and the values that cross there."""

_MISSES = 8
"""So many schedules in a row that do not fit end the search for a faster one."""


class Blocks:
    """A trace as a chain of blocks, and the chain's schedules as plans."""

    def __init__(
        self,
        problem: Problem,
        gaps: list[Gap],
        cuts: list[Cut],
        units: int,
    ) -> None:
        trace = self.trace = problem.trace
        self.problem, self.count = problem, len(cuts) + 1
        ends = [op for op, _ in cuts]
        block_of = np.searchsorted(ends, np.arange(len(trace.ops)), side="left").tolist()
        self.crossing = [set[ValueId](), *(values for _, values in cuts)]  # by block: its input
        self.gaps: list[list[Gap]] = [[] for _ in range(self.count)]  # by block that makes it
        for gap in gaps:
            self.gaps[block_of[trace.values[gap.value].producer or 0]].append(gap)
        # Where each block's backward begins: not before that of the block after it.
        self.begins = [OpIndex(len(trace.ops))] * (self.count + 1)
        later = min(gap.stop for gap in gaps if gap.stop is not None)
        for block in reversed(range(self.count)):
            own = [g for g in self.gaps[block] if g.value not in self.input_after(block)]
            stops = [gap.stop for gap in own or self.gaps[block] if gap.stop is not None]
            later = self.begins[block] = max(later, min(stops, default=later))
        ops: list[list[OpIndex]] = [[] for _ in range(self.count)]
        for op in trace.ops:
            if op.phase is Phase.FORWARD and op.index < self.begins[self.count - 1]:
                ops[block_of[op.index]].append(op.index)

        rest = others_than(
            problem, [(g.value, g.start + 1, g.stop) for g in gaps if g.stop is not None]
        )
        self.base = int(rest.min())
        before = ahead_of(trace, rest)
        size = trace.columns.nbytes
        blocks = []
        for block in range(self.count):
            first, last = self.begins[block], self.begins[block - 1] if block else len(trace.ops)
            apart = {gap.value for gap in self.gaps[block]}
            seconds = sum(trace.ops[op].seconds for op in ops[block])
            inputs = sum(int(size[v]) for v in self.crossing[block])
            saving = Saving(
                seconds,
                0.0,  # backward runs once whatever is decided
                sum(int(size[v]) for v in apart),
                scratch(trace, ops[block], apart),
                max(0, int(rest[first : last + 1].max(initial=self.base)) - self.base - inputs),
            )
            others = int(before[first]) - self.base if first < len(trace.ops) else 0
            # The programme adds the gradients of a block's output and input itself.
            others -= sum(int(size[v]) for v in self.input_after(block))
            passing = scratch(trace, ops[block], self.input_after(block))
            blocks.append(Block((saving,), seconds, inputs, passing, max(0, others)))
        chain = Chain(tuple(blocks))
        # Where even the least schedule exceeds the budget, it is wanted all the same: the table goes
        # as far as everything that could be held at once.
        options = [block.options[0] for block in blocks]
        whole = sum(one.saved for one in options) + max(
            block.input
            + block.others
            + max(block.passing_scratch, one.forward_scratch, one.backward_scratch)
            for block, one in zip(blocks, options, strict=True)
        )
        room = problem.budget - trace.slack - self.base
        self.unit = max(1, -(-max(room, whole // 4) // units))
        self.table = solve(in_units(chain, self.unit), whole // self.unit + 3 * self.count)
        # What its least schedule is where one block's own bytes hide all others.
        bare = [
            Block(
                (replace(one, forward_scratch=0, backward_scratch=0),), block.passing, block.input
            )
            for block, one in zip(blocks, options, strict=True)
        ]
        self.bare = solve(in_units(Chain(tuple(bare)), self.unit), whole // self.unit + self.count)

    def input_after(self, block: int) -> set[ValueId]:
        return self.crossing[block + 1] if block + 1 < self.count else set()

    def plan(self, time_limit: float) -> Plan:
        """The fastest of the table's schedules that fits when it is simulated."""
        deadline = time.monotonic() + time_limit
        tables = (self.table, self.bare)
        least = [one.runs(one.least) for one in tables if one.least is not None]
        found = best(self.problem, [self.problem.given, *map(self.with_runs, least)])
        # Each time of a table once, with the fewest bytes that it takes there; the fastest first.
        schedules: list[tuple[float, int, Table]] = []
        for table in tables:
            times, budgets = np.unique(table.seconds, return_index=True)
            schedules += [(t, int(m), table) for t, m in zip(times, budgets, strict=True)]
        schedules = [one for one in schedules if np.isfinite(one[0])]
        schedules.sort(key=lambda one: one[:2])

        def fits(position: int) -> bool:
            nonlocal found
            _, budget, table = schedules[position]
            again = outcome(self.problem, self.with_runs(table.runs(budget)))
            found = min(found, again, key=lambda one: one.rank)
            return again.shortfall == 0

        slowest = bisect_left(range(len(schedules)), x=True, key=fits)
        misses = 0  # bytes do not fall with every step of time: look a little further
        for position in reversed(range(slowest)):
            if misses == _MISSES or time.monotonic() > deadline:
                break
            misses = 0 if fits(position) else misses + 1
        return replace(found.plan, cut_short=time.monotonic() > deadline)

    def with_runs(self, runs: list[Run]) -> Plan:
        return self.problem.given.plus(together(self.problem, self.decisions(runs)))

    def decisions(self, runs: list[Run]) -> list[Decision]:
        """What is kept or saved in the first pass stays; the rest is remade in the pass that does.

        A pass begins where the backward of the next block is due.
        """
        due: int | None = None  # the block whose backward begins the pass; None: the first pass
        remade: dict[Gap, int] = {}
        kept_since: dict[ValueId, int | None] = {}
        for run in runs:
            match run.verb:
                case "keep":
                    kept_since.update((v, due) for v in self.crossing[run.block])
                case "save":
                    for gap in self.gaps[run.block]:
                        since = kept_since.get(gap.value, due)
                        if since is not None:
                            remade[gap] = since
                case "back":
                    due = run.block - 1
                case "pass":
                    pass
        begins: dict[int, OpIndex] = {}
        for gap, block in remade.items():
            assert gap.stop is not None
            begins[block] = min(begins.get(block, self.begins[block]), gap.stop)
        return [
            Recompute(gap, max(OpIndex(gap.start + 1), begins[block]))
            for gap, block in remade.items()
        ]
