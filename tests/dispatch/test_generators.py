"""Draws can be made again, and nobody notices."""

import pytest
import torch

from penstock.dispatch.generators import draw_of, replaying, rewind
from runs import DEVICES

aten = torch.ops.aten

pytestmark = pytest.mark.parametrize("device", DEVICES)


def dropout(device: str) -> torch.Tensor:
    return aten.native_dropout.default(torch.ones(1000, device=device), 0.5, True)[0]


def test_a_replay_draws_the_same_and_leaves_the_generator_where_it_was(device: str) -> None:
    torch.manual_seed(3)
    draw = draw_of({}, torch.device(device))
    first, second = dropout(device), dropout(device)
    with replaying(draw):
        again = dropout(device)
    third = dropout(device)
    assert torch.equal(again, first)
    torch.manual_seed(3)
    plain = [dropout(device) for _ in range(3)]
    assert all(map(torch.equal, (first, second, third), plain))


def test_a_replay_that_fails_leaves_the_generator_where_it_was(device: str) -> None:
    torch.manual_seed(3)
    draw = draw_of({}, torch.device(device))
    dropout(device)

    def fail() -> None:
        dropout(device)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), replaying(draw):
        fail()
    second = dropout(device)
    torch.manual_seed(3)
    dropout(device)
    assert torch.equal(second, dropout(device))


def test_a_generator_of_the_calls_own_is_the_one_that_counts(device: str) -> None:
    own = torch.Generator(device).manual_seed(5)
    torch.manual_seed(3)
    draw = draw_of({"generator": own}, torch.device(device))
    first = torch.randn(100, device=device, generator=own)
    common = torch.default_generator.get_state()
    with replaying(draw):
        again = torch.randn(100, device=device, generator=own)
    assert torch.equal(first, again)
    assert torch.equal(torch.default_generator.get_state(), common)
    after = torch.randn(100, device=device, generator=own)
    own.manual_seed(5)
    torch.randn(100, device=device, generator=own)
    assert torch.equal(after, torch.randn(100, device=device, generator=own))


def test_rewinding_lets_the_next_draw_be_the_same(device: str) -> None:
    draw = draw_of({}, torch.device(device))
    first = dropout(device)
    rewind(draw)
    assert torch.equal(dropout(device), first)


def test_another_seed_in_between_changes_nothing(device: str) -> None:
    torch.manual_seed(3)
    draw = draw_of({}, torch.device(device))
    first = dropout(device)
    torch.manual_seed(99)
    with replaying(draw):
        assert torch.equal(dropout(device), first)
    after = dropout(device)
    torch.manual_seed(99)
    assert torch.equal(after, dropout(device))
