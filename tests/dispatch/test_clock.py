"""The op clock shows every call on plain tensors, in every phase and thread, and only those."""

import threading

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from penstock.dispatch.clock import Clock, in_backward, is_plain
from runs import DEVICES


class Seen:
    """A handler that runs calls and notes their names, and whether backward made them."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.backward: list[bool] = []

    def __call__(self, func, args, kwargs):
        self.names.append(func.name())
        self.backward.append(in_backward() != -1)
        return func(*args, **kwargs)


@pytest.mark.parametrize("device", DEVICES)
def test_forward_backward_and_optimizer_are_seen(device: str) -> None:
    model = nn.Linear(4, 3).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=True)
    x = torch.randn(2, 4, device=device)
    seen = Seen()
    with Clock(seen):
        model(x).relu().sum().backward()
        optimizer.step()
    assert {"aten::addmm", "aten::relu", "aten::sum", "aten::threshold_backward"} <= {*seen.names}
    phases = dict(zip(seen.names, seen.backward, strict=True))
    assert phases["aten::relu"] is False
    assert phases["aten::threshold_backward"] is True
    assert phases["aten::_foreach_add_.List"] is False
    assert in_backward() == -1


def test_calls_that_take_no_tensor_are_seen() -> None:
    seen = Seen()
    with Clock(seen):
        torch.zeros(3)
        torch.randperm(4)
    assert seen.names == ["aten::zeros", "aten::randperm"]


def test_what_the_handler_returns_is_the_result() -> None:
    with Clock(lambda func, args, kwargs: torch.full((2,), 5.0)):
        found = torch.zeros(2)
    assert found.tolist() == [5.0, 5.0]


def test_an_error_passes_through() -> None:
    with Clock(Seen()), pytest.raises(RuntimeError, match="mat1 and mat2"):
        torch.mm(torch.ones(2, 3), torch.ones(2, 3))


def test_another_thread_is_not_shown() -> None:
    seen = Seen()
    with Clock(seen):
        thread = threading.Thread(target=torch.zeros, args=(3,))
        thread.start()
        thread.join()
    assert not seen.names


class Doubled(torch.Tensor):
    """A subclass with a dispatch of its own: it shows the sum of two tensors that it holds."""

    @staticmethod
    def __new__(cls, one: torch.Tensor, other: torch.Tensor):
        made = torch.Tensor._make_wrapper_subclass(cls, one.shape, dtype=one.dtype)
        made.one, made.other = one, other
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args = tree_map_only(cls, lambda it: it.one + it.other, args)
        return func(*args, **(kwargs or {}))


def test_a_subclass_unwraps_itself_first() -> None:
    wrapped = Doubled(torch.ones(2), torch.ones(2))
    seen, met = Seen(), []

    def handler(func, args, kwargs):
        met.extend(type(arg) for arg in args if isinstance(arg, torch.Tensor))
        return seen(func, args, kwargs)

    with Clock(handler):
        found = wrapped * 3
    assert found.tolist() == [6.0, 6.0]
    assert seen.names == ["aten::add.Tensor", "aten::mul.Tensor"]
    assert set(met) == {torch.Tensor}


def test_parameters_are_plain_and_wrappers_are_not() -> None:
    assert is_plain([torch.Tensor, nn.Parameter])
    assert not is_plain([torch.Tensor, Doubled])
