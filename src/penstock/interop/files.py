"""Files of other tools, told apart by what is in them."""

import gzip
import json
from pathlib import Path

from penstock.errors import TraceError
from penstock.interop.execution import is_execution_trace, read_execution
from penstock.interop.g10 import KERNELS, TENSORS, read_graph
from penstock.interop.imported import Imported, Json
from penstock.interop.pipedream import is_profile, read_profile
from penstock.interop.poet import is_poet, read_poet
from penstock.interop.snapshot import load_pickle, read_snapshot

__all__ = ["read"]

_GZIP = b"\x1f\x8b"
_PICKLE = b"\x80"


def read(path: Path, times: Path | None = None) -> Imported:
    """Read a CUDA memory snapshot, an execution trace, or the graphs of G10, PipeDream and POET.

    `times`: for an execution trace, the profiler's Chrome trace of the same run. Raises `TraceError`
    with the path and the reason.
    """
    content = _content(path)
    if content.startswith(KERNELS.encode()):
        if times is not None:
            raise TraceError(f"{path}: a G10 graph has times of its own; leave {times} out")
        return read_graph(path)
    try:
        if content.startswith(_PICKLE):
            return _snapshot(content, times)
        if content.startswith(TENSORS.encode()):
            raise TraceError("the tensors of a G10 graph; give the file of its kernels, beside it")
        if is_profile(text := content.decode(errors="replace")):
            _no_times(times, "a PipeDream profile")
            return read_profile(text)
        body = _json(content)
        if is_poet(body):
            _no_times(times, "a POET graph")
            return read_poet(body)
        if not is_execution_trace(body):
            raise TraceError(_unknown(body))
        kineto = None if times is None else _chrome(times)
        return read_execution(body, kineto)
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from None
    except (LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
        what = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise TraceError(
            f"{path} is damaged, or written by a tool we do not know: {what}"
        ) from None


def _snapshot(content: bytes, times: Path | None) -> Imported:
    body = load_pickle(content)
    if not isinstance(body, dict) or not {"segments", "device_traces"} <= body.keys():
        raise TraceError("a pickle, but no memory snapshot: it lacks segments and device_traces")
    _no_times(times, "a memory snapshot")
    return read_snapshot(body)


def _no_times(times: Path | None, what: str) -> None:
    if times is not None:
        raise TraceError(f"{what} has times of its own; leave {times} out")


def _unknown(body: Json) -> str:
    if "traceEvents" in body:
        return (
            "a Chrome trace holds times but no tensors; import the execution trace of the run "
            "and give this file as its --times"
        )
    if "penstock" in body:
        return f"a Penstock {body['penstock']} already; it needs no import"
    return (
        "neither a CUDA memory snapshot (a pickle) nor an execution trace (JSON with schema and "
        "nodes). Chakra's binary form is not read: give what chakra_trace_link writes"
    )


def _chrome(path: Path) -> Json:
    try:
        body = _json(_content(path))
    except TraceError as error:
        raise TraceError(f"its times, {path}: {error}") from None
    if not isinstance(body.get("traceEvents"), list):
        raise TraceError(f"its times, {path}: no Chrome trace, for there is no list traceEvents")
    return body


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(_GZIP) else content
    except (OSError, EOFError) as error:
        raise TraceError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or error}"
        ) from None


def _json(content: bytes) -> Json:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise TraceError("neither JSON nor a pickle, or damaged") from None
    if not isinstance(body, dict):
        raise TraceError(f"it holds a JSON {type(body).__name__}, not an object")
    return body
