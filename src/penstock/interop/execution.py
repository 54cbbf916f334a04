"""Execution traces of PyTorch (`torch.profiler.ExecutionTraceObserver`, schema 1.x) as traces.

An execution trace is a tree of calls: modules of Python that were annotated, composite ops, ops, what
ops call in turn. Taken are the calls that a dispatch mode would see: the outermost ones that are not
composite. A tensor is written `[tensor id, storage id, offset, elements, bytes of one, device]`; a
storage's id is used again when the storage is dead.

MLCommons' Chakra links such a file with the profiler's Chrome trace: calls then have times of their own,
and the work of the device hangs below them as nodes with a category. Both forms are read.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._ops import OpOverload

from penstock.dispatch.schema import TRAINING_ARGUMENT, facts_of
from penstock.errors import TraceError
from penstock.interop.imported import Imported, Json
from penstock.ir.trace import Kind, Op, OpIndex, Phase, StorageId, Trace, Value, ValueId

__all__ = ["is_execution_trace", "read_execution"]

_BACKWARD = "autograd::engine::evaluate_function"
_BACKWARD_SCOPE = 1  # of torch's RecordScope
_OPTIMIZER = "Optimizer."  # `Optimizer.step#Adam.step`

_ASSUMED = (
    "a storage is taken to live until its last use: the file does not say when it dies",
    "what is there before the step is told apart by its use: frozen parameters look like inputs",
    "not in the file: the users' names of tensors, modules, workspace, flops",
)


def is_execution_trace(body: Json) -> bool:
    return "schema" in body and isinstance(body.get("nodes"), list)


def read_execution(body: Json, kineto: Json | None = None) -> Imported:
    """One step from an execution trace. `kineto`: the profiler's Chrome trace of the same run, for
    times. Raises `TraceError` if the file is of a version that is not known, or holds no op.
    """
    schema = str(body["schema"])
    if not schema.startswith("1."):
        raise TraceError(
            f"an execution trace of schema {schema!r}; this Penstock reads 1.x, as "
            "torch.profiler.ExecutionTraceObserver writes it"
        )
    nodes = {node.id: node for node in map(_node, body["nodes"])}
    calls = sorted(_calls(nodes), key=lambda call: call.node.id)
    device = _device(calls)
    step = _Step(device)
    for call in calls:
        step.add(call)
    if not step.ops:
        raise TraceError("an execution trace without a single op on tensors: was a step run in it?")
    notes = list(_ASSUMED)
    times = _own_times(nodes) if kineto is None else _profiled_times(kineto, nodes)
    if times is None:
        notes.append("no times: give the profiler's Chrome trace of the same run as well")
    elif missed := sum(not times.knows(added.node) for added in step.ops):
        notes.append(f"{missed} of {len(step.ops)} ops have no times")
    if times is not None and times.kernels:
        notes.append("seconds are those of kernels; time between them on the host is left out")
    return Imported(step.trace(device, schema, times), tuple(notes))


# -- the file ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage: int
    extent: int  # bytes of the storage up to the last element
    nbytes: int  # bytes of the elements
    device: str


@dataclass(frozen=True, slots=True)
class _Node:
    id: int
    parent: int
    name: str
    schema: str
    rf_id: int
    scope: int
    category: str  # what the device did; empty: a call
    start: float  # seconds
    seconds: float | None  # None: the file does not say
    arguments: tuple[Any, ...]
    inputs: tuple[tuple[_Tensor, ...], ...]  # by argument
    outputs: tuple[_Tensor, ...]


def _node(raw: Json) -> _Node:
    """A node of schema 1.1 (lists of attributes) or 1.0 (fields)."""
    facts = {one["name"]: one["value"] for one in raw.get("attrs", ())} or raw
    given, made = raw["inputs"], raw["outputs"]
    if isinstance(given, dict):
        inputs = _tensors(given["values"], given.get("shapes"), given.get("strides"))
        outputs = _tensors(made["values"], made.get("shapes"), made.get("strides"))
        arguments = given["values"]
    else:
        inputs = _tensors(given, raw.get("input_shapes"), None)
        outputs = _tensors(made, raw.get("output_shapes"), None)
        arguments = given
    return _Node(
        int(raw["id"]),
        int(raw["ctrl_deps"] if "ctrl_deps" in raw else raw["parent"]),
        str(raw["name"]),
        str(facts.get("op_schema", "")),
        int(facts.get("rf_id", -1)),
        int(facts.get("scope", 0)),
        str(raw.get("cat") or ""),
        float(raw.get("ts") or 0) / 1e6,
        None if raw.get("inclusive_dur") is None else float(raw["inclusive_dur"]) / 1e6,
        tuple(arguments),
        inputs,
        tuple(tensor for one in outputs for tensor in one),
    )


def _tensors(
    values: Sequence[Any], shapes: Sequence[Any] | None, strides: Sequence[Any] | None
) -> tuple[tuple[_Tensor, ...], ...]:
    """By argument, the tensors in it; lists of tensors are entered."""
    none = [None] * len(values)
    return tuple(
        tuple(_inside(value, shape, stride))
        for value, shape, stride in zip(values, shapes or none, strides or none, strict=True)
    )


def _inside(value: Any, shape: Any, stride: Any) -> Iterator[_Tensor]:
    if not isinstance(value, list):
        return
    if len(value) == 6 and isinstance(value[5], str):
        _, storage, offset, elements, size, device = value
        if elements and device:
            last = elements - 1
            if shape and stride and len(shape) == len(stride):  # an expanded view spans less
                last = sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
            extent = (offset + last + 1) * size
            yield _Tensor(int(storage), int(extent), int(elements * size), device)
        return
    for position, one in enumerate(value):
        if isinstance(one, list):
            yield from _inside(one, _at(shape, position), _at(stride, position))


def _at(values: Any, position: int) -> Any:
    return values[position] if isinstance(values, list) and position < len(values) else None


# -- which calls are ops -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Call:
    """A node that a dispatch mode would see."""

    node: _Node
    phase: Phase
    func: OpOverload | None  # None: an op that this torch does not have


def _calls(nodes: Mapping[int, _Node]) -> Iterator[_Call]:
    children = _children(nodes)
    roots = (n for n in nodes.values() if n.parent == n.id or n.parent not in nodes)
    pending = [(node, Phase.FORWARD) for node in roots]
    while pending:
        node, phase = pending.pop()
        if node.name.startswith(_BACKWARD) or node.scope == _BACKWARD_SCOPE:
            phase = Phase.BACKWARD
        elif node.name.startswith(_OPTIMIZER):
            phase = Phase.OPTIMIZER
        below = [child for child in children.get(node.id, ()) if not child.category]
        if not node.schema or (_is_composite(node) and below):
            pending.extend((child, phase) for child in below)
        else:
            yield _Call(node, phase, _overload(node))


def _children(nodes: Mapping[int, _Node]) -> dict[int, list[_Node]]:
    found: dict[int, list[_Node]] = {}
    for node in nodes.values():
        if node.parent != node.id:
            found.setdefault(node.parent, []).append(node)
    return found


def _is_composite(node: _Node) -> bool:
    """Is the call made of others before a dispatch mode sees it?"""
    name = _qualified(node)
    known = _overload(node) is not None
    return known and bool(
        torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")
    )


def _qualified(node: _Node) -> str:
    """The op's name with its overload, such as `aten::pow.Tensor_Scalar`."""
    return node.schema.partition("(")[0]


def _overload(node: _Node) -> OpOverload | None:
    found = re.fullmatch(r"(\w+)::(\w+)(?:\.(\w+))?", _qualified(node))
    if found is None:
        return None
    namespace, name, overload = found.groups()
    packet = getattr(getattr(torch.ops, namespace), name, None)
    func = getattr(packet, overload or "default", None)
    return func if isinstance(func, OpOverload) else None


def _written(call: _Call) -> tuple[int, ...]:
    """Positions of the arguments that the call writes in place."""
    if call.func is None:
        arguments = call.node.schema.partition("(")[2].rpartition("->")[0].split(",")
        return tuple(position for position, text in enumerate(arguments) if "!" in text)
    given = call.func._schema.arguments
    written = [
        position
        for position, argument in enumerate(given)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    secret = facts_of(call.func).secret_writes
    if secret and call.node.arguments[TRAINING_ARGUMENT]:
        written.extend(secret)
    return tuple(written)


def _device(calls: Sequence[_Call]) -> str:
    """The device that holds most of the tensors that the calls make."""
    held: Counter[str] = Counter()
    for call in calls:
        for tensor in call.node.outputs:
            held[tensor.device] += tensor.nbytes
    return held.most_common(1)[0][0] if held else "cpu"


# -- ops and values ------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Version:
    storage: "_Storage"
    producer: int | None
    freed: int | None = None
    last_use: int = -1


@dataclass(slots=True, eq=False)
class _Storage:
    number: int
    is_initial: bool
    nbytes: int = 0
    versions: list[_Version] = field(default_factory=list)
    read_in: set[Phase] = field(default_factory=set)
    written_in: list[Phase] = field(default_factory=list)

    def kind(self) -> Kind:
        if self.is_initial:
            if Phase.OPTIMIZER in self.written_in:
                forward = Phase.FORWARD in self.read_in
                return Kind.PARAMETER if forward else Kind.OPTIMIZER_STATE
            if Phase.BACKWARD in self.written_in:
                return Kind.GRADIENT
            return Kind.BUFFER if self.written_in else Kind.INPUT
        if self.written_in[0] is Phase.FORWARD:
            return Kind.ACTIVATION
        made_in_backward = self.written_in[0] is Phase.BACKWARD
        is_gradient = made_in_backward and Phase.OPTIMIZER in self.read_in
        return Kind.GRADIENT if is_gradient else Kind.TEMPORARY


@dataclass(frozen=True, slots=True)
class _Added:
    node: _Node
    phase: Phase
    name: str
    reads: list[_Version]
    writes: list[_Version]
    moved: int
    random: bool
    repeatable: bool


class _Step:
    """Walks the ops in order and keeps the books of storages and their versions."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.ops: list[_Added] = []
        self.versions: list[_Version] = []
        self._current: dict[int, _Storage] = {}  # by the file's id
        self._storages = 0

    def add(self, call: _Call) -> None:
        node, index = call.node, len(self.ops)
        inputs = [[t for t in one if t.device == self.device] for one in node.inputs]
        outputs = [t for t in node.outputs if t.device == self.device]
        given = {tensor.storage for one in inputs for tensor in one}
        written = {t.storage for at in _written(call) if at < len(inputs) for t in inputs[at]}
        fresh = {tensor.storage for tensor in outputs} - given
        if not (given or fresh) or self._makes_views(call, written, fresh):
            return
        reads = []
        for tensor in (tensor for one in inputs for tensor in one):
            storage = self._current.get(tensor.storage)
            # What is larger than what an op made there is another one, which no op made.
            if storage is None or (not storage.is_initial and tensor.extent > storage.nbytes):
                storage = self._new(tensor.storage, None)
            storage.nbytes = max(storage.nbytes, tensor.extent)
            if (version := storage.versions[-1]) not in reads:
                reads.append(version)
                storage.read_in.add(call.phase)
                version.last_use = index
        # In the order of the arguments, then in that of the results.
        writes = []
        for number in dict.fromkeys(t.storage for one in inputs for t in one):
            if number in written:
                storage = self._current[number]
                storage.versions[-1].freed = index
                writes.append(self._version(storage, index))
                storage.written_in.append(call.phase)
        for number in dict.fromkeys(tensor.storage for tensor in outputs):
            if number in fresh:
                storage = self._new(number, index)
                storage.written_in.append(call.phase)
                writes.append(storage.versions[-1])
        for tensor in outputs:
            storage = self._current[tensor.storage]
            storage.nbytes = max(storage.nbytes, tensor.extent)
        facts = None if call.func is None else facts_of(call.func)
        keeps_state = not any(version.storage.is_initial for version in writes)
        self.ops.append(
            _Added(
                node,
                call.phase,
                ".".join(re.split(r"::|\.", _qualified(node))[:2]),
                reads,
                writes,
                sum(tensor.nbytes for tensor in (*(t for one in inputs for t in one), *outputs)),
                random=facts is not None and facts.random,
                repeatable=facts is not None
                and facts.repeatable
                and (bool(facts.secret_writes) or keeps_state),
            )
        )

    def _makes_views(self, call: _Call, written: set[int], fresh: set[int]) -> bool:
        """Does the call touch no byte? Composite ones without calls of their own may do nothing."""
        if call.func is not None and torch.Tag.inplace_view in call.func.tags:
            return True  # `detach_` and its like write what a tensor says of itself, not its bytes
        if written or fresh:
            return False
        return (call.func is not None and facts_of(call.func).is_view) or bool(call.node.outputs)

    def _new(self, number: int, producer: int | None) -> _Storage:
        """A storage of that id begins; if there was another one, it is dead."""
        self._current[number] = storage = _Storage(self._storages, producer is None)
        self._storages += 1
        self._version(storage, producer)
        return storage

    def _version(self, storage: _Storage, producer: int | None) -> _Version:
        version = _Version(storage, producer, last_use=-1 if producer is None else producer)
        storage.versions.append(version)
        self.versions.append(version)
        return version

    def trace(self, device: str, schema: str, times: "_Times | None") -> Trace:
        number = {id(version): ValueId(index) for index, version in enumerate(self.versions)}
        phases = [op.phase for op in self.ops]
        kinds = {id(version.storage): version.storage.kind() for version in self.versions}
        read_in_backward = {
            id(version) for op in self.ops if op.phase is Phase.BACKWARD for version in op.reads
        }
        values = tuple(
            Value(
                number[id(version)],
                StorageId(version.storage.number),
                version.storage.nbytes,
                kinds[id(version.storage)],
                None if version.producer is None else OpIndex(version.producer),
                _freed(version),
                id(version) in read_in_backward
                and version.producer is not None
                and phases[version.producer] is Phase.FORWARD,
            )
            for version in self.versions
        )
        left = None
        ops = []
        for index, op in enumerate(self.ops):
            host, seconds, left = times.of(op.node, left) if times else (0.0, 0.0, None)
            ops.append(
                Op(
                    OpIndex(index),
                    op.name,
                    op.phase,
                    tuple(number[id(version)] for version in op.reads),
                    tuple(number[id(version)] for version in op.writes),
                    seconds,
                    host,
                    moved=op.moved,
                    random=op.random,
                    repeatable=op.repeatable,
                )
            )
        versions = {"execution trace": schema}
        return Trace(tuple(ops), values, device.partition(":")[0], versions=versions)


def _freed(version: _Version) -> OpIndex | None:
    if version.freed is not None:
        return OpIndex(version.freed)
    return None if version.storage.is_initial else OpIndex(version.last_use)


# -- times ---------------------------------------------------------------------------------------

_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


@dataclass(frozen=True, slots=True)
class _Times:
    """When calls ran, and what the device did for them, by node."""

    calls: dict[int, tuple[float, float]]  # start, seconds
    kernels: dict[int, float]  # seconds on the device, of what the call itself launched
    below: dict[int, list[_Node]]

    def knows(self, node: _Node) -> bool:
        return node.id in self.calls

    def of(self, node: _Node, left: float | None) -> tuple[float, float, float | None]:
        """Seconds of the host before the call and of the call, and when it was left."""
        if not self.knows(node):
            return 0.0, 0.0, left
        if self.kernels:
            return 0.0, self._on_device(node), None
        start, seconds = self.calls[node.id]
        return (0.0 if left is None else max(0.0, start - left)), seconds, start + seconds

    def _on_device(self, node: _Node) -> float:
        """What the call's kernels took, and those of the calls that it made."""
        pending, seconds = [node], 0.0
        while pending:
            one = pending.pop()
            seconds += self.kernels.get(one.id, 0.0)
            pending.extend(self.below.get(one.id, ()))
        return seconds


def _own_times(nodes: Mapping[int, _Node]) -> _Times | None:
    """The times that Chakra's linker put into the file; None if it did not."""
    calls = {n.id: (n.start, n.seconds) for n in nodes.values() if n.seconds and not n.category}
    kernels: dict[int, float] = {}
    for node in nodes.values():
        if node.category in _ON_DEVICE and node.seconds is not None:
            kernels[node.parent] = kernels.get(node.parent, 0.0) + node.seconds
    return _Times(calls, kernels, _children(nodes)) if calls else None


def _profiled_times(kineto: Json, nodes: Mapping[int, _Node]) -> _Times:
    """Times from the profiler's Chrome trace, whose record function ids the file shares."""
    by_rf_id = {node.rf_id: node.id for node in nodes.values() if node.rf_id >= 0}
    calls: dict[int, tuple[float, float]] = {}
    launched: dict[int, int] = {}  # external id -> node
    kernels: dict[int, float] = {}
    for event in kineto["traceEvents"]:
        facts = event.get("args", {})
        if event.get("cat") == "cpu_op" and "dur" in event:
            rf_id = int(facts.get("Record function id", facts.get("External id", -1)))
            if (node := by_rf_id.get(rf_id)) is not None:
                calls[node] = float(event["ts"]) / 1e6, float(event["dur"]) / 1e6
                launched[int(facts.get("External id", -1))] = node
    for event in kineto["traceEvents"]:
        if event.get("cat") in _ON_DEVICE:
            node = launched.get(int(event.get("args", {}).get("External id", -1)))
            if node is not None:
                kernels[node] = kernels.get(node, 0.0) + float(event["dur"]) / 1e6
    return _Times(calls, kernels, _children(nodes))
