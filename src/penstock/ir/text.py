"""Traces and plans as lines that people read, and that parse back.

One op a line: phase (`f`, `b`, `o`), name, what it reads, `->`, what it writes, seconds. A value is
declared where it is first named: `h1:A16M!` is an activation of 16 MiB that autograd saved. Kinds:
P parameter, G gradient, S optimizer state, B buffer, I input, A activation, T temporary.

    f conv   x:I1M w:P1M -> h:A16M!   1ms
    f relu_  h           -> ~h        1ms        # in place: a new version of h
    b conv'  h w         -> g:T16M    2ms +4M    # 4 MiB of workspace
    o step   g w         -> ~w        1ms ?      # `?`: draws random numbers; `!`: never repeat

Model state (P, S, B) and inputs live on when the step ends; every other value is freed after its
last use, unless the line `keep h` says that it lives on or `free h` (placed after an op) that it
goes there.
"""

import re
from collections.abc import Iterator

from penstock.errors import TraceError, mib
from penstock.ir.plan import Place, Plan, Recompute, Swap
from penstock.ir.trace import Kind, Op, OpIndex, Phase, StorageId, Trace, Value, ValueId

__all__ = ["parse", "show", "show_plan"]

_LETTER = {
    "P": Kind.PARAMETER,
    "G": Kind.GRADIENT,
    "S": Kind.OPTIMIZER_STATE,
    "B": Kind.BUFFER,
    "I": Kind.INPUT,
    "A": Kind.ACTIVATION,
    "T": Kind.TEMPORARY,
}
_LETTER_OF = {kind: letter for letter, kind in _LETTER.items()}
_PHASE = {"f": Phase.FORWARD, "b": Phase.BACKWARD, "o": Phase.OPTIMIZER}
_PHASE_OF = {phase: letter for letter, phase in _PHASE.items()}
_UNIT = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_DECLARED = re.compile(r"([\w'.]+):([PGSBIAT])(\d+)([KMG]?)(!?)")


def parse(text: str) -> Trace:
    """Read a trace from lines. Raises `TraceError` with the line's number and text."""
    reader = _Reader()
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.split("#")[0].strip()
        if not line:
            continue
        try:
            reader.line(line)
        except (KeyError, ValueError) as error:
            reason = f"{error.args[0]} is not known" if isinstance(error, KeyError) else error
            raise TraceError(f"line {number}: {line!r}: {reason}") from None
    return reader.trace()


class _Reader:
    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.values: list[dict[str, object]] = []
        self.current: dict[str, int] = {}  # name -> newest version
        self.last_use: dict[int, int] = {}
        self.freed: dict[int, int] = {}
        self.kept: set[int] = set()

    def line(self, line: str) -> None:
        words = line.split()
        if words[0] == "keep":
            self.kept.update(self.current[name] for name in words[1:])
        elif words[0] == "free":
            self.freed.update((self.current[name], len(self.ops) - 1) for name in words[1:])
        else:
            self.op(words)

    def op(self, words: list[str]) -> None:
        index, phase, name = len(self.ops), _PHASE[words[0]], words[1]
        if "->" not in words:
            raise ValueError("an op needs '->' between what it reads and what it writes")
        arrow = words.index("->")
        reads = [self.read(word) for word in words[2:arrow]]
        writes: list[int] = []
        seconds, workspace, random, repeatable = 0.0, 0, False, True
        for word in words[arrow + 1 :]:
            if cost := re.fullmatch(r"([\d.]+)(s|ms|us)", word):
                seconds = float(cost[1]) * _SECONDS[cost[2]]
            elif scratch := re.fullmatch(r"\+(\d+)([KMG]?)", word):
                workspace = int(scratch[1]) * _UNIT[scratch[2]]
            elif word == "?":
                random = True
            elif word == "!":
                repeatable = False
            elif word.startswith("~"):
                old = self.current[word[1:]]
                if old not in reads:
                    reads.append(old)
                self.freed[old] = index
                writes.append(self.declare({**self.values[old], "producer": index}, word[1:]))
            else:
                writes.append(self.read(word, producer=index))
        for value in (*reads, *writes):
            self.last_use[value] = index
        self.ops.append(
            Op(
                OpIndex(index),
                name,
                phase,
                tuple(ValueId(v) for v in reads),
                tuple(ValueId(v) for v in writes),
                seconds,
                workspace=workspace,
                random=random,
                repeatable=repeatable,
            )
        )

    def read(self, word: str, producer: int | None = None) -> int:
        if found := _DECLARED.fullmatch(word):
            name, letter, number, unit, saved = found.groups()
            if name in self.current:
                raise ValueError(f"{name} is declared twice")
            fields = {
                "storage": len(self.values),
                "nbytes": int(number) * _UNIT[unit],
                "kind": _LETTER[letter],
                "producer": producer,
                "saved": bool(saved),
                "name": name,
            }
            return self.declare(fields, name)
        if producer is not None:
            raise ValueError(f"{word} is written but not declared, as in {word}:A1M")
        return self.current[word]

    def declare(self, fields: dict[str, object], name: str) -> int:
        self.values.append(fields)
        self.current[name] = len(self.values) - 1
        return len(self.values) - 1

    def trace(self) -> Trace:
        lasting = {Kind.PARAMETER, Kind.OPTIMIZER_STATE, Kind.BUFFER, Kind.INPUT}
        values = []
        for index, fields in enumerate(self.values):
            freed = self.freed.get(index)
            if freed is None and fields["kind"] not in lasting and index not in self.kept:
                freed = self.last_use[index]
            values.append(
                Value(
                    ValueId(index),
                    StorageId(int(str(fields["storage"]))),
                    int(str(fields["nbytes"])),
                    Kind(str(fields["kind"])),
                    None if fields["producer"] is None else OpIndex(int(str(fields["producer"]))),
                    None if freed is None else OpIndex(freed),
                    bool(fields["saved"]),
                    str(fields["name"]),
                )
            )
        return Trace(tuple(self.ops), tuple(values))


def show(trace: Trace) -> str:
    """A trace as lines, one op each. `parse` reads them back if every value has its own name."""
    return "\n".join(_lines(trace))


def _lines(trace: Trace) -> Iterator[str]:
    names = _names(trace)
    declared: set[ValueId] = set()

    def word(value: ValueId) -> str:
        if value in declared or value in trace.previous_version:
            return names[value]
        declared.add(value)
        it = trace.values[value]
        mark = "!" if it.saved else ""
        return f"{names[value]}:{_LETTER_OF[it.kind]}{_size(it.nbytes)}{mark}"

    for op in trace.ops:
        left = [word(value) for value in op.reads]
        right = [f"~{names[v]}" if v in trace.previous_version else word(v) for v in op.writes]
        right.append(f"{op.seconds * 1e3:.6g}ms")
        if op.workspace:
            right.append(f"+{_size(op.workspace)}")
        if op.random:
            right.append("?")
        if not op.repeatable:
            right.append("!")
        yield " ".join([_PHASE_OF[op.phase], op.name, *left, "->", *right])
        for value in trace.values:
            if value.freed == op.index and not trace.is_overwritten(value.id):
                if (
                    value.kind.is_state
                    or value.kind is Kind.INPUT
                    or _last(trace, value) != op.index
                ):
                    yield f"free {names[value.id]}"
    for value in trace.values:
        lasting = value.kind.is_state or value.kind is Kind.INPUT
        if value.freed is None and not lasting:
            yield f"keep {names[value.id]}"


def show_plan(trace: Trace, plan: Plan) -> str:
    """A plan's decisions, one a line, in the trace's own names."""
    lines = []
    for decision in plan.decisions:
        if isinstance(decision, Place):
            lines.append(_placed(trace, decision))
            continue
        gap = decision.gap
        stop = "end" if gap.stop is None else str(gap.stop)
        head = f"{trace.describe(gap.value)}, {mib(trace.values[gap.value].nbytes)}"
        match decision:
            case Swap():
                back = "never" if decision.prefetch_at is None else f"op {decision.prefetch_at}"
                what = f"swap to {decision.tier}: out at op {decision.evict_at}, back at {back}"
            case Recompute():
                what = f"recompute at op {decision.remake_at}"
        lines.append(f"{head}: {what} (idle {gap.start}..{stop})")
    return "\n".join(lines)


def _placed(trace: Trace, place: Place) -> str:
    head = f"{trace.describe(place.value)}, {mib(trace.values[place.value].nbytes)}"
    out = "from its birth" if place.evict_at is None else f"out at op {place.evict_at}"
    back = "for good" if place.prefetch_at is None else f"back at op {place.prefetch_at}"
    return f"{head}: placed in {place.tier}: {out}, {back}"


def _names(trace: Trace) -> dict[ValueId, str]:
    """A word for each storage, the user's own where it is one and unique."""
    chosen: dict[StorageId, str] = {}
    taken: set[str] = set()
    for value in trace.values:
        if value.storage not in chosen:
            wanted = value.name
            if not re.fullmatch(r"[\w'.]+", wanted) or wanted in taken:
                wanted = f"v{value.id}"
            chosen[value.storage] = wanted
            taken.add(wanted)
    return {value.id: chosen[value.storage] for value in trace.values}


def _last(trace: Trace, value: Value) -> int | None:
    uses = trace.uses[value.id]
    return uses[-1] if uses else None


def _size(nbytes: int) -> str:
    for unit in ("G", "M", "K"):
        if nbytes and nbytes % _UNIT[unit] == 0:
            return f"{nbytes // _UNIT[unit]}{unit}"
    return str(nbytes)
