"""What a call is about to take, and what is remembered of such questions."""

import weakref

import pytest
import torch

from penstock.dispatch.schema import facts_of
from penstock.engine.needs import output_bytes

aten = torch.ops.aten
CPU = torch.device("cpu")


def taken(func, *args, **kwargs) -> int:
    return output_bytes(func, facts_of(func), args, kwargs, CPU)


@pytest.mark.parametrize("again", [False, True])
def test_numbers_that_are_equal_are_not_the_same(again: bool) -> None:
    assert [taken(aten.full.default, [4], one, device=CPU) for one in (1, 1.0, True)] == [32, 16, 4]


def test_what_torch_makes_by_default_counts() -> None:
    assert taken(aten.ones.default, [6], device=CPU) == 24
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert taken(aten.ones.default, [6], device=CPU) == 48
    finally:
        torch.set_default_dtype(before)


def test_shapes_that_depend_on_data_are_guessed_from_above() -> None:
    mask = torch.ones(100, dtype=torch.int64)
    for _ in range(2):
        assert taken(aten.nonzero.default, mask) == 800


def test_what_was_asked_about_is_not_held() -> None:
    tensor, generator = torch.ones(7, 3), torch.Generator()
    assert taken(aten.relu.default, tensor) == 84
    assert taken(aten.bernoulli.default, tensor, generator=generator) == 84
    dead = weakref.ref(tensor)
    del tensor
    assert dead() is None
