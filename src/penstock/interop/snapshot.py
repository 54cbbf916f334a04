"""Memory snapshots of PyTorch's CUDA allocator (`torch.cuda.memory._dump_snapshot`) as traces.

A snapshot is a pickle of plain containers: the allocator's segments as they are now, and for each
device what was allocated and freed, with the stack of each call. It is read without running anything
that it names. Each run of allocations from one place of the source becomes an op that writes them.
"""

import io
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from penstock.errors import TraceError
from penstock.interop.imported import Imported, Json
from penstock.ir.trace import Kind, Op, OpIndex, Phase, StorageId, Trace, Value, ValueId

__all__ = ["load_pickle", "read_snapshot"]

_ASSUMED = (
    "not in a snapshot: what is read. Ops are runs of allocations from one place of the source",
    "so no plan can be made for this trace: use it to see what fills the memory, and when",
    "seconds are those between allocations, on the host",
    "what was allocated before the history begins is called an input: its kind is not known",
)
_INNER = ("torch/", "torch\\", "site-packages", "<frozen", "importlib")
"""Parts of paths that are not the user's own code."""


def load_pickle(content: bytes) -> Any:
    """What a pickle of plain containers holds. Raises `TraceError` for anything else."""
    try:
        return _Plain(io.BytesIO(content)).load()
    except TraceError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its opcodes happen to
        raise TraceError(f"no memory snapshot, or a damaged one: {error}") from None


class _Plain(pickle.Unpickler):
    """Builds lists, dicts, numbers, text; names of classes and functions are refused."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise TraceError(
            f"it names {module}.{name}; a memory snapshot holds nothing but lists, dicts, numbers "
            "and text, so this is none, and it was not run"
        )

    def persistent_load(self, pid: Any) -> NoReturn:
        raise TraceError(f"it names the outside object {pid!r}; a memory snapshot holds none")


def read_snapshot(body: Json, device: int | None = None) -> Imported:
    """The history of one device; None: the one with most events.

    Raises `TraceError` if there is no history.
    """
    histories = body["device_traces"]
    if device is None:
        device = max(range(len(histories)), key=lambda at: len(histories[at]), default=0)
    events = histories[device] if device < len(histories) else []
    if not any(event["action"] == "alloc" for event in events):
        raise TraceError(
            f"the snapshot has no history of device {device}: call "
            "torch.cuda.memory._record_memory_history() before the step"
        )
    segments = [one for one in body["segments"] if one.get("device", 0) == device]
    history = _History()
    for event in events:
        history.add(event)
    history.close(_active(segments))
    reserved = _reserved(segments, events)
    bare = history.trace(0)
    notes = list(_ASSUMED)
    if not any(event.get("frames") for event in events):
        notes.append("the events carry no stacks: record with context='all' to see where they are")
    if history.unmatched:
        notes.append(f"{history.unmatched} frees of what was allocated before the history begins")
    return Imported(history.trace(max(0, reserved - bare.peak)), tuple(notes))


def _active(segments: Sequence[Json]) -> Iterator[tuple[int, int]]:
    """Address and requested bytes of all blocks that are in use now."""
    for segment in segments:
        address = segment["address"]
        for block in segment["blocks"]:
            address = block.get("address", address)
            if block["state"] == "active_allocated":
                yield address, block.get("requested_size", block["size"])
            address += block["size"]


_GROWS = {"segment_alloc": 1, "segment_map": 1, "segment_free": -1, "segment_unmap": -1}


def _reserved(segments: Sequence[Json], events: Sequence[Json]) -> int:
    """The most bytes that segments held: from what they hold now, back through the history."""
    held = sum(int(segment["total_size"]) for segment in segments)
    most = held
    for event in reversed(events):
        held -= _GROWS.get(event["action"], 0) * event.get("size", 0)
        most = max(most, held)
    return most


@dataclass(slots=True, eq=False)
class _Block:
    nbytes: int
    producer: int | None
    freed: int | None = None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the source something is allocated."""

    function: str
    line: str  # file and line
    phase: Phase


class _History:
    """Follows allocations and frees, and groups allocations by place."""

    def __init__(self) -> None:
        self.unmatched = 0
        self._blocks: list[_Block] = []
        self._at: dict[int, _Block] = {}  # by address
        self._places: list[_Place] = []
        self._began: list[float] = []  # when each op allocated first, in seconds
        self._ended = 0.0

    def add(self, event: Json) -> None:
        self._ended = event.get("time_us", 0) / 1e6
        match event["action"]:
            case "alloc":
                place = _place(event.get("frames", ()))
                if not self._places or self._places[-1] != place:
                    self._places.append(place)
                    self._began.append(self._ended)
                block = _Block(event["size"], len(self._places) - 1)
                self._blocks.append(block)
                self._at[event["addr"]] = block
            case "free_completed":  # until then its bytes serve nobody else
                if event["addr"] not in self._at:
                    self.unmatched += 1
                    self._at[event["addr"]] = older = _Block(event["size"], None)
                    self._blocks.append(older)
                self._at.pop(event["addr"]).freed = len(self._places) - 1

    def close(self, active: Iterator[tuple[int, int]]) -> None:
        """The history has ended; these blocks are in use. Older ones were there before it began."""
        for address, nbytes in active:
            if address not in self._at:
                self._blocks.append(_Block(nbytes, None))

    def trace(self, slack: int) -> Trace:
        # What was freed before the first allocation is no part of the step.
        blocks = [block for block in self._blocks if block.freed is None or block.freed >= 0]
        made: list[list[ValueId]] = [[] for _ in self._places]
        for number, block in enumerate(blocks):
            if block.producer is not None:
                made[block.producer].append(ValueId(number))
        values = tuple(
            Value(
                ValueId(number),
                StorageId(number),
                block.nbytes,
                self._kind(block),
                None if block.producer is None else OpIndex(block.producer),
                None if block.freed is None else OpIndex(block.freed),
            )
            for number, block in enumerate(blocks)
        )
        ends = [*self._began[1:], self._ended]
        ops = tuple(
            Op(
                OpIndex(index),
                place.function,
                place.phase,
                writes=tuple(made[index]),
                seconds=max(0.0, end - began),
                repeatable=False,  # what it reads is not known
                module=place.line,
            )
            for index, (place, began, end) in enumerate(
                zip(self._places, self._began, ends, strict=True)
            )
        )
        return Trace(ops, values, "cuda", slack=slack)

    def _kind(self, block: _Block) -> Kind:
        if block.producer is None:
            return Kind.INPUT
        match self._places[block.producer].phase:
            case Phase.FORWARD:
                return Kind.ACTIVATION
            case Phase.BACKWARD:
                return Kind.TEMPORARY
            case Phase.OPTIMIZER:
                return Kind.OPTIMIZER_STATE if block.freed is None else Kind.TEMPORARY


def _place(frames: Sequence[Json]) -> _Place:
    """The innermost frame of the user's own code; frames come innermost first."""
    phase = Phase.FORWARD
    for frame in frames:
        if "/optim/" in frame["filename"].replace("\\", "/"):
            phase = Phase.OPTIMIZER
            break
        if "autograd::Engine" in frame["name"] or frame["name"] == "_engine_run_backward":
            phase = Phase.BACKWARD
            break
    python = [frame for frame in frames if frame["filename"].endswith(".py")]
    own = [f for f in python if not any(part in f["filename"] for part in _INNER)]
    if not (found := (own or python or list(frames))[:1]):
        return _Place("allocation", "", phase)
    file = found[0]["filename"].replace("\\", "/").rpartition("/")[2]
    return _Place(found[0]["name"], f"{file}:{found[0]['line']}", phase)
