"""Save and load traces, machines, plans and timelines: versioned JSON, compressed with zstandard.

`docs/trace-format.md` documents the schema, so that other tools can write a trace. A loaded file
never runs code. Files are replaced whole: a crash while saving leaves the old one.
"""

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
import zstandard

from penstock.errors import TraceError, nearest
from penstock.ir.machine import Device, Direct, Faults, Link, Machine, Rate, Sample, Tier
from penstock.ir.plan import Decision, Place, Plan, Recompute, Swap
from penstock.ir.schedule import Cause
from penstock.ir.timeline import Timeline
from penstock.ir.trace import Gap, Kind, Op, OpIndex, Phase, StorageId, Trace, Value, ValueId

__all__ = ["FORMAT_VERSION", "load", "load_plan", "load_trace", "save"]

FORMAT_VERSION = 1
_T = TypeVar("_T")
_MAGIC = b"\x28\xb5\x2f\xfd"  # of every zstandard frame

Document: TypeAlias = Trace | Machine | Plan | Timeline
Json: TypeAlias = dict[str, Any]


def save(path: str | os.PathLike[str], document: Document, machine: Machine | None = None) -> None:
    """Write `document` to `path`. A trace may carry the `machine` on which it was recorded."""
    body = _write(document)
    if machine is not None:
        body["machine"] = _write_machine(machine)
    text = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(zstandard.ZstdCompressor(level=6).compress(text))
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load(path: str | os.PathLike[str]) -> Document:
    """Read what `save` wrote. Raises `TraceError` for anything else, and says what is wrong."""
    return _parse(path, _read)


def load_trace(path: str | os.PathLike[str]) -> tuple[Trace, Machine | None]:
    """Read a trace and the machine on which it was recorded (None if the file does not say)."""

    def read(body: Json) -> tuple[Trace, Machine | None]:
        if body["penstock"] != "trace":
            raise TraceError(f"this file holds a {body['penstock']}, not a trace")
        machine = body.get("machine")
        return _read_trace(body), None if machine is None else _read_machine(machine)

    return _parse(path, read)


def load_plan(path: str | os.PathLike[str]) -> Plan:
    """Read a plan."""
    found = load(path)
    if not isinstance(found, Plan):
        raise TraceError(f"{path} holds a {type(found).__name__.lower()}, not a plan")
    return found


def _parse(path: str | os.PathLike[str], read: Callable[[Json], _T]) -> _T:
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror}") from None
    try:
        if raw.startswith(_MAGIC):
            raw = zstandard.ZstdDecompressor().decompressobj().decompress(raw)
        body = json.loads(raw, parse_constant=_refuse)
    except _NoNumber as constant:
        raise TraceError(f"{path} is damaged: {constant} is no number") from None
    except (zstandard.ZstdError, ValueError):
        raise TraceError(f"{path} is damaged, or no Penstock file") from None
    if not isinstance(body, dict) or body.get("penstock") not in _READERS:
        known = ", ".join(_READERS)
        raise TraceError(f"{path} is no Penstock file: its field 'penstock' must be one of {known}")
    version = body.get("version")
    if version != FORMAT_VERSION:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        advice = "update Penstock to read it" if newer else "record it again"
        raise TraceError(
            f"{path} has format version {version}; this Penstock reads {FORMAT_VERSION}: {advice}"
        )
    try:
        return read(cast("Json", body))
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, IndexError) as error:
        what = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise TraceError(f"{path} is damaged: {what}") from None


class _NoNumber(Exception):
    """JSON has no such number, though Python reads it."""


def _refuse(constant: str) -> None:
    raise _NoNumber(constant)


def _write(document: Document) -> Json:
    match document:
        case Trace():
            return _write_trace(document)
        case Machine():
            return _write_machine(document)
        case Plan():
            return _write_plan(document)
        case Timeline():
            return _write_timeline(document)


def _head(kind: str) -> Json:
    return {"penstock": kind, "version": FORMAT_VERSION}


# -- columns ------------------------------------------------------------------------------------
# Records are stored by column: shorter, faster, and easier to write from another language.


def _columns(records: Sequence[Any], fields: Sequence[str]) -> dict[str, list[Any]]:
    return {name: [getattr(record, name) for record in records] for name in fields}


def _rows(columns: Mapping[str, list[Any]], count: int, default: Mapping[str, Any]) -> list[Json]:
    """Records from columns; a column that is missing takes its default, if it has one."""
    full: dict[str, Sequence[Any]] = {}
    for name, value in default.items():
        column = columns.get(name)
        if column is None:
            if value is _REQUIRED:
                raise KeyError(name)
            column = [value] * count
        if len(column) != count:
            raise ValueError(f"column {name!r} has {len(column)} rows, not {count}")
        full[name] = column
    return [dict(zip(full, row, strict=True)) for row in zip(*full.values(), strict=True)]


_REQUIRED: Any = object()
_VALUE: dict[str, Any] = {
    "storage": None,
    "nbytes": _REQUIRED,
    "kind": _REQUIRED,
    "producer": None,
    "freed": None,
    "saved": False,
    "name": "",
    "unwritten": 0,
}
_OP: dict[str, Any] = {
    "name": _REQUIRED,
    "phase": _REQUIRED,
    "reads": _REQUIRED,
    "writes": _REQUIRED,
    "seconds": 0.0,
    "host_seconds": 0.0,
    "flops": 0,
    "moved": 0,
    "workspace": 0,
    "random": False,
    "repeatable": True,
    "module": "",
    "dtype": "",
}


def _write_trace(trace: Trace) -> Json:
    return {
        **_head("trace"),
        "device": trace.device,
        "label": trace.label,
        "slack": trace.slack,
        "versions": trace.versions,
        "ops": _columns(trace.ops, list(_OP)),
        "values": _columns(trace.values, list(_VALUE)),
    }


def _read_trace(body: Json) -> Trace:
    ops, values = body["ops"], body["values"]
    return Trace(
        tuple(
            Op(
                OpIndex(index),
                row["name"],
                Phase(row["phase"]),
                tuple(map(ValueId, row["reads"])),
                tuple(map(ValueId, row["writes"])),
                float(row["seconds"]),
                float(row["host_seconds"]),
                int(row["flops"]),
                int(row["moved"]),
                int(row["workspace"]),
                bool(row["random"]),
                bool(row["repeatable"]),
                row["module"],
                row["dtype"],
            )
            for index, row in enumerate(_rows(ops, len(ops["name"]), _OP))
        ),
        tuple(
            Value(
                ValueId(index),
                StorageId(index if row["storage"] is None else int(row["storage"])),
                int(row["nbytes"]),
                Kind(row["kind"]),
                None if row["producer"] is None else OpIndex(int(row["producer"])),
                None if row["freed"] is None else OpIndex(int(row["freed"])),
                bool(row["saved"]),
                row["name"],
                int(row["unwritten"]),
            )
            for index, row in enumerate(_rows(values, len(values["nbytes"]), _VALUE))
        ),
        body.get("device", "cpu"),
        body.get("label", ""),
        int(body.get("slack", 0)),
        dict(body.get("versions", {})),
    )


# -- machine ------------------------------------------------------------------------------------


def _write_machine(machine: Machine) -> Json:
    return {**_head("machine"), **dataclasses.asdict(machine)}


def _read_machine(body: Json) -> Machine:
    device = _record(body, "device")
    return Machine(
        Device(
            _text(device, "name", "device"),
            _bytes(device, "memory", "device"),
            _number(device, "bandwidth", "device", 0.0),
            {
                dtype: _number(device["flops"], dtype, "device.flops")
                for dtype in _record(device, "flops", "device", {})
            },
            {
                ops: _read_rate(device["costs"], ops)
                for ops in _record(device, "costs", "device", {})
            },
            _bytes({"overhead": 0, **device}, "overhead", "device"),
            _read_faults(_record(device, "faults", "device", {})),
            _flag(device, "costs_are_calm", "device"),
        ),
        tuple(_read_tier(body, position) for position in range(len(_list(body, "tiers")))),
    )


def _read_faults(faults: Json) -> Faults:
    _refuse_unknown(faults, Faults, "device.faults")
    return Faults(**{name: _number(faults, name, "device.faults") for name in faults})


def _refuse_unknown(body: Json, kind: type[Faults | Rate], where: str) -> None:
    known = [field.name for field in dataclasses.fields(kind)]
    for name in body:
        if name not in known:
            raise TraceError(
                f"{where} has an unknown field {name!r}{nearest(name, known)}; it takes "
                f"{', '.join(known)}"
            )


def _read_rate(costs: Json, ops: str) -> Rate:
    where = f"device.costs.{ops}"
    rate = _record(costs, ops, "device.costs")
    _refuse_unknown(rate, Rate, where)
    rates = {name: _number(rate, name, where) for name in rate if name != "seen"}
    return Rate(**rates, seen=_read_seen(rate.get("seen", []), where))


def _read_seen(seen: Any, where: str) -> tuple[Sample, ...]:
    found = []
    for one in seen if isinstance(seen, list) else [seen]:
        if not isinstance(one, list) or len(one) != len(Sample._fields):
            raise TraceError(
                f"{where}.seen must be a list of [{', '.join(Sample._fields)}], not {_shown(one)}"
            )
        size = dict(zip(Sample._fields, one, strict=True))
        found.append(Sample(*(_number(size, name, f"{where}.seen") for name in size)))
    return tuple(found)


def _read_tier(body: Json, position: int) -> Tier:
    where = f"tiers[{position}]"
    tier = body["tiers"][position]
    if not isinstance(tier, dict):
        raise TraceError(f"{where} must be an object, not {_shown(tier)}")
    drag = _number(tier, "drag", where, 0.0)
    if drag >= 1:
        raise TraceError(f"{where}.drag must be below 1, not {drag:g}: it is a share")
    return Tier(
        _text(tier, "name", where),
        _bytes(tier, "capacity", where),
        _read_link(tier, "write", where),
        _read_link(tier, "read", where),
        drag,
        None if tier.get("direct") is None else _read_direct(tier, where),
    )


def _read_direct(tier: Json, where: str) -> Direct:
    rates, where = _record(tier, "direct", where), f"{where}.direct"
    read, write = (_number(rates, name, where) for name in ("read", "write"))
    if not read or not write:
        raise TraceError(f"{where}.read and write must be more than 0 bytes per second")
    return Direct(read, write)


def _read_link(tier: Json, name: str, where: str) -> Link:
    link, where = _record(tier, name, where), f"{where}.{name}"
    bandwidth = _number(link, "bandwidth", where)
    if not bandwidth:
        raise TraceError(f"{where}.bandwidth must be more than 0 bytes per second")
    return Link(bandwidth, _number(link, "latency", where, 0.0))


# People write machine files by hand, so what is wrong is said with the path of the field.


def _record(body: Json, name: str, where: str = "", default: Json | None = None) -> Json:
    found = _field(body, name, where, default)
    if not isinstance(found, dict):
        raise TraceError(f"{_path(where, name)} must be an object, not {_shown(found)}")
    return found


def _list(body: Json, name: str) -> list[Any]:
    found = body.get(name, [])
    if not isinstance(found, list):
        raise TraceError(f"{name} must be a list, not {_shown(found)}")
    return found


def _text(body: Json, name: str, where: str) -> str:
    found = _field(body, name, where)
    if not isinstance(found, str) or not found:
        raise TraceError(f"{_path(where, name)} must be a text, not {_shown(found)}")
    return found


def _number(body: Json, name: str, where: str, default: float | None = None) -> float:
    """A number of 0 or more."""
    found = _field(body, name, where, default)
    if not isinstance(found, int | float) or isinstance(found, bool):
        raise TraceError(f"{_path(where, name)} must be a number, not {_shown(found)}")
    if not 0 <= found <= sys.float_info.max:
        raise TraceError(f"{_path(where, name)} must be 0 or more, and finite, not {_shown(found)}")
    return float(found)


def _bytes(body: Json, name: str, where: str) -> int:
    found = _number(body, name, where)
    if found != int(found) or found >= 2**63:
        raise TraceError(
            f"{_path(where, name)} must be a whole number of bytes, not {_shown(body[name])}"
        )
    return int(body[name])


def _flag(body: Json, name: str, where: str) -> bool:
    """A field that may be left out, which says no."""
    found = _field(body, name, where, False)
    if not isinstance(found, bool):
        raise TraceError(f"{_path(where, name)} must be true or false, not {_shown(found)}")
    return found


def _field(body: Json, name: str, where: str, default: Any = None) -> Any:
    found = body.get(name, default)
    if found is None:
        raise TraceError(f"there is no field {_path(where, name)}")
    return found


def _path(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _shown(found: Any) -> str:
    text = json.dumps(found)
    return text if len(text) <= 40 else f"{text[:37]}..."


# -- plan ---------------------------------------------------------------------------------------


def _write_plan(plan: Plan) -> Json:
    return {
        **_head("plan"),
        "policy": plan.policy,
        "cut_short": plan.cut_short,
        "decisions": [_decision(d) for d in plan.decisions],
    }


def _decision(decision: Decision) -> Json:
    if isinstance(decision, Place):
        return {
            "do": "place",
            "value": decision.value,
            "tier": decision.tier,
            "evict_at": decision.evict_at,
            "prefetch_at": decision.prefetch_at,
        }
    gap = decision.gap
    where = {"value": gap.value, "start": gap.start, "stop": gap.stop}
    match decision:
        case Swap():
            return {
                "do": "swap",
                **where,
                "tier": decision.tier,
                "evict_at": decision.evict_at,
                "prefetch_at": decision.prefetch_at,
                "fence": decision.fence,
            }
        case Recompute():
            return {"do": "recompute", **where, "remake_at": decision.remake_at}


def _read_plan(body: Json) -> Plan:
    decisions = tuple(_read_decision(row) for row in body["decisions"])
    return Plan(decisions, body.get("policy", ""), body.get("cut_short", False) is True)


def _read_decision(row: Json) -> Decision:
    value = ValueId(int(row["value"]))
    if row["do"] == "place":
        out, back = _index(row.get("evict_at")), _index(row.get("prefetch_at"))
        return Place(value, str(row["tier"]), out, back)
    gap = Gap(value, OpIndex(int(row["start"])), _index(row["stop"]))
    match row["do"]:
        case "swap":
            return Swap(
                gap,
                str(row["tier"]),
                OpIndex(int(row["evict_at"])),
                _index(row["prefetch_at"]),
                _index(row.get("fence")),
            )
        case "recompute":
            return Recompute(gap, OpIndex(int(row["remake_at"])))
        case other:
            raise TraceError(
                f"a decision says {other!r}; known are 'swap', 'recompute' and 'place'"
            )


def _index(number: int | None) -> OpIndex | None:
    return None if number is None else OpIndex(int(number))


# -- timeline -----------------------------------------------------------------------------------

_ARRAYS = {
    "span_lane": np.int16,
    "span_start": np.float64,
    "span_end": np.float64,
    "span_ref": np.int32,
    "span_again": np.bool_,
    "times": np.float64,
    "resident": np.int64,
}


def _write_timeline(timeline: Timeline) -> Json:
    return {
        **_head("timeline"),
        "seconds": timeline.seconds,
        "lanes": timeline.lanes,
        "kinds": timeline.kinds,
        "stalls": timeline.stalls,
        "traffic": timeline.traffic,
        "overhead_bytes": timeline.overhead_bytes,
        **{name: getattr(timeline, name).tolist() for name in _ARRAYS},
    }


def _read_timeline(body: Json) -> Timeline:
    arrays: dict[str, Any] = {name: np.array(body[name], dtype) for name, dtype in _ARRAYS.items()}
    return Timeline(
        seconds=float(body["seconds"]),
        lanes=tuple(body["lanes"]),
        kinds=tuple(body["kinds"]),
        stalls={Cause(cause): float(s) for cause, s in body["stalls"].items()},
        traffic={lane: int(n) for lane, n in body["traffic"].items()},
        overhead_bytes=int(body["overhead_bytes"]),
        **arrays,
    )


_READERS: dict[str, Callable[[Json], Document]] = {
    "trace": _read_trace,
    "machine": _read_machine,
    "plan": _read_plan,
    "timeline": _read_timeline,
}


def _read(body: Json) -> Document:
    return _READERS[body["penstock"]](body)
