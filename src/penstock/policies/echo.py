"""echo: replay cheap ops where that keeps fewer bytes than their results.

Idea      Cheap ops whose inputs are all kept form the frontier; those that share an input are decided
          together. Keep their results if that frees at least as many bytes of inputs as it adds; then
          the frontier moves on. What is left when no group gains by this is replayed in backward.
Assumes   The step's readers are known, backward's too; replaying cheap ops costs next to nothing.
Inferred  The ops that are not cheap by class: products of matrices, convolution, attention, recurrent
          layers, concatenation, loss, and what draws random numbers. Model state and inputs are there
          in any case, so they neither tie ops together nor count. Groups are found over the whole
          forward pass at once: its subgraphs share no reader, so they decide alike. A plan cannot make
          a value live longer: where a replay's input is dead in backward, the op that made it would run
          again. If that op is not cheap, its readers are kept (`rerun=never`) or it is run (`heavy`). A
          replay is left out if the step fits without it at less cost. Not carried: masks in one bit.
Reads     The trace: bytes, and who reads what; the budget, to choose between replaying and keeping.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from penstock.ir.plan import Plan
from penstock.ir.policy import Need, Paper, Problem
from penstock.ir.trace import Op, OpIndex, Phase, Trace, ValueId
from penstock.simulate.least import MOVABLE_FROM
from penstock.solve.best import best
from penstock.solve.remakes import collective, is_heavy, light, one_by_one, possible

__all__ = ["Echo", "replayed"]

_REFUSED = ("dropout", ".cat", "log_softmax", "loss")


@dataclass(frozen=True, slots=True)
class Echo:
    """The rule of the pass that was merged into MXNet."""

    batch_norm: Literal["cheap", "refused"] = "cheap"  # refused before 2020
    rerun: Literal["never", "heavy"] = "never"
    smallest: int = MOVABLE_FROM  # bytes: smaller values are kept

    paper: ClassVar = Paper(
        "Echo: Compiler-based GPU Memory Footprint Reduction for LSTM RNN Training",
        "Zheng, Vijaykumar, Pekhimenko",
        "ISCA",
        2020,
        "https://arxiv.org/abs/1805.08899",
    )
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __call__(self, problem: Problem) -> Plan:
        return best(problem, self.candidates(problem)).plan

    def candidates(self, problem: Problem) -> Iterator[Plan]:
        trace, given = problem.trace, problem.given
        cheap = [op for op in trace.ops if op.phase is Phase.FORWARD and self.is_cheap(op)]
        chosen = replayed(trace, cheap)
        gaps = (
            gap
            for gap in problem.free_saved_gaps(self.smallest)
            if trace.values[gap.value].producer in chosen
        )
        may_run = {"never": self.is_cheap, "heavy": lambda op: True}[self.rerun]
        needed = possible(given, trace, one_by_one(light(problem, gaps, may_run)))
        yield given
        yield given.plus(needed)
        yield given.plus(collective(given, trace, needed))

    def is_cheap(self, op: Op) -> bool:
        refused = (*_REFUSED, "batch_norm") if self.batch_norm == "refused" else _REFUSED
        return not (is_heavy(op) or op.random or any(part in op.name for part in refused))


def replayed(trace: Trace, cheap: Iterable[Op]) -> set[OpIndex]:
    """Those of the `cheap` forward ops that are run again in backward; the results of others stay."""
    undecided = {op.index: op for op in cheap}
    while True:
        frontier = {
            index
            for index, op in undecided.items()
            if not any(trace.values[value].producer in undecided for value in op.reads)
        }
        kept: set[OpIndex] = set()
        for group in sharing(trace, frontier):
            inputs = {value for op in group for value in tied(trace, op)}
            released = {value for value in inputs if frontier.issuperset(trace.readers[value])}
            results = {value for op in group for value in trace.ops[op].writes}
            held = {value for value in results if trace.readers[value]} | (inputs - released)
            if bytes_of(trace, released) >= bytes_of(trace, held):
                kept |= group
        if not kept:
            return set(undecided)
        for index in kept:
            del undecided[index]


def sharing(trace: Trace, ops: set[OpIndex]) -> Iterator[set[OpIndex]]:
    """The ops in groups: those that read one value belong together, and so do those that these tie."""
    left = set(ops)
    for first in sorted(ops):
        group: set[OpIndex] = set()
        pending = [first]
        while pending:
            if (op := pending.pop()) in left:
                left.remove(op)
                group.add(op)
                pending += [other for v in tied(trace, op) for other in trace.readers[v]]
        if group:
            yield group


def tied(trace: Trace, op: OpIndex) -> list[ValueId]:
    """What an op reads of what forward made."""
    made = ((value, trace.values[value].producer) for value in trace.ops[op].reads)
    return [v for v, by in made if by is not None and trace.ops[by].phase is Phase.FORWARD]


def bytes_of(trace: Trace, values: Iterable[ValueId]) -> int:
    return sum(trace.values[value].nbytes for value in values)
