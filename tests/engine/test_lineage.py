"""Ops run again: the remade bits are those of the first run, and nothing else has changed."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, UntypedStorage
from torch.nn import functional as F  # noqa: N812  (its name everywhere)

from penstock.dispatch.clock import Clock
from penstock.dispatch.generators import draw_of
from penstock.dispatch.schema import facts_of, tensors_in
from penstock.dispatch.storage import byte_view, key_of, storage_of
from penstock.engine.lineage import Call, capture, fresh_storages, run_again
from penstock.errors import InternalError
from penstock.ir.trace import Op, OpIndex, Phase, ValueId
from runs import DEVICES

pytestmark = pytest.mark.parametrize("device", DEVICES)


@dataclass
class Tape:
    """Captures calls as the engine does. Numbers values as they come, the given ones first."""

    device: str
    calls: list[Call | None] = field(default_factory=list)
    fresh: list[tuple[ValueId, ...]] = field(default_factory=list)
    replaced: dict[ValueId, ValueId] = field(default_factory=dict)
    sources: dict[ValueId, UntypedStorage] = field(default_factory=dict)
    latest: dict[int, ValueId] = field(default_factory=dict)  # by storage key
    count: int = 0

    def value(self, tensor: Tensor) -> ValueId:
        """A new value for what the tensor's storage holds from now on."""
        self.count += 1
        value = self.latest[key_of(storage_of(tensor))] = ValueId(self.count - 1)
        return value

    def given(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            self.sources[self.value(tensor)] = storage_of(tensor)

    def of(self, tensor: Tensor) -> ValueId:
        return self.latest[key_of(storage_of(tensor))]

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        facts = facts_of(func)
        if facts.is_view:
            return func(*args, **kwargs)
        index = OpIndex(len(self.calls))
        written = list(facts.written(args, kwargs))
        before = [self.of(tensor) for tensor in written]
        after = [ValueId(self.count + n) for n in range(len(written))]
        reads = tuple(self.latest[key_of(storage_of(t))] for t in tensors_in((args, kwargs)))
        draw = draw_of(kwargs, torch.device(self.device)) if facts.random else None
        op = Op(index, facts.name, Phase.FORWARD, reads, tuple(after))
        self.calls.append(capture(op, func, facts, args, kwargs, dict(self.latest), draw))
        result = func(*args, **kwargs)
        for tensor, old in zip(written, before, strict=True):
            self.replaced[self.value(tensor)] = old
        inputs = {key_of(storage_of(t)) for t in tensors_in((args, kwargs))}
        made = fresh_storages(result, inputs, torch.device(self.device))
        views = [torch.empty(0, dtype=torch.uint8, device=self.device).set_(one) for one in made]
        self.fresh.append(tuple(self.value(view) for view in views))
        return result

    def again(self, wanted: list[ValueId]) -> dict[ValueId, UntypedStorage]:
        assert None not in self.calls
        calls = [call for call in self.calls if call is not None]
        source = self.sources.__getitem__
        place = torch.device(self.device)
        return run_again(calls, wanted, self.fresh, self.replaced, source, place)


def remade(step: Callable[..., Tensor], device: str, *given: Tensor) -> None:
    """Run `step`, remake its result from what was captured, and compare."""
    tape = Tape(device)
    tape.given(*given)
    kept = [byte_view(storage_of(tensor)).clone() for tensor in given]
    with Clock(tape):
        result = step(*given)
    wanted = tape.of(result)
    first = byte_view(storage_of(result)).clone()
    for tensor, was in zip(given, kept, strict=True):
        byte_view(storage_of(tensor)).copy_(was)  # what the lineage starts from
    found = tape.again([wanted])
    assert list(found) == [wanted]
    assert key_of(found[wanted]) != key_of(storage_of(result))
    assert torch.equal(byte_view(found[wanted]), first)


STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "a chain": lambda x: (x * 2 + 1).tanh().exp(),
    "dropout": lambda x: F.dropout(x, 0.5) + F.dropout(x, 0.25),
    "in place": lambda x: (x + 1).relu_().mul_(3).add_(x),
    "views of the input": lambda x: x.t() @ x[:, 3:40],
    "in place through a view": lambda x: _edited(x + 1),
    "attention": lambda x: F.scaled_dot_product_attention(
        *x.view(2, 2, 32, 32).expand(3, 2, 2, 32, 32)
    ),
    "layer norm": lambda x: F.layer_norm(x, (64,)),
    "several outputs": lambda x: torch.sort(x.sin()).values,
    "concatenated": lambda x: torch.cat([x, x.cos(), x[:3]]),
    "lists": lambda x: torch._foreach_mul([x, x + 1], 2.0)[1],
}


def _edited(h: Tensor) -> Tensor:
    h[:, :8] += 2.0
    h.t()[3].zero_()
    return h


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("grad", [False, True])
def test_a_second_run_makes_the_same_bits(device: str, name: str, grad: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 64, device=device)
    with torch.set_grad_enabled(grad):
        remade(STEPS[name], device, x)


def test_random_ops_draw_again_and_nobody_notices(device: str) -> None:
    x = torch.ones(1000, device=device)
    tape = Tape(device)
    tape.given(x)
    torch.manual_seed(3)
    with Clock(tape):
        dropped = F.dropout(x, 0.5)
    after = torch.rand(5, device=device)
    torch.manual_seed(3)
    F.dropout(x, 0.5)
    found = tape.again([tape.of(dropped)])
    assert torch.equal(byte_view(found[tape.of(dropped)]), byte_view(storage_of(dropped)))
    assert torch.equal(torch.rand(5, device=device), after)


def test_batch_norm_makes_the_same_bits_and_counts_once(device: str) -> None:
    x, scale, shift = (torch.randn(4, 8, 5, 5, device=device), *torch.rand(2, 8).to(device))
    mean, var = torch.zeros(8, device=device), torch.ones(8, device=device)
    tape = Tape(device)
    tape.given(x, scale, mean, var)  # scale and shift are one storage
    with Clock(tape):
        normed = F.batch_norm(x, mean, var, scale, shift, training=True)
    once = mean.clone(), var.clone()
    found = tape.again([tape.of(normed)])
    assert torch.equal(byte_view(found[tape.of(normed)]), byte_view(storage_of(normed)))
    assert torch.equal(mean, once[0])
    assert torch.equal(var, once[1])


def test_what_is_captured_keeps_no_tensor_alive(device: str) -> None:
    x = torch.randn(100, device=device)
    tape = Tape(device)
    tape.given(x)
    with Clock(tape):
        h = x * 2
        y = (h + 1).exp()
    refs = [weakref.ref(storage_of(tensor)) for tensor in (h, y)]
    del h, y
    gc.collect()
    assert [ref() for ref in refs] == [None, None]


def test_a_pass_keeps_no_more_than_it_still_needs(device: str) -> None:
    x = torch.randn(100, device=device)
    tape = Tape(device)
    tape.given(x)
    with Clock(tape):
        h = x
        for _ in range(10):
            h = h + 1
    alive: list[int] = []
    living: weakref.WeakSet[UntypedStorage] = weakref.WeakSet()

    def watch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        if facts_of(func).name == "aten.add":
            living.add(storage_of(result))
            alive.append(len(living))
        return result

    with Clock(watch):
        tape.again([tape.of(h)])
    assert len(alive) == 10
    assert max(alive) == 2  # what an op reads and what it makes


def test_intermediate_values_can_be_kept_too(device: str) -> None:
    x = torch.randn(100, device=device)
    tape = Tape(device)
    tape.given(x)
    with Clock(tape):
        a = x * 2
        b = a.exp()
        c = b + 1
    wanted = [tape.of(a), tape.of(c)]
    found = tape.again(wanted)
    for value, tensor in zip(wanted, (a, c), strict=True):
        assert torch.equal(byte_view(found[value]), byte_view(storage_of(tensor)))


@pytest.mark.parametrize("kind", ["conjugated", "negated", "sparse", "unknown"])
def test_what_cannot_be_described_is_not_captured(device: str, kind: str) -> None:
    x = torch.randn(10, 10, device=device)
    argument = {
        "conjugated": lambda: torch.complex(x, x).conj(),
        "negated": lambda: torch.complex(x, x).conj().imag,
        "sparse": x.to_sparse,
        "unknown": lambda: x,
    }[kind]()
    func = torch.ops.aten.clone.default
    known = {} if kind in ("unknown", "sparse") else {key_of(storage_of(argument)): ValueId(0)}
    op = Op(OpIndex(0), "aten.clone", Phase.FORWARD)
    assert capture(op, func, facts_of(func), (argument,), {}, known, None) is None


def test_an_op_that_makes_something_else_is_an_error(device: str) -> None:
    x = torch.randn(100, device=device)
    tape = Tape(device)
    tape.given(x)
    with Clock(tape):
        y = x * 2
    tape.fresh[0] = (*tape.fresh[0], ValueId(99))
    with pytest.raises(InternalError, match="made 1 storages when it ran again, 2 when"):
        tape.again([tape.of(y)])
