"""What an importer returns."""

from dataclasses import dataclass
from typing import Any, TypeAlias

from penstock.ir.trace import Trace

__all__ = ["Imported", "Json"]

Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Imported:
    """A trace, and in words what its source does not say and what was assumed instead."""

    trace: Trace
    notes: tuple[str, ...]
