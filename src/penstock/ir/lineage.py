"""Which ops remake a value: the walk back from it to what is still there."""

from collections.abc import Callable, Iterable

from penstock.ir.trace import Kind, OpIndex, Trace, ValueId

__all__ = ["Gone", "joint_lineage", "lineage", "sources"]


class Gone(Exception):
    """The walk reached something that is neither resident nor can be remade; the text says what."""


def lineage(
    trace: Trace,
    value: ValueId,
    at: OpIndex,
    holds: Callable[[ValueId, int], bool],
) -> tuple[OpIndex, ...]:
    """The ops that must run again, in clock order, so that `value` exists before op `at`.

    `holds(value, op)` says whether a value is resident before an op. What is not resident is
    remade in turn. Raises `Gone` where that is impossible. Cost: linear in the ops returned.
    """
    return joint_lineage(trace, (value,), at, holds)


def joint_lineage(
    trace: Trace,
    values: Iterable[ValueId],
    at: OpIndex,
    holds: Callable[[ValueId, int], bool],
) -> tuple[OpIndex, ...]:
    """`lineage` of several values that are remade in one pass: each op once."""
    previous, reads_again = trace.previous_version, trace.reads_again
    needed: set[OpIndex] = set()
    pending = [*values]
    while pending:
        wanted = pending.pop()
        it = trace.values[wanted]
        producer = it.producer
        if producer is None:
            raise Gone(f"it needs {trace.describe(wanted)}, which is gone by then")
        if it.kind is Kind.BUFFER and wanted in previous:
            raise Gone(
                f"a second run of {trace.describe_op(producer)} leaves {trace.describe(wanted)} alone"
            )
        if producer in needed:
            continue
        if not trace.ops[producer].repeatable:
            raise Gone(f"{trace.describe_op(producer)} must not run twice")
        needed.add(producer)
        for read, is_overwritten in reads_again[producer]:
            # What the op overwrites is never there to be read: remake it to be overwritten again.
            if is_overwritten or not holds(read, at):
                pending.append(read)
    return tuple(sorted(needed))


def sources(trace: Trace, ops: Iterable[OpIndex]) -> set[ValueId]:
    """What `ops`, run again, start from: the values that they read and do not make themselves.

    Running statistics that an op overwrites are none: a second run leaves them alone.
    """
    again = tuple(ops)
    made = {value for op in again for value in trace.ops[op].writes}
    return {
        value
        for op in again
        for value in trace.ops[op].reads
        if not (trace.values[value].kind is Kind.BUFFER and trace.values[value].freed == op)
    } - made
