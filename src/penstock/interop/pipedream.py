"""PipeDream's profiles (`profiler/*/profiles/MODEL/graph.txt`) as traces.

One line a node with its seconds forward and backward, the bytes of its activation and of its
parameters; then one line an edge. Each node becomes an op forward and an op backward.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from penstock.errors import TraceError
from penstock.interop.imported import Imported
from penstock.ir.trace import Kind, Op, OpIndex, Phase, StorageId, Trace, Value, ValueId

__all__ = ["Layer", "is_profile", "read_layers", "read_profile"]

_NODE = re.compile(
    r"node(\d+) -- (.*) -- forward_compute_time=([\d.]+), backward_compute_time=([\d.]+), "
    r"activation_size=(\[[^\]]*\]|[\d.]+), parameter_size=([\d.]+)"
)
_EDGE = re.compile(r"node(\d+) -- node(\d+)")
_ASSUMED = (
    "not in a profile: what backward reads. Assumed: a layer's backward reads what its forward read",
    "gradients are taken to be as large as what they belong to; there is no optimizer",
    "the seconds of input nodes are those of loading data, and were left out",
    "workspaces and allocator slack are not in a profile",
)


@dataclass(frozen=True, slots=True)
class Layer:
    """One node of a profile."""

    number: int
    name: str
    forward: float  # seconds
    backward: float  # seconds
    activation: int  # bytes
    parameters: int  # bytes
    reads: tuple[int, ...]  # numbers of layers, in order

    @property
    def is_input(self) -> bool:
        return not self.reads


def is_profile(text: str) -> bool:
    return _NODE.match(text) is not None


def read_layers(text: str) -> tuple[Layer, ...]:
    """The layers in an order in which they can run. Nodes that hold no tensor (sizes) are left out.

    Raises `TraceError` naming the line that makes no sense.
    """
    found: dict[int, re.Match[str]] = {}
    reads: dict[int, set[int]] = {}
    for line, content in enumerate(text.splitlines(), start=1):
        if not content.strip():
            continue
        if node := _NODE.fullmatch(content.strip()):
            found[int(node[1])] = node
            reads.setdefault(int(node[1]), set())
        elif edge := _EDGE.fullmatch(content.strip()):
            reads.setdefault(int(edge[2]), set()).add(int(edge[1]))
        else:
            raise TraceError(f"line {line}: {content.strip()[:80]!r} is neither a node nor an edge")
    named = {number for sources in reads.values() for number in sources} | set(reads)
    if missing := sorted(named - set(found)):
        raise TraceError(f"edges name node{missing[0]}, which no line describes")
    try:
        order = list(TopologicalSorter({n: sorted(reads[n]) for n in sorted(found)}).static_order())
    except CycleError as error:
        raise TraceError(f"its edges run in a circle: {error.args[1]}") from None
    without = {number for number in order if found[number][2].startswith("Size(")}
    return tuple(
        Layer(
            number,
            found[number][2],
            float(found[number][3]) / 1e3,
            float(found[number][4]) / 1e3,
            _nbytes(found[number][5]),
            _nbytes(found[number][6]),
            tuple(sorted(reads[number] - without)),
        )
        for number in order
        if number not in without
    )


def read_profile(text: str) -> Imported:
    """The profile as a step: forward, and backward in the reverse order."""
    layers = read_layers(text)
    return Imported(_Step(layers).trace(), _ASSUMED)


def _nbytes(text: str) -> int:
    """Bytes of one tensor or of a list of them."""
    return sum(int(float(part)) for part in re.findall(r"[\d.]+", text))


class _Step:
    """A step under construction."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        self.layers = tuple(layers)
        self.values: list[tuple[int, Kind, int | None, bool, str]] = []
        self.ops: list[Op] = []

    def value(
        self, nbytes: int, kind: Kind, producer: int | None, *, saved: bool = False, name: str = ""
    ) -> ValueId:
        self.values.append((nbytes, kind, producer, saved, name))
        return ValueId(len(self.values) - 1)

    def op(self, layer: Layer, phase: Phase, seconds: float, reads: Iterable[ValueId]) -> Op:
        number = OpIndex(len(self.ops))
        kind, _, _ = layer.name.partition("(")
        suffix = "" if phase is Phase.FORWARD else "'"
        op = Op(
            number,
            kind.strip() + suffix,
            phase,
            tuple(dict.fromkeys(reads)),
            seconds=seconds,
            module=f"node{layer.number}",
        )
        self.ops.append(op)
        return op

    def trace(self) -> Trace:
        by_number = {layer.number: layer for layer in self.layers}
        inputs = [layer for layer in self.layers if layer.is_input]
        work = [layer for layer in self.layers if not layer.is_input]
        made = {
            one.number: self.value(one.activation, Kind.INPUT, None, name=f"node{one.number}")
            for one in inputs
        }
        weights = {
            one.number: self.value(
                one.parameters, Kind.PARAMETER, None, name=f"node{one.number}.parameters"
            )
            for one in work
            if one.parameters
        }
        writes: dict[int, list[ValueId]] = {}
        for layer in work:
            own = [weights[layer.number]] if layer.number in weights else []
            op = self.op(
                layer, Phase.FORWARD, layer.forward, [*(made[n] for n in layer.reads), *own]
            )

            made[layer.number] = self.value(
                layer.activation, Kind.ACTIVATION, op.index, saved=True, name=f"node{layer.number}"
            )
            writes[op.index] = [made[layer.number]]
        gradients: dict[int, ValueId] = {}
        for layer in reversed(work):
            # The loss of what nobody reads is no node: that backward begins from the result itself.
            own = [weights[layer.number]] if layer.number in weights else []
            inward = (
                [gradients[layer.number]] if layer.number in gradients else [made[layer.number]]
            )
            op = self.op(
                layer,
                Phase.BACKWARD,
                layer.backward,
                [*inward, *(made[n] for n in layer.reads), *own],
            )
            results = writes.setdefault(op.index, [])
            for number in layer.reads:
                source = by_number[number]
                if not source.is_input and number not in gradients:  # others are added in place
                    gradients[number] = self.value(source.activation, Kind.TEMPORARY, op.index)
                    results.append(gradients[number])
            if layer.parameters:
                results.append(self.value(layer.parameters, Kind.GRADIENT, op.index))
        return self.built(writes)

    def built(self, writes: dict[int, list[ValueId]]) -> Trace:
        last_use: dict[ValueId, int] = {}
        for op in self.ops:
            last_use.update((v, op.index) for v in (*op.reads, *writes.get(op.index, ())))
        lasting = {Kind.PARAMETER, Kind.GRADIENT, Kind.INPUT}
        values = tuple(
            Value(
                ValueId(number),
                StorageId(number),
                nbytes,
                kind,
                None if producer is None else OpIndex(producer),
                None if kind in lasting else OpIndex(last_use[ValueId(number)]),
                saved,
                name,
            )
            for number, (nbytes, kind, producer, saved, name) in enumerate(self.values)
        )
        ops = tuple(
            Op(
                op.index,
                op.name,
                op.phase,
                op.reads,
                tuple(writes.get(op.index, ())),
                op.seconds,
                module=op.module,
            )
            for op in self.ops
        )
        return Trace(ops, values)
