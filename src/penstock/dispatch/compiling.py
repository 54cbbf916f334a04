"""`torch.compile` while a step is recorded or runs: set aside, as torch itself does under a dispatch mode.

Compiled code reads and writes addresses that the op clock does not see. Torch therefore compiles no
region below a mode; but it would compile what the mode's handler calls, which is this library.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from warnings import warn

import torch

__all__ = ["uncompiled"]

_SAID = (
    "torch.compile is set aside where Penstock records or runs a step: what is to be compiled runs "
    "op by op, with the bits of that"
)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Have all regions run op by op, and warn whoever compiles or has compiled one."""
    if _has_compiled():
        warn(_SAID, stacklevel=1)
    original: Any = torch.compile

    def set_aside(*args: Any, **kwargs: Any) -> Any:
        warn(_SAID, stacklevel=2)
        return original(*args, **kwargs)

    with torch.compiler.set_stance("force_eager"):
        torch.compile = set_aside
        try:
            yield
        finally:
            torch.compile = original


def _has_compiled() -> bool:
    """Was `torch.compile` called in this process?"""
    backends = getattr(torch._dynamo.eval_frame, "cached_backends", {})
    return any(backend is not None for backend in backends.values())
