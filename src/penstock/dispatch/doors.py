"""The doors through which Python reaches a tensor's bytes without an op: `numpy()`, `data_ptr()` ...

The op clock cannot see them, so while a session runs they are watched: whoever goes through one
finds the bytes there. Custom autograd functions are watched where they unpack what they saved,
since their code may hand the bytes to anything.
"""

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

__all__ = ["Doors"]

_DOORS = (
    "numpy",
    "tolist",
    "data_ptr",
    "const_data_ptr",
    "__dlpack__",
    "untyped_storage",
    "share_memory_",
)


class Doors:
    """Watches the doors between `open` and `close`.

    `knocked(tensor, door)` is called before the bytes are reached. Doors nest: each pair of `open`
    and `close` undoes only what it did.
    """

    def __init__(self, knocked: Callable[[Tensor, str], None]) -> None:
        self._knocked = knocked
        self._undo: list[Callable[[], None]] = []

    def open(self) -> None:
        for name in _DOORS:
            self._replace(Tensor, name, self._watched(name, getattr(Tensor, name)))
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

    def _watched(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        knocked = self._knocked

        @functools.wraps(method)
        def watched(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            knocked(tensor, name)
            return method(tensor, *args, **kwargs)

        return watched

    def _replace(self, owner: type, name: str, new: object) -> None:
        if name in vars(owner):
            old = vars(owner)[name]
            self._undo.append(lambda: setattr(owner, name, old))
        else:
            self._undo.append(lambda: delattr(owner, name))
        setattr(owner, name, new)
