"""Storages: who they are, when they die, and how their bytes move."""

import gc
from typing import Any

import pytest
import torch
from torch import UntypedStorage
from torch._ops import OpOverload

from penstock.dispatch.clock import Clock
from penstock.dispatch.storage import (
    CAN_SWAP,
    StorageRef,
    byte_view,
    components_of,
    give_bytes,
    has_bytes,
    key_of,
    storage_of,
    take_bytes,
)
from runs import DEVICES

swaps = pytest.mark.skipif(not CAN_SWAP, reason="this torch cannot exchange bytes")
on_devices = pytest.mark.parametrize("device", DEVICES)


def test_views_share_a_key_and_others_do_not() -> None:
    a, b = torch.randn(10), torch.randn(10)
    assert {key_of(storage_of(view)) for view in (a, a[3:], a.detach(), a.view(2, 5).t())} == {
        key_of(storage_of(a))
    }
    assert key_of(storage_of(a)) != key_of(storage_of(b))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize(
    ("layout", "components"),
    [
        (torch.strided, 1),
        (torch.sparse_coo, 2),
        (torch.sparse_csr, 3),
        (torch.sparse_csc, 3),
        (torch._mkldnn, 0),
    ],
)
def test_the_elements_of_a_sparse_tensor_lie_in_its_components(
    layout: torch.layout, components: int
) -> None:
    dense = torch.eye(8)
    given = {torch.strided: lambda: dense, torch._mkldnn: dense.to_mkldnn}.get(
        layout, lambda: dense.to_sparse(layout=layout)
    )()
    calls: list[str] = []

    def seen(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        calls.append(func.name())
        return func(*args, **kwargs)

    with Clock(seen):
        found = components_of(given)
    assert len(found) == components and not calls
    assert all(one.layout is torch.strided for one in found)


def test_a_reference_tells_once_when_the_last_view_dies() -> None:
    died: list[int] = []
    a = torch.randn(10)
    view = a[2:4]
    ref = StorageRef(storage_of(a), lambda ref: died.append(ref.key))
    key = key_of(storage_of(a))
    assert ref.key == key
    del a
    gc.collect()
    assert not died
    assert ref() is storage_of(view)
    del view
    gc.collect()
    assert died == [key]
    assert ref() is None


def test_a_reference_notices_the_death_of_what_autograd_saved() -> None:
    died: list[int] = []
    w = torch.randn(10, requires_grad=True)
    h = w.exp()  # saved by exp itself
    ref = StorageRef(storage_of(h), lambda ref: died.append(ref.key))
    loss = h.sum()
    del h
    gc.collect()
    assert not died
    assert ref() is not None
    loss.backward()
    assert died == [ref.key]


@swaps
@on_devices
def test_bytes_move_without_a_copy(device: str) -> None:
    a = torch.randn(100, device=device)
    bits, pointer, version = a.clone(), a.data_ptr(), a._version
    storage = storage_of(a)
    holder = take_bytes(storage)
    assert holder.data_ptr() == pointer
    assert holder.nbytes() == storage.nbytes() == 400
    assert not has_bytes(storage)
    give_bytes(storage, holder)
    assert a.data_ptr() == pointer
    assert a._version == version
    assert torch.equal(a, bits)


@swaps
@on_devices
def test_a_storage_without_bytes_still_has_views(device: str) -> None:
    a = torch.arange(100, device=device)
    holder = take_bytes(storage_of(a))
    view = a.view(10, 10).t()[3]
    assert view.shape == (10,)
    give_bytes(storage_of(a), holder)
    assert view.tolist() == list(range(3, 100, 10))


@on_devices
def test_without_an_exchange_bytes_are_copied(device: str, monkeypatch) -> None:
    monkeypatch.setattr("penstock.dispatch.storage.CAN_SWAP", False)
    a = torch.randn(100, device=device)
    bits, version = a.clone(), a._version
    holder = storage_of(a).clone()
    storage_of(a).resize_(0)
    assert not has_bytes(storage_of(a))
    give_bytes(storage_of(a), holder)
    assert torch.equal(a, bits)
    assert a._version == version
    assert holder.nbytes() == 0  # spent


@on_devices
def test_a_byte_view_shares_the_bytes_of_any_dtype(device: str) -> None:
    a = torch.zeros(3, dtype=torch.int16, device=device)
    byte_view(storage_of(a))[0] = 7
    assert a.tolist() == [7, 0, 0]
    assert byte_view(UntypedStorage(5, device=device)).shape == (5,)
