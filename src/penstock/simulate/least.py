"""The smallest budget that any plan could meet: what one op needs at once."""

from collections import Counter
from typing import NamedTuple

from penstock.ir.trace import Kind, OpIndex, Trace

__all__ = ["MOVABLE_FROM", "Least", "least_budget"]

MOVABLE_FROM = 64 * 1024
"""Values below this many bytes stay on the device: moving them costs more than they are worth."""


_PLURAL = {
    Kind.PARAMETER: "parameters",
    Kind.GRADIENT: "gradients",
    Kind.OPTIMIZER_STATE: "optimizer state",
    Kind.BUFFER: "buffers",
    Kind.INPUT: "inputs",
    Kind.ACTIVATION: "activations",
    Kind.TEMPORARY: "temporaries",
}


class Least(NamedTuple):
    """The op that needs the most at once, how much, and what fills the memory there."""

    nbytes: int
    op: OpIndex
    holders: tuple[tuple[str, int], ...]


def least_budget(trace: Trace) -> Least:
    """The op whose operands, results, workspace and unmovable company need the most bytes."""
    size = trace.columns.nbytes.tolist()
    small = sum(size[v] for v in trace.initial if size[v] < MOVABLE_FROM)
    worst, most = OpIndex(0), -1
    for op in trace.ops:
        fresh = trace.fresh[op.index]
        small += sum(size[v] for v in fresh if size[v] < MOVABLE_FROM)
        large = sum(size[v] for v in {*op.reads, *fresh} if size[v] >= MOVABLE_FROM)
        if small + large + op.workspace > most:
            worst, most = op.index, small + large + op.workspace
        small -= sum(size[v] for v in trace.freed_after[op.index] if size[v] < MOVABLE_FROM)
    if most < 0:
        return Least(trace.slack, worst, ())
    op = trace.ops[worst]
    held: Counter[str] = Counter()
    for value in {*op.reads, *trace.fresh[worst]}:
        if size[value] >= MOVABLE_FROM:
            held[f"its {_PLURAL[trace.values[value].kind]}"] += size[value]
    held["its workspace"] += op.workspace
    held["small values"] += most - sum(held.values())
    held["allocator slack"] += trace.slack
    holders = tuple((what, nbytes) for what, nbytes in held.most_common() if nbytes)
    return Least(most + trace.slack, worst, holders)
