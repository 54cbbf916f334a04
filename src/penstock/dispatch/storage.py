"""Storages: their identity, their death, and how their bytes leave and come back.

A tensor is a view of a storage; a storage owns the bytes. To move a value is to move the bytes of
its storage: every alias (views, what autograd saved, a user's closure) follows, because all of them
share the storage and none of them holds the bytes.

**Guarantees.** A storage whose bytes were taken keeps its size, version counter and aliases; only
its data pointer is null. Given its bytes back, it is as it was.

**Rejected.** Saved-tensor hooks as the only hands: they miss what lives in closures (the inputs of
a checkpointed region), hide PyTorch's own check of in-place changes, and clash with a user's own
hooks. An address as identity: it is reused as soon as its storage dies.
"""

import weakref
from collections.abc import Callable, Iterable, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import _disable_current_modes

__all__ = [
    "CAN_SWAP",
    "StorageRef",
    "address_of",
    "alias_of",
    "byte_view",
    "components_of",
    "components_on",
    "give_bytes",
    "has_bytes",
    "is_sparse",
    "key_of",
    "lies_on",
    "nbytes_of",
    "storage_of",
    "take_bytes",
]

storage_of: Callable[[Tensor], UntypedStorage] = torch._C.TensorBase.untyped_storage
"""`Tensor.untyped_storage`, past any override of it (see `dispatch.doors`)."""

address_of: Callable[[Tensor], int] = torch._C.TensorBase.data_ptr
"""`Tensor.data_ptr`, past any override of it."""

nbytes_of: Callable[[UntypedStorage], int] = torch._C.StorageBase.nbytes  # type: ignore[attr-defined]
"""`UntypedStorage.nbytes`, past any override of it."""

CAN_SWAP = hasattr(torch._C.StorageBase, "_swap_data_ptr_")
"""Can two storages exchange their bytes? Since torch 2.13; without it bytes move by a copy, and a
storage has no size while they are away."""


def key_of(storage: UntypedStorage) -> int:
    """The identity of a living storage. Worthless once it died: pair it with a `StorageRef`."""
    key: int = storage._cdata
    return key


def lies_on(tensor: Tensor | UntypedStorage, device: torch.device) -> bool:
    """Is it on `device`? Where one of the two has no index, all of their type count.

    A tensor on the CPU has none, even if it was made on `cpu:0`.
    """
    there = tensor.device
    if there.type != device.type:
        return False
    return there.index == device.index or there.index is None or device.index is None


def is_sparse(given: Any) -> bool:
    """Is it a tensor that has no storage of its own?"""
    return isinstance(given, Tensor) and given.layout is not torch.strided


def components_of(tensor: Tensor) -> Sequence[Tensor]:
    """The tensors whose storages hold its elements: itself, or the indices and values of a sparse one.

    Of layouts that show no components: none. No dispatch mode sees what is asked of torch for that.
    """
    if tensor.layout is torch.strided:
        return (tensor,)
    with _disable_current_modes():
        return [component(tensor) for component in _COMPONENTS.get(tensor.layout, ())]


def components_on(tensors: Iterable[Tensor], device: torch.device) -> list[Tensor]:
    """The components of tensors that lie on `device`, in order."""
    found: list[Tensor] = []
    for tensor in tensors:
        if lies_on(tensor, device):
            if tensor.layout is torch.strided:
                found.append(tensor)
            else:
                found.extend(components_of(tensor))
    return found


_OF_ROWS = (Tensor.crow_indices, Tensor.col_indices, Tensor.values)
_OF_COLUMNS = (Tensor.ccol_indices, Tensor.row_indices, Tensor.values)
_COMPONENTS: MappingProxyType[torch.layout, tuple[Callable[[Tensor], Tensor], ...]] = (
    MappingProxyType(
        {
            torch.sparse_coo: (Tensor._indices, Tensor._values),
            torch.sparse_csr: _OF_ROWS,
            torch.sparse_bsr: _OF_ROWS,
            torch.sparse_csc: _OF_COLUMNS,
            torch.sparse_bsc: _OF_COLUMNS,
        }
    )
)


class StorageRef(weakref.ref[UntypedStorage]):
    """A weak reference that knows its storage's key, and calls back when the storage dies."""

    __slots__ = ("key",)

    def __new__(
        cls, storage: UntypedStorage, died: Callable[["StorageRef"], Any] | None = None
    ) -> "StorageRef":
        self = super().__new__(cls, storage, died)
        self.key = key_of(storage)
        return self

    def __init__(
        self, storage: UntypedStorage, died: Callable[["StorageRef"], Any] | None = None
    ) -> None:
        super().__init__(storage, died)  # type: ignore[call-arg]

    key: int


def take_bytes(storage: UntypedStorage) -> UntypedStorage:
    """Move the bytes of `storage` into a new storage and return that; `storage` keeps its size.

    Needs `CAN_SWAP`.
    """
    nbytes, device = nbytes_of(storage), storage.device
    # Null pointer, full size: views of it can still be made, reads of it cannot pass unnoticed.
    holder: Any = torch._C._construct_storage_from_data_pointer(0, device, nbytes)
    storage._swap_data_ptr_(holder)  # type: ignore[attr-defined]
    return holder  # type: ignore[no-any-return]


def give_bytes(storage: UntypedStorage, holder: UntypedStorage) -> None:
    """The reverse of `take_bytes`: `storage` gets the bytes of `holder`, which is spent."""
    if CAN_SWAP:
        storage._swap_data_ptr_(holder)  # type: ignore[attr-defined]
        return
    if storage is not holder:
        storage.resize_(nbytes_of(holder))
        storage.copy_(holder)
        holder.resize_(0)


def has_bytes(storage: UntypedStorage) -> bool:
    """Are the bytes of `storage` in it? False after `take_bytes`."""
    try:
        return storage.data_ptr() != 0
    except RuntimeError:  # torch will not hand out a null pointer
        return False


def alias_of(storage: UntypedStorage) -> UntypedStorage:
    """The bytes of `storage`, not owned: they must outlive it, wherever they are exchanged to."""
    found: Any = torch._C._construct_storage_from_data_pointer(
        storage.data_ptr(), storage.device, nbytes_of(storage)
    )
    return found  # type: ignore[no-any-return]


def byte_view(storage: UntypedStorage) -> Tensor:
    """The bytes of `storage` as a tensor that shares them."""
    empty = torch.empty(0, dtype=torch.uint8, device=storage.device)
    return torch._C.TensorBase.set_(empty, storage)
