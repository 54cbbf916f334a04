"""Kernel graphs of the G10 simulator (Zhang et al., MICRO 2023) as traces.

Two CSV files side by side hold one iteration: `NAME.kernels.csv` says in which order kernels run, how
many cycles each takes and which tensors it reads and writes, `NAME.tensors.csv` how large they are and
which of them live on (`is_global`).
"""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import TraceError
from penstock.interop.imported import Imported
from penstock.ir.trace import Kind, Op, OpIndex, Phase, StorageId, Trace, Value, ValueId

__all__ = ["CLOCK", "KERNELS", "TENSORS", "Kernel", "Tensor", "read_graph", "read_kernels"]

CLOCK = 1.2e9
"""Cycles per second in the simulator's configuration."""
KERNELS = "id,name,cycles,inputs,outputs"
TENSORS = "id,bytes,is_global"
"""The first lines of the two files."""
_SUFFIX = ".kernels.csv"


@dataclass(frozen=True, slots=True)
class Kernel:
    name: str
    cycles: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    nbytes: int
    is_global: bool


def read_graph(path: Path, clock: float = CLOCK) -> Imported:
    """The trace of the graph whose kernels are in `path`; its tensors are in the file beside it.

    `clock`: cycles per second. Raises `TraceError` with the file, the line and the reason.
    """
    kernels, tensors = read_kernels(path)
    step = _Step(kernels, tensors, clock)
    trace = step.trace(path.name.removesuffix(_SUFFIX))
    return Imported(trace, tuple(step.notes()))


def read_kernels(path: Path) -> tuple[tuple[Kernel, ...], dict[int, Tensor]]:
    """The two files as they are: kernels in order, tensors by id."""
    if not path.name.endswith(_SUFFIX):
        raise TraceError(f"{path}: a G10 graph's kernels are in a file NAME{_SUFFIX}")
    beside = path.with_name(path.name.removesuffix(_SUFFIX) + ".tensors.csv")
    tensors: dict[int, Tensor] = {}
    for where, row in _rows(beside, TENSORS):
        number, nbytes, is_global = (_number(text, where) for text in row)
        if number in tensors:
            raise TraceError(f"{where}: tensor {number} is described twice")
        if is_global not in (0, 1):
            raise TraceError(f"{where}: is_global is {is_global}; it must be 0 or 1")
        tensors[number] = Tensor(nbytes, bool(is_global))
    kernels: list[Kernel] = []
    for where, (index, name, cycles, inputs, outputs) in _rows(path, KERNELS):
        if _number(index, where) != len(kernels):
            raise TraceError(f"{where}: kernel {index} stands where {len(kernels)} should be")
        named = [tuple(_number(one, where) for one in text.split()) for text in (inputs, outputs)]
        if unknown := {one for ids in named for one in ids} - tensors.keys():
            raise TraceError(f"{where}: tensor {min(unknown)} is not described in {beside}")
        kernels.append(Kernel(name, _number(cycles, where), *named))
    if not kernels:
        raise TraceError(f"{path}: there is no kernel in it")
    return tuple(kernels), tensors


def _rows(path: Path, head: str) -> Iterator[tuple[str, list[str]]]:
    """Each line below the head, with where it stands."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            if (found := ",".join(next(rows, []))) != head:
                raise TraceError(f"{path}, line 1: {found[:80]!r}; it must be {head!r}")
            for row in filter(None, rows):
                where = f"{path}, line {rows.line_num}"
                if len(row) != head.count(",") + 1:
                    raise TraceError(f"{where}: {len(row)} fields; there must be those of {head!r}")
                yield where, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or error}"
        ) from None


def _number(text: str, where: str) -> int:
    if not re.fullmatch(r"\d{1,18}", text):
        raise TraceError(f"{where}: {text[:40]!r} is not a whole number of 0 or more")
    return int(text)


@dataclass(slots=True, eq=False)
class _Version:
    tensor: int
    producer: int | None
    freed: int | None = None


class _Step:
    """Walks the kernels in order and keeps the books of tensors and their versions."""

    def __init__(self, kernels: Sequence[Kernel], tensors: dict[int, Tensor], clock: float) -> None:
        self.kernels, self.tensors, self.clock = kernels, tensors, clock
        self.ops: list[Op] = []
        self.versions: list[_Version] = []
        self.arrivals = 0
        self.scratch = _scratch(kernels, tensors)
        self._latest: dict[int, ValueId] = {}
        self._last_touch: dict[int, int] = {}
        for number, tensor in sorted(tensors.items()):
            if tensor.is_global:
                self._begin(number, None)
        backward = [n for n, kernel in enumerate(kernels) if "_Backward" in kernel.name]
        self._loss = backward[0] if backward else len(kernels)
        for position, kernel in enumerate(kernels):
            self._run(position, kernel)

    def _run(self, position: int, kernel: Kernel) -> None:
        inputs = dict.fromkeys(kernel.inputs)
        if missing := [one for one in inputs if one not in self._latest]:
            self._arrive(missing, position)
        index, writes, workspace = len(self.ops), [], 0
        # What is written again is added to, so it is read, whether the graph says so or not.
        again = (one for one in kernel.outputs if one in self._latest)
        reads = tuple(self._latest[one] for one in dict.fromkeys((*inputs, *again)))
        for tensor in dict.fromkeys(kernel.outputs):
            if tensor in self.scratch:
                workspace += self.tensors[tensor].nbytes
                continue
            if (before := self._latest.get(tensor)) is not None:
                self.versions[before].freed = index
            writes.append(self._begin(tensor, index))
        for tensor in (*inputs, *kernel.outputs):
            self._last_touch[tensor] = index
        phase = self._phase(position)
        updates = phase is Phase.OPTIMIZER
        self.ops.append(
            Op(
                OpIndex(index),
                kernel.name,
                phase,
                reads,
                tuple(writes),
                kernel.cycles / self.clock,
                moved=sum(self.tensors[one].nbytes for one in (*inputs, *kernel.outputs)),
                workspace=workspace,
                random=kernel.name.startswith("Dropout_Forward"),
                repeatable=not updates and not kernel.name.startswith("LoadData"),
            )
        )

    def _arrive(self, tensors: list[int], position: int) -> None:
        """An op of no time brings what no kernel makes: G10 counts it from its first reader on."""
        index = OpIndex(len(self.ops))
        writes = tuple(self._begin(tensor, index) for tensor in tensors)
        self.ops.append(Op(index, "input", self._phase(position), writes=writes, repeatable=False))
        self.arrivals += len(tensors)

    def _begin(self, tensor: int, producer: int | None) -> ValueId:
        self._latest[tensor] = number = ValueId(len(self.versions))
        self.versions.append(_Version(tensor, producer))
        return number

    def _phase(self, position: int) -> Phase:
        if "Apply_Grad" in self.kernels[position].name:
            return Phase.OPTIMIZER
        return Phase.FORWARD if position < self._loss else Phase.BACKWARD

    def trace(self, label: str) -> Trace:
        kinds = self._kinds()
        in_backward = {v for op in self.ops if op.phase is Phase.BACKWARD for v in op.reads}
        values = []
        for number, version in enumerate(self.versions):
            tensor, made = self.tensors[version.tensor], version.producer
            freed = version.freed
            if freed is None and not tensor.is_global:
                freed = self._last_touch[version.tensor]
            in_forward = made is not None and self.ops[made].phase is Phase.FORWARD
            values.append(
                Value(
                    ValueId(number),
                    StorageId(version.tensor),
                    tensor.nbytes,
                    kinds[version.tensor],
                    None if made is None else OpIndex(made),
                    None if freed is None else OpIndex(freed),
                    saved=in_forward and not tensor.is_global and number in in_backward,
                    name=f"tensor {version.tensor}" if made is None else "",
                )
            )
        facts = {"G10 graph": label, "cycles per second": f"{self.clock:.0f}"}
        return Trace(tuple(self.ops), tuple(values), "cuda", label, versions=facts)

    def _kinds(self) -> dict[int, Kind]:
        """What each tensor is, by who makes it and who uses it."""
        updated, applied = set[int](), set[int]()
        for op in self.ops:
            if op.phase is Phase.OPTIMIZER:
                updated.update(self.versions[v].tensor for v in op.writes)
                applied.update(self.versions[v].tensor for v in op.reads)
        found: dict[int, Kind] = {}
        for version in self.versions:
            tensor, made = version.tensor, version.producer
            if tensor in found:
                continue
            if made is None:
                found[tensor] = Kind.PARAMETER if tensor in updated else Kind.BUFFER
            elif not self.ops[made].reads and not self.ops[made].repeatable:
                found[tensor] = Kind.INPUT
            elif self.ops[made].phase is Phase.FORWARD:
                found[tensor] = Kind.ACTIVATION
            else:
                found[tensor] = Kind.GRADIENT if tensor in applied else Kind.TEMPORARY
        return found

    def notes(self) -> Iterator[str]:
        yield "not in the graph: modules, dtypes, flops, and what the host does between kernels"
        if self.arrivals:
            yield (
                f"{self.arrivals} tensors are read that no kernel makes: ops called `input`, of no "
                "time, bring them when they are read first"
            )
        if self.scratch:
            yield f"{len(self.scratch)} tensors that only one kernel touches are its workspace"
        if untouched := self.tensors.keys() - {v.tensor for v in self.versions} - self.scratch:
            yield f"{len(untouched)} tensors that no kernel touches are left out"


def _scratch(kernels: Sequence[Kernel], tensors: dict[int, Tensor]) -> frozenset[int]:
    """The tensors that live while one kernel runs, and are nothing but written by it."""
    touched: dict[int, set[int]] = {}
    read: set[int] = set()
    for position, kernel in enumerate(kernels):
        read.update(kernel.inputs)
        for one in (*kernel.inputs, *kernel.outputs):
            touched.setdefault(one, set()).add(position)
    return frozenset(
        one
        for one, by in touched.items()
        if len(by) == 1 and one not in read and not tensors[one].is_global
    )
