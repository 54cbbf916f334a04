"""The recorder: it runs each call of a training step, measures it, and keeps the books.

**Guarantees.** Recording changes no result. It holds no tensor and no storage alive, so that every
value dies in the recorded step when it would die in any other.

Which values autograd saved is read off the step: what forward made and backward reads. Saved-tensor
hooks would say it too, but while any are set PyTorch does not check whether a saved tensor was
changed in place, and a user's error would go unseen.
"""

import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch._ops import OpOverload
from torch.optim import Optimizer

from penstock.dispatch.clock import in_backward
from penstock.dispatch.resident import bytes_of, parts_held
from penstock.dispatch.schema import Facts, facts_of, tensors_in
from penstock.dispatch.storage import (
    StorageRef,
    components_on,
    is_sparse,
    key_of,
    nbytes_of,
    storage_of,
)
from penstock.ir.trace import Kind, Op, OpIndex, Phase, StorageId, Trace, Value, ValueId
from penstock.record.measure import Cost, Stopwatch, dtype_of, flops_of, moved_bytes
from penstock.record.modules import ModulePaths
from penstock.simulate.queue import idle_before

__all__ = ["Recorder", "Recording"]


@dataclass(frozen=True)
class Recording:
    """A recorded step: its trace, the calls that made its ops, and the storages, if they live, of
    the values that were there when it began.
    """

    trace: Trace
    funcs: tuple[OpOverload, ...]
    initial: dict[ValueId, StorageRef]


class Recorder:
    """Records steps, one after the other, through `run`.

    Use: `open`, then for each step `begin`, calls through `run`, `end`; then `close`.
    """

    def __init__(self, device: torch.device, watch: Stopwatch) -> None:
        self._device = device
        self._paths = ModulePaths()
        self._watch = watch
        self._alive: dict[int, _Storage] = {}  # by storage key
        self._in_optimizer = False
        self._ops: list[_Op] = []
        self._versions: list[_Version] = []
        self._storages = 0
        self._left = 0.0  # when the last call was left

    def open(self) -> None:
        self._paths.open()

    def pause(self) -> None:
        """Until the next `open` no step is recorded: modules need not be watched."""
        self._paths.close()

    def close(self) -> None:
        self._paths.close()
        self._alive.clear()

    # -- a step ------------------------------------------------------------------------------

    def begin(self) -> None:
        """A step begins: forget the ops of the last one, keep what is alive."""
        self._ops.clear()
        self._versions.clear()
        self._storages = 0
        self._paths.forget_nodes()
        for storage in self._alive.values():
            storage.outlive_step(self._next_storage())
            self._add_version(storage, None)
        self._left = time.perf_counter()

    def end(self, label: str = "", slack: int = 0) -> Recording:
        """The step has ended: return it. Waits for the device."""
        # Values that died before the first op were never part of this step.
        kept = [v for v in self._versions if not (v.producer is None and v.freed == -1)]
        number = {id(version): ValueId(index) for index, version in enumerate(kept)}
        seconds = [op.cost.seconds() for op in self._ops]
        hosts = [op.host_seconds for op in self._ops]
        if self._device.type == "cuda":
            names = [op.facts.name for op in self._ops]
            asking = [host + op.cost.asking for host, op in zip(hosts, self._ops, strict=True)]
            hosts = idle_before(names, asking, seconds)
        ops = tuple(
            Op(
                OpIndex(index),
                op.facts.name,
                op.phase,
                tuple(number[id(v)] for v in op.reads),
                tuple(number[id(v)] for v in op.writes),
                seconds[index],
                hosts[index],
                op.flops,
                op.moved,
                op.scratch,
                op.facts.random,
                op.repeatable,
                op.module,
                op.dtype,
            )
            for index, op in enumerate(self._ops)
        )
        read_in_backward = {v for op in ops if op.phase is Phase.BACKWARD for v in op.reads}
        values = tuple(
            Value(
                number[id(version)],
                StorageId(version.storage.number),
                version.storage.held,
                version.storage.kind or version.storage.born_as,
                None if version.producer is None else OpIndex(version.producer),
                None if version.freed is None else OpIndex(version.freed),
                number[id(version)] in read_in_backward
                and version.producer is not None
                and ops[version.producer].phase is Phase.FORWARD,
                version.storage.name,
                version.storage.unwritten,
            )
            for version in kept
        )
        versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
        trace = Trace(ops, values, self._device.type, label, slack, versions)
        initial = {number[id(v)]: v.storage.ref for v in kept if v.producer is None}
        funcs = tuple(op.func for op in self._ops)
        self._ops.clear()
        self._versions.clear()
        return Recording(trace, funcs, initial)

    def live_bytes(self) -> int:
        """Bytes of all storages that live now, wherever they are, but for what nobody wrote."""
        return sum(storage.held for storage in self._alive.values())

    # -- what the session tells ----------------------------------------------------------------

    def optimizer_begins(self, optimizer: Optimizer) -> None:
        self._in_optimizer = True
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = self._mark(parameter, Kind.PARAMETER)
                if parameter.grad is not None:
                    self._mark(parameter.grad, Kind.GRADIENT, f"gradient of {name}")

    def optimizer_ends(self, optimizer: Optimizer) -> None:
        self._in_optimizer = False
        for parameter, state in optimizer.state.items():
            name = self._mark(parameter, Kind.PARAMETER)
            for what, tensor in state.items():
                if isinstance(tensor, Tensor):
                    self._mark(tensor, Kind.OPTIMIZER_STATE, f"{what} of {name}")

    def _mark(self, tensor: Tensor, kind: Kind, name: str = "") -> str:
        """Say what a storage is; returns its name."""
        for component in components_on([tensor], self._device):
            if (storage := self._alive.get(key_of(storage_of(component)))) is not None:
                storage.kind = kind
                name = storage.name = storage.name or name
        return name

    # -- a call --------------------------------------------------------------------------------

    def run(
        self,
        func: OpOverload,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        arrived: float | None = None,
    ) -> Any:
        """Run one call and note it. `arrived`: when the script made it, if others had it first."""
        facts = facts_of(func)
        if facts.makes_view(args):
            return func(*args, **kwargs)
        host_seconds = (arrived or time.perf_counter()) - self._left
        backward = in_backward() != -1
        given = tensors_in((args, kwargs))
        inputs = components_on(given, self._device)
        sources = self._storages_of(inputs)
        targets = self._storages_of(components_on(facts.written(args, kwargs), self._device))
        reads = [storage.versions[-1] for storage in sources]
        module = self._paths.current(backward=backward)

        result, cost = self._watch.run(func, args, kwargs)

        index = len(self._ops)
        writes = []
        first_written = 0  # of what was there
        for storage in targets:
            first_written += storage.see_what_is_written()
            storage.versions[-1].freed = index
            writes.append(self._add_version(storage, index))
        outputs = components_on(tensors_in(result), self._device)
        fresh = self._fresh(outputs, index, backward=backward)
        writes.extend(storage.versions[-1] for storage in fresh)
        written = first_written + sum(storage.held for storage in fresh)
        # An op may keep things for itself in what it reads, where nobody wrote: scratch that goes with it.
        may_hide = any(storage.unwritten and storage not in targets for storage in sources)
        self._ops.append(
            _Op(
                func,
                facts,
                self._phase(backward=backward),
                reads,
                writes,
                cost,
                host_seconds,
                flops_of(func, args, kwargs, result),
                moved_bytes(inputs) + moved_bytes(outputs),
                cost.scratch(written, settles=not may_hide),
                # What a secret write touches, `Facts.again` keeps out of a second run.
                facts.repeatable
                and not any(map(is_sparse, given))
                and (bool(facts.secret_writes) or all(s.is_of_this_step for s in targets)),
                module,
                dtype_of([*outputs, *inputs]),
            )
        )
        self._left = time.perf_counter()
        return result

    def _phase(self, *, backward: bool) -> Phase:
        if self._in_optimizer:
            return Phase.OPTIMIZER
        return Phase.BACKWARD if backward else Phase.FORWARD

    def _storages_of(self, inputs: Iterable[Tensor]) -> list["_Storage"]:
        """The storages of arguments, each once; those first met here were there before the step."""
        found: dict[int, _Storage] = {}
        for tensor in inputs:
            torch_storage = storage_of(tensor)
            key = key_of(torch_storage)
            if key in found or not nbytes_of(torch_storage):
                continue
            storage = self._alive.get(key)
            if storage is None:
                storage = self._meet(torch_storage, Kind.INPUT)
                self._add_version(storage, None)
            if storage.kind is None and isinstance(tensor, nn.Parameter):
                storage.kind = Kind.PARAMETER
            found[key] = storage
        return list(found.values())

    def _fresh(self, outputs: Iterable[Tensor], index: int, *, backward: bool) -> list["_Storage"]:
        """The storages that a call made, in output order."""
        made = []
        for tensor in outputs:
            torch_storage = storage_of(tensor)
            if key_of(torch_storage) in self._alive or not nbytes_of(torch_storage):
                continue
            temporary = backward or self._in_optimizer
            storage = self._meet(torch_storage, Kind.TEMPORARY if temporary else Kind.ACTIVATION)
            storage.is_of_this_step = True
            storage.unwritten = storage.nbytes
            storage.see_what_is_written()
            self._add_version(storage, index)
            made.append(storage)
        return made

    def _meet(self, torch_storage: UntypedStorage, born_as: Kind) -> "_Storage":
        ref = StorageRef(torch_storage, self._died)
        storage = _Storage(ref, nbytes_of(torch_storage), self._next_storage(), born_as)
        if (named := self._paths.name_of(torch_storage)) is not None:
            storage.name, storage.kind = named
        self._alive[ref.key] = storage
        return storage

    def _died(self, ref: StorageRef) -> None:
        storage = self._alive.get(ref.key)
        if storage is not None and storage.ref is ref:
            del self._alive[ref.key]
            storage.versions[-1].freed = len(self._ops) - 1

    def _add_version(self, storage: "_Storage", producer: int | None) -> "_Version":
        version = _Version(storage, producer)
        storage.versions.append(version)
        self._versions.append(version)
        return version

    def _next_storage(self) -> int:
        self._storages += 1
        return self._storages - 1


@dataclass(slots=True, eq=False)
class _Storage:
    """A living storage of the device, and what is known of it."""

    ref: StorageRef
    nbytes: int
    number: int  # in this step
    born_as: Kind
    kind: Kind | None = None  # what it turned out to be
    name: str = ""
    is_of_this_step: bool = False
    unwritten: int = 0  # bytes
    versions: list["_Version"] = field(default_factory=list)  # of this step

    @property
    def held(self) -> int:
        return self.nbytes - self.unwritten

    def see_what_is_written(self) -> int:
        """After an op that may have written here: the bytes that it was the first to write."""
        before = self.unwritten
        if before and (storage := self.ref()) is not None:
            self.unwritten = self.nbytes - bytes_of(parts_held(storage))
        return before - self.unwritten

    def outlive_step(self, number: int) -> None:
        """A new step begins, and this storage is still there."""
        self.number = number
        self.is_of_this_step = False
        self.versions.clear()


@dataclass(slots=True, eq=False)
class _Version:
    storage: _Storage
    producer: int | None
    freed: int | None = None


@dataclass(slots=True, eq=False)
class _Op:
    func: OpOverload
    facts: Facts
    phase: Phase
    reads: list[_Version]
    writes: list[_Version]
    cost: Cost
    host_seconds: float
    flops: int
    moved: int
    scratch: int
    repeatable: bool
    module: str
    dtype: str
