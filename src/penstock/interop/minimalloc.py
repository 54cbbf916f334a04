"""Buffers to be packed, as google/minimalloc's benchmarks write them: one line a buffer.

The columns are id, lower (the first time step), upper (the first after it) and size; the capacity is
the number in the file's name: `A.1048576.csv`.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import TraceError
from penstock.solve.offsets import Buffer

__all__ = ["Instance", "read_minimalloc"]

_COLUMNS = ("id", "lower", "upper", "size")


@dataclass(frozen=True, slots=True)
class Instance:
    """Buffers that shall all end at or below `capacity`."""

    name: str
    capacity: int
    ids: tuple[str, ...]
    buffers: tuple[Buffer, ...]


def read_minimalloc(path: Path) -> Instance:
    """One instance. Raises `TraceError` with the file, the line and what is wrong there."""
    name, _, capacity = path.name.removesuffix(".csv").rpartition(".")
    if not (name and capacity.isdecimal()):
        raise TraceError(
            f"{path}: its name does not tell the capacity; call it NAME.BYTES.csv, as in A.1048576.csv"
        )
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path} is no text of comma-separated values: {error}") from None
    if not lines or tuple(lines[0]) != _COLUMNS:
        raise TraceError(f"{path}, line 1: the columns must be {','.join(_COLUMNS)}")
    rows = [(f"{path}, line {n}", line) for n, line in enumerate(lines[1:], 2) if line]
    return Instance(
        name,
        int(capacity),
        tuple(line[0] for _, line in rows),
        tuple(_buffer(where, line) for where, line in rows),
    )


def _buffer(where: str, line: list[str]) -> Buffer:
    if len(line) != len(_COLUMNS):
        raise TraceError(f"{where}: {len(line)} values, not {len(_COLUMNS)}")
    try:
        buffer = Buffer(*map(int, line[1:]))
    except ValueError:
        raise TraceError(f"{where}: lower, upper and size must be whole numbers") from None
    if buffer.start < 0 or buffer.stop <= buffer.start or buffer.nbytes < 0:
        raise TraceError(
            f"{where}: buffer {line[0]} cannot be: {buffer.nbytes} bytes from {buffer.start} "
            f"to {buffer.stop}"
        )
    return buffer
