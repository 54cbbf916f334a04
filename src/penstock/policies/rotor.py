"""rotor: the best persistent checkpointing of a chain of unequal blocks, by dynamic programming.

Idea      A chain of blocks, each with its seconds and bytes. opt(m, a, b), the least time of forward
          and backward of blocks a to b in m bytes, is the better of two: keep only the input of a
          later block and run the blocks before it again (A), or save a block's values now (B). See
          solve/chain.py.
Assumes   A chain; one device, no swapping; forward may run again (random draws are replayed).
Inferred  A block ends where at most `width` forward values cross; widths 1 to `widths` are tried, as
          in `chen`, once with the cuts where backward reads all that crosses and once with all. What
          crosses is the next block's input. Too many
          blocks are thinned to `blocks` of about equal bytes. One option a block: save what autograd
          saved. What is held beside the chain (gradients grow as backward goes) is charged to each
          block's backward and to the passes before it. Bytes are counted in `units` parts of the
          budget, and the programme is asked again for what the simulator says was left or lacking.
Symbols   cw: `input`; cbw: `saved`; fwd_tmp, bwd_tmp, ff_tmp: `*_scratch`; ff_fw: `passing`.
Reads     The trace with its seconds, the budget.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

import numpy as np

from penstock.ir.plan import Decision, Plan, Recompute
from penstock.ir.policy import Accounting, Counts, Need, Paper, Problem
from penstock.ir.trace import Gap, OpIndex, Phase, ValueId
from penstock.simulate.least import MOVABLE_FROM
from penstock.solve.best import best
from penstock.solve.chain import Block, Chain, Run, Saving, in_units, solve
from penstock.solve.condense import others_than, scratch
from penstock.solve.pressure import Pressure
from penstock.solve.remakes import alone
from penstock.solve.segments import crossings
from penstock.solve.settle import Answer, settled

__all__ = ["Rotor"]


@dataclass(frozen=True, slots=True)
class Rotor:
    """Optimal persistent schedules for chains."""

    units: int = 300  # parts into which the budget's bytes are counted
    blocks: int = 60
    widths: int = 3
    time_limit: float = 60.0  # seconds
    smallest: int = MOVABLE_FROM  # bytes: smaller values are kept
    accounting: Accounting = "ours"

    paper: ClassVar = Paper(
        "Optimal Re-Materialization Strategies for Heterogeneous Chains",
        "Beaumont, Eyraud-Dubois, Herrmann, Joly, Shilova",
        "ACM Transactions on Mathematical Software",
        2024,
        "https://inria.hal.science/hal-02352969",
    )
    needs: ClassVar[frozenset[Need]] = frozenset({Need.SECONDS})
    counts: ClassVar = Counts(workspace=True, slack=False, state=False)

    def __call__(self, problem: Problem) -> Plan:
        if Pressure(problem).is_relieved:
            return problem.given
        return best(problem, self.candidates(problem)).plan

    def candidates(self, problem: Problem) -> Iterator[Plan]:
        yield problem.given
        gaps = alone(problem, problem.free_saved_gaps(self.smallest))
        for width in range(1, self.widths + 1):
            all_cuts = crossings(problem.trace, width, self.smallest)
            kept = {gap.value for gap in gaps}
            strict = {op: values for op, values in all_cuts.items() if values <= kept}
            for found in (strict, all_cuts) if len(strict) < len(all_cuts) else (strict,):
                if cuts := self.chosen(problem, gaps, found):
                    blocks = _Blocks(problem, gaps, cuts, self.units)
                    yield blocks.plan(self.time_limit / self.widths / 2)

    def chosen(
        self, problem: Problem, gaps: list[Gap], found: Mapping[OpIndex, Collection[int]]
    ) -> list["_Cut"]:
        """The ops after which blocks end, with those values that cross there and are to be kept."""
        trace = problem.trace
        kept = {gap.value for gap in gaps}
        cuts = [(op, {v for v in kept if v in values}) for op, values in found.items()]
        made = np.zeros(len(trace.ops))
        for gap in gaps:
            made[trace.values[gap.value].producer or 0] += trace.values[gap.value].nbytes
        total = np.cumsum(made)
        # One cut of each run of cuts with nothing saved in between; then thinned to equal bytes.
        at = {float(total[op]): (op, values) for op, values in reversed(cuts) if total[op]}
        at.pop(float(total[-1]) if len(total) else 0.0, None)
        if len(at) < self.blocks:
            return [at[bytes_before] for bytes_before in sorted(at)]
        thinned: dict[OpIndex, set[ValueId]] = {}
        for share in range(1, self.blocks):
            wanted = total[-1] * share / self.blocks
            op, values = at[min(at, key=lambda bytes_before: abs(bytes_before - wanted))]
            thinned[op] = values
        return [(op, thinned[op]) for op in sorted(thinned)]


_Cut: TypeAlias = tuple[OpIndex, set[ValueId]]
"""An op after which a block ends, and the values that cross there."""


class _Blocks:
    """A trace as a chain of blocks, and the chain's schedules as plans."""

    def __init__(
        self,
        problem: Problem,
        gaps: list[Gap],
        cuts: list[_Cut],
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
        fresh = [sum(trace.values[v].nbytes for v in made) for made in trace.fresh]
        before = rest - np.array(fresh) - trace.columns.workspace
        size = trace.columns.nbytes
        blocks = []
        for block in range(self.count):
            first, last = self.begins[block], self.begins[block - 1] if block else len(trace.ops)
            apart = {gap.value for gap in self.gaps[block]}
            seconds = sum(trace.ops[op].seconds for op in ops[block])
            saving = Saving(
                seconds,
                0.0,  # backward runs once whatever is decided
                sum(int(size[v]) for v in apart),
                scratch(trace, ops[block], apart),
                int(rest[first : last + 1].max(initial=self.base)) - self.base,
            )
            others = int(before[first]) - self.base if first < len(trace.ops) else 0
            inputs = sum(int(size[v]) for v in self.crossing[block])
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
        tables = (self.table, self.bare)
        smallest = [self.decisions(one.runs(one.least)) for one in tables if one.least is not None]

        def solved(budget: int, _: float) -> Answer:
            return self.decisions(self.table.runs((budget - self.base) // self.unit)), budget

        return settled(self.problem, solved, smallest, time_limit, rounds=12)

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
