"""What operators do to their arguments, as their schemas say, and where those are silent."""

import pytest
import torch

from penstock.dispatch.schema import facts_of, tensors_in

aten = torch.ops.aten


@pytest.mark.parametrize(
    "func",
    [
        aten.view.default,
        aten.t.default,
        aten.slice.Tensor,
        aten.split.Tensor,
        aten.detach.default,
        aten.alias.default,
        aten._unsafe_view.default,
        aten.as_strided.default,
    ],
)
def test_views_touch_no_byte(func) -> None:
    assert facts_of(func).is_view


def test_a_sparse_tensor_is_transposed_by_copying() -> None:
    dense = torch.eye(4)
    assert facts_of(aten.t.default).makes_view((dense,))
    assert not facts_of(aten.t.default).makes_view((dense.to_sparse(),))


def test_how_many_elements_become_sparse_depends_on_data() -> None:
    assert facts_of(aten._to_sparse.default).sized_by_data
    assert not facts_of(aten._to_dense.default).sized_by_data


@pytest.mark.parametrize(
    "func", [aten.mm.default, aten.clone.default, aten.relu_.default, aten.add.out]
)
def test_what_makes_or_changes_bytes_is_no_view(func) -> None:
    assert not facts_of(func).is_view


@pytest.mark.parametrize(
    ("func", "mutates"),
    [
        (aten.mm.default, ()),
        (aten.relu_.default, (0,)),
        (aten.add_.Tensor, (0,)),
        (aten.copy_.default, (0,)),
        (aten.add.out, ("out",)),
        (aten.index_put_.default, (0,)),
        (aten._foreach_add_.List, (0,)),
        (aten._fused_adamw_.default, (0, 1, 2, 3, 4)),
        (aten._native_batch_norm_legit.default, (3, 4)),
    ],
)
def test_arguments_written_in_place_are_known(func, mutates: tuple[int | str, ...]) -> None:
    assert facts_of(func).mutates == mutates


def test_written_finds_tensors_in_positions_keywords_and_lists() -> None:
    a, b, c = torch.ones(1), torch.ones(2), torch.ones(3)
    assert list(facts_of(aten.add_.Tensor).written((a, b), {})) == [a]
    (found,) = facts_of(aten.add.out).written((a, a), {"out": b})
    assert found is b
    found = list(facts_of(aten._foreach_add_.List).written(([a, b], [c, c]), {}))
    assert [id(one) for one in found] == [id(a), id(b)]


def batch_norm(training: bool) -> tuple:
    x, weight, bias, mean, var = (torch.randn(4, 3, 2, 2), *torch.rand(4, 3))
    return x, weight, bias, mean, var, training, 0.1, 1e-5


def test_batch_norm_secretly_writes_its_statistics_in_training_only() -> None:
    facts = facts_of(aten.native_batch_norm.default)
    assert facts.mutates == ()  # so says the schema ...
    args = batch_norm(training=True)
    mean, var = args[3].clone(), args[4].clone()
    aten.native_batch_norm.default(*args)
    assert not torch.equal(args[3], mean)  # ... and so it is
    assert not torch.equal(args[4], var)
    assert [id(t) for t in facts.written(args, {})] == [id(args[3]), id(args[4])]
    assert not list(facts.written(batch_norm(training=False), {}))


def test_batch_norm_again_leaves_its_statistics_and_makes_the_same_bits() -> None:
    facts, args = facts_of(aten.native_batch_norm.default), batch_norm(training=True)
    first = aten.native_batch_norm.default(*args)
    mean, var = args[3].clone(), args[4].clone()
    second = aten.native_batch_norm.default(*facts.again(args))
    assert all(map(torch.equal, first, second))
    assert torch.equal(args[3], mean)
    assert torch.equal(args[4], var)
    evaluated = batch_norm(training=False)
    assert facts.again(evaluated) == list(evaluated)  # there they are read


@pytest.mark.parametrize(
    ("func", "random"),
    [
        (aten.native_dropout.default, True),
        (aten.bernoulli.default, True),
        (aten.normal_.default, True),
        (aten.randperm.default, True),
        (aten.mm.default, False),
        (aten.zeros.default, False),
    ],
)
def test_ops_that_draw_are_known(func, random: bool) -> None:
    assert facts_of(func).random is random


def test_what_takes_over_the_bytes_of_others_is_not_done_again() -> None:
    assert not facts_of(aten.set_.source_Storage_storage_offset).repeatable
    assert facts_of(aten.add_.Tensor).repeatable


def test_names_have_no_overload() -> None:
    assert facts_of(aten.add.Tensor).name == "aten.add"
    assert facts_of(aten.add_.Tensor).name == "aten.add_"


def test_tensors_are_found_in_order_in_lists_tuples_and_dicts() -> None:
    a, b, c, d = (torch.ones(n) for n in (1, 2, 3, 4))
    found = tensors_in((a, [b, None, (c,)], 3, {"x": d, "y": "text"}))
    assert [len(t) for t in found] == [1, 2, 3, 4]
    assert tensors_in(a) == [a]
    assert tensors_in(None) == []
