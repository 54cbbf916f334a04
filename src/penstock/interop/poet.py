"""POET's graphs as traces: nodes in their order, what each makes, who reads it.

A JSON object: `nodes` with id, name, backward, ms, bytes (of the result), compute_J, pagein_J and
pageout_J; `edges`, from producer to consumer; `parameter_bytes`.
"""

from dataclasses import dataclass

from penstock.errors import TraceError
from penstock.interop.imported import Imported, Json
from penstock.ir.trace import Kind, Op, OpIndex, Phase, StorageId, Trace, Value, ValueId

__all__ = ["Energies", "energies", "is_poet", "read_poet"]

_ASSUMED = (
    "joules have no place in a trace: policies go by the seconds",
    "parameters are one value, which no op of the graph is said to read",
    "workspaces and allocator slack are not in such a graph",
)


@dataclass(frozen=True, slots=True)
class Energies:
    """What a node costs in joules: to run, to copy its result back, to copy it out."""

    compute: float
    back: float
    out: float


def is_poet(body: Json) -> bool:
    return {"nodes", "edges", "parameter_bytes"} <= body.keys()


def energies(body: Json) -> tuple[Energies, ...]:
    """By node."""
    return tuple(
        Energies(float(node["compute_J"]), float(node["pagein_J"]), float(node["pageout_J"]))
        for node in _nodes(body)
    )


def read_poet(body: Json) -> Imported:
    """The graph as a step. Raises `TraceError` if its edges do not run forwards."""
    nodes = _nodes(body)
    reads: list[set[int]] = [set() for _ in nodes]
    for source, target in body["edges"]:
        if not 0 <= source < target < len(nodes):
            raise TraceError(
                f"edge {source} -> {target}: ids are to be in an order in which the nodes can run, "
                f"from 0 to {len(nodes) - 1}"
            )
        reads[target].add(source)
    last = {source: target for target in range(len(nodes)) for source in reads[target]}
    backward = {
        source for target, node in enumerate(nodes) if node["backward"] for source in reads[target]
    }
    ops = tuple(
        Op(
            OpIndex(n),
            str(node["name"]),
            Phase.BACKWARD if node["backward"] else Phase.FORWARD,
            tuple(ValueId(v) for v in sorted(reads[n])),
            (ValueId(n),),
            float(node["ms"]) / 1e3,
        )
        for n, node in enumerate(nodes)
    )
    results = [
        Value(
            ValueId(n),
            StorageId(n),
            int(node["bytes"]),
            Kind.TEMPORARY if node["backward"] else Kind.ACTIVATION,
            OpIndex(n),
            OpIndex(last.get(n, n)),
            saved=not node["backward"] and n in backward,
            name=str(node["name"]),
        )
        for n, node in enumerate(nodes)
    ]
    number = len(results)
    state = Value(
        ValueId(number),
        StorageId(number),
        int(body["parameter_bytes"]),
        Kind.PARAMETER,
        name="parameters",
    )
    return Imported(Trace(ops, (*results, state)), _ASSUMED)


def _nodes(body: Json) -> list[Json]:
    """In the order of their ids, which must be 0, 1, ..."""
    nodes: list[Json] = sorted(body["nodes"], key=lambda node: int(node["id"]))
    if [node["id"] for node in nodes] != list(range(len(nodes))):
        raise TraceError(f"the ids of its {len(nodes)} nodes are not 0 to {len(nodes) - 1}")
    return nodes
