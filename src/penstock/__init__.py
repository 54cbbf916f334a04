"""Penstock: any PyTorch training step inside the memory budget you name.

    import penstock

    with penstock.fit(budget="1.5GiB"):
        for batch in loader:
            ...

Import it before torch allocates anything large: it asks torch for huge pages, which means fewer
page faults, and page-aligned memory, which the disk tier moves without a copy. Your own setting of
`THP_MEM_ALLOC_ENABLE` wins. And it asks the C library to let all threads share one heap, before any of
them has another: what is freed in several cannot be given back.
"""

import ctypes
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
with suppress(OSError, AttributeError, TypeError):  # glibc only
    ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX

if TYPE_CHECKING:
    from penstock.api import calibrate, fit
    from penstock.errors import BudgetError, PenstockError, TierError, UsageError
    from penstock.session import Session, StepReport

__all__ = [
    "BudgetError",
    "PenstockError",
    "Session",
    "StepReport",
    "TierError",
    "UsageError",
    "calibrate",
    "fit",
]

_HOME = {"Session": "session", "StepReport": "session", "calibrate": "api", "fit": "api"}


def __getattr__(name: str) -> Any:
    # Planning needs no torch, and importing torch takes seconds.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
