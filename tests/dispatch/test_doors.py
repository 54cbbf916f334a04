"""Every door to a tensor's bytes: who goes through one finds them, wherever they were."""

import copy
import ctypes
import io
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, UntypedStorage
from torch.autograd.function import BackwardCFunction

from penstock.api import fit
from penstock.dispatch.doors import Doors
from penstock.dispatch.storage import has_bytes, storage_of
from penstock.session import Session

NUMEL = 50_000


def address(tensor: Tensor) -> list[float]:
    """What C code finds at the tensor's address."""
    found = (ctypes.c_float * tensor.numel()).from_address(tensor.data_ptr())
    return list(found)


def saved(tensor: Tensor) -> object:
    file = io.BytesIO()
    torch.save(tensor, file)
    file.seek(0)
    return torch.load(file)


def in_thread(reach: Callable[[], object]) -> object:
    """What `reach` gives in a thread of its own, as an asynchronous checkpoint would call it."""
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(reach()))
    thread.start()
    thread.join()
    return found[0]


DOORS: dict[str, Callable[[Tensor], object]] = {
    "numpy": lambda t: t.numpy(),
    "numpy, forced": lambda t: t.numpy(force=True),
    "np.asarray": np.asarray,
    "np.from_dlpack": np.from_dlpack,
    "torch.from_dlpack": torch.from_dlpack,
    "tolist": lambda t: t.tolist(),
    "item": lambda t: [t[i].item() for i in range(t.numel())],
    "iter": lambda t: [float(one) for one in t],
    "data_ptr": address,
    "untyped_storage": lambda t: torch.empty(0).set_(t.untyped_storage()),
    "storage": lambda t: list(t.storage()),
    "copy.deepcopy": copy.deepcopy,
    "pickle": lambda t: pickle.loads(pickle.dumps(t)),
    "torch.save": saved,
    "share_memory_": lambda t: t.share_memory_(),
    "clone": torch.clone,
    "to_dlpack": lambda t: torch.from_dlpack(torch.utils.dlpack.to_dlpack(t)),
    "apply_": lambda t: t.apply_(lambda one: one),
    "map_": lambda t: t.map_(t, lambda one, _: one),
    "map_, other": lambda t: torch.zeros(t.numel()).map_(t, lambda _, other: other),
    "map2_": lambda t: t.map2_(t, t, lambda one, _, __: one),
    "repr": lambda t: eval(repr(t), {"tensor": torch.tensor}),
    "format": lambda t: eval(f"{t}", {"tensor": torch.tensor}),
    "an op in a thread": lambda t: in_thread(t.clone),
    "numpy in a thread": lambda t: in_thread(t.numpy),
}


SLOW = {"item", "iter", "storage", "repr", "format", "apply_", "map_", "map_, other", "map2_"}
"""What calls Python for each element, or shows only a few of many."""

KEPT: dict[str, Callable[[UntypedStorage], object]] = {
    "getitem": lambda s: [s[n] for n in range(s.nbytes())],
    "tolist": lambda s: s.tolist(),
    "clone": lambda s: s.clone().tolist(),
    "cpu": lambda s: s.cpu().tolist(),
    "tensor": lambda s: torch.empty(0, dtype=torch.uint8).set_(s).tolist(),
}


@pytest.fixture
def session(tmp_path: Path, exchange: str) -> Iterator[Session]:
    with fit("1GiB", device="cpu", tier=f"disk:{tmp_path}") as running:
        yield running


def evict(session: Session, tensor: Tensor) -> None:
    manager = session.engine.manager
    manager.settle(manager.evict(manager.meet(storage_of(tensor)), "disk"))
    assert not has_bytes(storage_of(tensor))


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_an_evicted_tensor_shows_its_bytes_at_every_door(session: Session, door: str) -> None:
    a = torch.randint(0, 1000, (50 if door in SLOW else NUMEL,)).float()  # shown in full
    bits = a.clone()
    evict(session, a)
    found = DOORS[door](a)
    assert torch.equal(torch.as_tensor(found), bits)
    assert torch.equal(a, bits)


@pytest.mark.parametrize("reach", KEPT)
def test_a_storage_that_was_kept_shows_the_bytes(session: Session, reach: str) -> None:
    a = torch.arange(100, dtype=torch.uint8)
    storage = a.untyped_storage()
    evict(session, a)
    assert KEPT[reach](storage) == list(range(100))


def test_a_dropped_tensor_is_remade_at_a_door(session: Session) -> None:
    a = torch.randn(NUMEL)
    bits = a.clone()
    manager = session.engine.manager
    manager.drop(manager.meet(storage_of(a)), lambda: storage_of(bits.clone()))
    assert np.array_equal(a.numpy(), bits.numpy())


def test_what_gave_its_address_away_stays(session: Session) -> None:
    a = torch.randn(NUMEL)
    a.data_ptr()
    resident = session.engine.manager.meet(storage_of(a))
    assert not session.engine.manager.is_movable(resident, session.engine._tick + 1_000_000)


def test_what_a_custom_function_saved_is_there_when_it_unpacks(session: Session) -> None:
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            assert has_bytes(storage_of(x))  # whatever its code does with it
            return 3 * x * x * grad

    x = torch.randn(NUMEL, requires_grad=True)
    h = x * 2
    loss = Cube.apply(h).sum()
    evict(session, h)
    loss.backward()
    assert torch.equal(x.grad, 3 * (2 * x.detach()) * (2 * x.detach()) * 2)


# -- the watch itself -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["numpy", "tolist", "data_ptr", "__dlpack__", "untyped_storage"])
def test_each_door_tells_who_knocks_before_it_opens(name: str) -> None:
    knocks: list[tuple[int, str]] = []
    doors = Doors(lambda tensor, door: knocks.append((id(tensor), door)))
    a = torch.ones(3)
    doors.open()
    try:
        getattr(a, name)()
    finally:
        doors.close()
    assert knocks[0] == (id(a), name)
    count = len(knocks)
    getattr(a, name)()
    assert len(knocks) == count


def test_closed_doors_are_as_they_were() -> None:
    def state() -> dict[str, object]:
        watched = ("numpy", "tolist", "data_ptr", "__dlpack__", "untyped_storage", "share_memory_")
        found = {name: getattr(Tensor, name) for name in watched}
        own = {name for name in watched if name in vars(Tensor)}
        return {**found, "own": own, "unpack": vars(BackwardCFunction).get("saved_tensors")}

    before = state()
    outer, inner = Doors(lambda *_: None), Doors(lambda *_: None)
    outer.open()
    between = state()
    inner.open()
    inner.close()
    assert state() == between != before
    outer.close()
    assert state() == before
    outer.close()  # again is no harm
    assert state() == before
