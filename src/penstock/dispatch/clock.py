"""The op clock: one dispatch mode that shows every ATen call to whoever listens."""

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Clock", "Handler", "in_backward", "is_plain"]

Handler = Callable[[OpOverload, tuple[Any, ...], dict[str, Any]], Any]
"""Runs one call and returns its result."""

in_backward: Callable[[], int] = torch._C._current_graph_task_id
"""-1 outside a backward pass."""

_PLAIN = torch._C._disabled_torch_dispatch_impl


def is_plain(types: Sequence[type]) -> bool:
    """Are these ordinary tensors, which no class of their own dispatches?"""
    return all(getattr(one, "__torch_dispatch__", _PLAIN) is _PLAIN for one in types)


class Clock(TorchDispatchMode):
    """Hands every call on plain tensors to `handler`.

    Tensor subclasses with a dispatch of their own (DTensor, quantised weights, fake tensors) unwrap
    themselves first; the calls that they make on plain tensors come here then. The mode is of the
    thread that entered it; autograd carries it into its backward threads. Of the `transparent`
    classes it sees the calls as they are made.
    """

    def __init__(self, handler: Handler, transparent: tuple[type, ...] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.handler = handler
        self._transparent = frozenset(transparent)

    def shorten(self, shortcut: Callable[..., Any] | None) -> None:
        """Have torch call `shortcut(clock, func, types, args, kwargs)` itself: a frame less for each op.

        What it does not want to run, it hands to `Clock.__torch_dispatch__`. None ends it.
        """
        if shortcut is None:
            self.__dict__.pop("__torch_dispatch__", None)
        else:  # torch insists on a method of this very mode
            self.__dict__["__torch_dispatch__"] = MethodType(shortcut, self)

    @classmethod
    def is_infra_mode(cls) -> bool:
        return False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else torch wraps each call so that its compiler keeps out: 2 microseconds an op.
        return False

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if types and not is_plain([one for one in types if one not in self._transparent]):
            return NotImplemented
        return self.handler(func, args, kwargs or {})
