"""Which module a call belongs to, in forward and in backward, and what its tensors are called."""

from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from penstock.dispatch.storage import StorageRef, components_of, key_of, storage_of
from penstock.ir.trace import Kind

__all__ = ["ModulePaths"]

_next_sequence_number = torch._C._autograd._get_sequence_nr
_current_node = torch._C._current_autograd_node


class ModulePaths:
    """Follows the forward calls of all modules while `open`.

    A backward op belongs to the module whose forward made its autograd node: each node carries the
    sequence number that was next when its forward op ran.
    """

    def __init__(self) -> None:
        self._named: dict[int, tuple[StorageRef, str, Kind]] = {}  # by storage key
        self._paths: dict[int, str] = {}  # id(module) -> path
        self._known: list[nn.Module] = []  # keeps the ids above from being reused
        self._stack: list[str] = []
        self._made_in: dict[int, str] = {}  # sequence number of a node -> path
        self._hooks: list[RemovableHandle] = []

    def open(self) -> None:
        """Watch which module runs. Idempotent, like `close`."""
        self._hooks = self._hooks or [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        ]

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._stack.clear()
        self._made_in.clear()

    def forget_nodes(self) -> None:
        """A step has ended: the autograd nodes seen so far are gone."""
        self._made_in.clear()

    def current(self, *, backward: bool) -> str:
        """The path of the module that the call now running belongs to; empty if none."""
        if self._stack:
            path = self._stack[-1]
            if not backward:
                # Only the first op to see a number made the node; later ones may make none.
                self._made_in.setdefault(_next_sequence_number() - 1, path)
            return path
        if backward and (node := _current_node()) is not None:
            return self._made_in.get(node._sequence_nr(), "")
        return ""

    def name_of(self, storage: UntypedStorage) -> tuple[str, Kind] | None:
        """What a module calls this storage, and whether as parameter or as buffer."""
        ref, name, kind = self._named.get(key_of(storage), (None, "", Kind.BUFFER))
        return (name, kind) if ref is not None and ref() is storage else None

    def _enter(self, module: nn.Module, _inputs: Any) -> None:
        if id(module) not in self._paths:
            self._learn(module)
        self._stack.append(self._paths[id(module)])

    def _leave(self, _module: nn.Module, _inputs: Any, _output: Any) -> None:
        if self._stack:
            self._stack.pop()

    def _learn(self, root: nn.Module) -> None:
        """Name a module first met, and all below it, after the outermost one."""
        prefix = "" if not self._stack else f"{self._stack[-1]}."
        for path, module in root.named_modules(prefix=prefix.rstrip(".")):
            self._paths.setdefault(id(module), path or type(root).__name__)
            self._known.append(module)
        for name, tensor in root.named_parameters():
            self._name(tensor, prefix + name, Kind.PARAMETER)
        for name, buffer in root.named_buffers():
            self._name(buffer, prefix + name, Kind.BUFFER)

    def _name(self, tensor: Tensor, name: str, kind: Kind) -> None:
        for component in components_of(tensor):
            try:
                ref = StorageRef(storage_of(component))
            except NotImplementedError:  # what stands for a tensor inside `torch.func`
                continue
            self._named[ref.key] = ref, name, kind
