"""The doors through which Python reaches a tensor's bytes without an op: `numpy()`, `data_ptr()` ...

The op clock cannot see them, so while a session runs they are watched: whoever goes through one
finds the bytes there. `print` is one: torch formats tensors with all modes off. Custom autograd
functions are watched where they unpack what they saved, since their code may hand the bytes to
anything. A thread started while the doors are open runs what `within` makes of it, since a clock is
of the thread that entered it.
"""

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.utils.dlpack
from torch import Tensor, TypedStorage, UntypedStorage
from torch.autograd.function import BackwardCFunction

from penstock.dispatch.storage import CAN_SWAP

__all__ = ["Doors"]

_DOORS = tuple(
    name
    for name in (
        "numpy",
        "tolist",
        "data_ptr",
        "const_data_ptr",  # since torch 2.13
        "__dlpack__",
        "untyped_storage",
        "share_memory_",
        "__repr__",
        "apply_",
        "map_",
        "map2_",
    )
    if hasattr(Tensor, name)
)
_STORAGE_DOORS = ("__getitem__", "tolist", "clone", "cpu")
_SIZES = (Tensor, "set_"), (UntypedStorage, "nbytes"), (UntypedStorage, "__len__")
"""These show the size of a storage, which goes with its bytes where those move by a copy."""


class Doors:
    """Watches the doors between `open` and `close`.

    `knocked(tensor or storage, door)` is called before the bytes are reached; `within(run)` gives
    what a new thread is to run instead of `run`. Doors nest: each pair of `open` and `close` undoes
    only what it did.
    """

    def __init__(
        self,
        knocked: Callable[[Tensor | UntypedStorage, str], None],
        within: Callable[[Callable[[], None]], Callable[[], None]] = lambda run: run,
    ) -> None:
        self._knocked, self._within = knocked, within
        self._undo: list[Callable[[], None]] = []

    def open(self) -> None:
        for name in _DOORS:
            self._replace(Tensor, name, self._watched(name, getattr(Tensor, name)))
        for name in _STORAGE_DOORS:
            self._replace(UntypedStorage, name, self._watched(name, getattr(UntypedStorage, name)))
        for owner, name in () if CAN_SWAP else _SIZES:
            self._replace(owner, name, self._watched(name, getattr(owner, name)))
        typed = self._watched(
            "__getitem__", TypedStorage.__getitem__, lambda storage: storage._untyped_storage
        )
        self._replace(TypedStorage, "__getitem__", typed)
        for module in (torch, torch.utils.dlpack):
            self._replace(module, "to_dlpack", self._watched("__dlpack__", module.to_dlpack))
        self._replace(threading.Thread, "start", self._starting(threading.Thread.start))
        unpack: Any = BackwardCFunction.saved_tensors

        def saved_tensors(function: Any) -> tuple[Tensor | None, ...]:
            found: tuple[Tensor | None, ...] = unpack.__get__(function)
            for tensor in found:
                if isinstance(tensor, Tensor):
                    self._knocked(tensor, "saved_tensors")
            return found

        self._replace(BackwardCFunction, "saved_tensors", property(saved_tensors))

    def close(self) -> None:
        while self._undo:
            self._undo.pop()()

    def _watched(
        self,
        name: str,
        method: Callable[..., Any],
        holder: Callable[[Any], Tensor | UntypedStorage] = lambda reached: reached,
    ) -> Callable[..., Any]:
        """`method` behind a knock on the `holder` of the bytes that its first argument shows."""
        knocked = self._knocked

        @functools.wraps(method)
        def watched(reached: Any, *args: Any, **kwargs: Any) -> Any:
            knocked(holder(reached), name)
            for other in args:  # of `map_` and `set_`
                if isinstance(other, (Tensor, UntypedStorage)):
                    knocked(other, name)
                elif isinstance(other, TypedStorage):
                    knocked(other._untyped_storage, name)
            return method(reached, *args, **kwargs)

        return watched

    def _starting(self, method: Callable[..., None]) -> Callable[..., None]:
        def start(thread: threading.Thread) -> None:
            thread.run = self._within(thread.run)  # type: ignore[method-assign]
            method(thread)

        return start

    def _replace(self, owner: Any, name: str, new: object) -> None:
        if name in vars(owner):
            old = vars(owner)[name]
            self._undo.append(lambda: setattr(owner, name, old))
        else:
            self._undo.append(lambda: delattr(owner, name))
        setattr(owner, name, new)
