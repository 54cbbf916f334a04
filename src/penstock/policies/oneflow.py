"""oneflow: drop what marked blocks make, and replay each block just before backward needs it.

Idea      What a marked block makes inside is cloned into backward: its connected parts run again, each
          once. Control edges hold a clone back until the inputs of its earliest reader in backward are
          there, so the replay starts just in time and not at the beginning of backward.
Assumes   One device; the user marks blocks. Ops that keep statistics must not run twice.
Inferred  The marks: the blocks that a module list numbers (`h.3`, `layer1.0`), the outermost of them,
          by a regular expression over module paths. What leaves its block in forward is kept, else the
          clone would run before the backward of the block after it. A replay is left out if the step
          fits without it. A framework's feature, without a paper; the API of that name that is
          sometimes quoted could not be found. Its other mechanism, on line, is DTR: see `dtr`.
Reads     The trace and its module paths; the budget, to choose between replaying and keeping.
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar, Literal

from penstock.errors import UsageError
from penstock.ir.plan import Plan, Recompute
from penstock.ir.policy import Need, Paper, Problem
from penstock.ir.trace import Gap, Op, OpIndex, Phase, Trace
from penstock.simulate.least import MOVABLE_FROM
from penstock.solve.best import best
from penstock.solve.remakes import alone, in_one_pass, possible

__all__ = ["Oneflow"]

_EXCLUDED = ("batch_norm", "repeat", "unpack")


@dataclass(frozen=True, slots=True)
class Oneflow:
    """The checkpointing pass, with its just-in-time replay."""

    blocks: str = r"(.*?\.)?\d+(?=\.|$)"  # what a module path begins with inside a marked block
    replay: Literal["just-in-time", "at-once"] = "just-in-time"  # or when backward begins
    smallest: int = MOVABLE_FROM  # bytes: smaller values are kept

    paper: ClassVar = Paper(
        "OneFlow: Redesign the Distributed Deep Learning Framework from Scratch (CheckpointingPass)",
        "Yuan, Li, Cheng, Liu, Guo, Cai, Yuan, Yang, Wu, Zhang and others",
        "arXiv",
        2021,
        "https://github.com/Oneflow-Inc/oneflow",
    )
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        try:
            re.compile(self.blocks)
        except re.error as error:
            raise UsageError(
                f"policy oneflow: blocks={self.blocks!r} is no regular expression: {error}"
            ) from None

    def __call__(self, problem: Problem) -> Plan:
        return best(problem, [problem.given, problem.given.plus(self.replays(problem))]).plan

    def replays(self, problem: Problem) -> list[Recompute]:
        trace = problem.trace
        block = {op.index: self.block(op) for op in trace.ops if op.phase is Phase.FORWARD}
        parts = components(trace, block)
        members: defaultdict[OpIndex, list[Gap]] = defaultdict(list)
        for gap in alone(problem, problem.free_saved_gaps(self.smallest)):
            made = trace.values[gap.value].producer
            if made in parts and not leaves(trace, gap, block):
                members[parts[made]].append(gap)
        backward = min((op.index for op in trace.ops if op.phase is Phase.BACKWARD), default=None)
        found: list[Recompute] = []
        for gaps in members.values():
            if self.replay == "just-in-time" or backward is None:
                found += in_one_pass(gaps)
            else:
                found += [Recompute(gap, max(backward, OpIndex(gap.start + 1))) for gap in gaps]
        return possible(problem.given, trace, found)

    def block(self, op: Op) -> str | None:
        """The marked block that an op belongs to; None: to none."""
        found = re.match(self.blocks, op.module)
        return found[0] if found else None


def components(trace: Trace, block: dict[OpIndex, str | None]) -> dict[OpIndex, OpIndex]:
    """For each op that may be replayed, the first of those that it is connected with in its block."""
    part: dict[OpIndex, OpIndex] = {}
    for index, name in block.items():
        op = trace.ops[index]
        if name is None or any(excluded in op.name for excluded in _EXCLUDED):
            continue
        makers = {trace.values[value].producer for value in op.reads}
        joined = {part[made] for made in makers if made in part and block[made] == name}
        part[index] = first = min(joined, default=index)
        if len(joined) > 1:
            part.update((other, first) for other, its in part.items() if its in joined)
    return part


def leaves(trace: Trace, gap: Gap, block: dict[OpIndex, str | None]) -> bool:
    """Does forward read the value outside of its block?"""
    made = trace.values[gap.value].producer
    own, readers = None if made is None else block.get(made), trace.readers[gap.value]
    return any(block[reader] != own for reader in readers if reader in block)
