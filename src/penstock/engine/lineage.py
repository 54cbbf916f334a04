"""Running ops again: what is kept of their first run, and the pass that remakes values from it.

Kept of an op is the call itself, its tensor arguments replaced by which value they showed and how,
and for a random op where its generator stood. That holds no tensor alive.

**Guarantees.** A pass calls the same kernels on the same bytes, below autograd and autocast, so the
remade bits are the first run's. It changes nothing else: generators are put back, running
statistics are left alone.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch._ops import OpOverload

from penstock.dispatch.generators import Draw, replaying
from penstock.dispatch.schema import Facts, tensors_in
from penstock.dispatch.storage import components_on, is_sparse, key_of, nbytes_of, storage_of
from penstock.engine.watch import Moment
from penstock.errors import InternalError
from penstock.ir.trace import Op, ValueId

__all__ = ["Call", "capture", "renamed_call", "run_again"]


@dataclass(frozen=True, slots=True)
class _View:
    """A tensor argument: a view of a value's storage."""

    value: ValueId
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def of(self, storage: UntypedStorage) -> Tensor:
        empty = torch.empty(0, dtype=self.dtype, device=storage.device)
        return torch._C.TensorBase.set_(empty, storage, self.offset, self.size, self.stride)


@dataclass(frozen=True, slots=True)
class Call:
    """An op as it was first run, without its tensors."""

    op: Op
    func: OpOverload
    facts: Facts
    args: Any
    kwargs: Any
    draw: Draw | None
    with_grad: bool  # was grad mode on? Some kernels make more outputs then


def capture(
    op: Op,
    func: OpOverload,
    facts: Facts,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    values: dict[int, ValueId],
    draw: Draw | None,
) -> Call | None:
    """What must be kept to run `op` again; None if an argument cannot be described.

    `values` says which value each argument's storage (by key) holds before the op runs.
    """
    try:
        return Call(
            op,
            func,
            facts,
            _describe(facts.again(args), values),
            _describe(kwargs, values),
            draw,
            torch.is_grad_enabled(),
        )
    except _Indescribable:
        return None


class _Indescribable(Exception):
    pass


def _describe(given: Any, values: dict[int, ValueId]) -> Any:
    if isinstance(given, Tensor):
        if is_sparse(given) or given.is_conj() or given.is_neg():
            raise _Indescribable
        storage = storage_of(given)
        if (value := values.get(key_of(storage))) is None:
            if nbytes_of(storage) == 0 and given.numel() == 0:
                return given.detach()
            if storage.device.type == "cpu" and given.numel() == 1 and not given.requires_grad:
                return given.clone()  # a number wrapped in a tensor, beside a device's values
            raise _Indescribable
        return _View(value, given.dtype, given.size(), given.stride(), int(given.storage_offset()))
    if isinstance(given, (list, tuple)):
        return type(given)(_describe(one, values) for one in given)
    if isinstance(given, dict):
        return {name: _describe(one, values) for name, one in given.items()}
    return given


def renamed_call(call: Call, op: Op, names: Mapping[ValueId, ValueId]) -> Call | None:
    """The same call as `op` of another trace, with that one's names; None if one is not known."""

    def renamed(view: _View) -> _View:
        return replace(view, value=names[view.value])

    try:
        args, kwargs = _mapped(call.args, renamed), _mapped(call.kwargs, renamed)
    except KeyError:
        return None
    return replace(call, op=op, args=args, kwargs=kwargs)


def run_again(
    calls: Sequence[Call],
    wanted: Iterable[ValueId],
    fresh: Sequence[tuple[ValueId, ...]],
    replaced: dict[ValueId, ValueId],
    source: Callable[[ValueId], UntypedStorage],
    device: torch.device,
    prepare: Callable[[Op], AbstractContextManager[None]] = lambda op: nullcontext(),
    now: Callable[[], Moment] = time.perf_counter,
    note: Callable[[int, Moment], None] = lambda place, begun: None,
) -> dict[ValueId, UntypedStorage]:
    """Run `calls` in order and return storages with the bytes of the values `wanted`.

    `fresh` are the values with storages of their own that each op makes; `replaced` says which
    version an in-place write overwrites; `source` gives the storage of a value that is not made
    here, its bytes in place; each call is made within `prepare(op)`, and `note(place, begun)` is told
    afterwards, with its place among them and what `now` said before it. `device` is the one whose values
    count.
    """
    keep = set(wanted)
    last_read = {view.value: index for index, call in enumerate(calls) for view in _views(call)}
    inside: dict[ValueId, UntypedStorage] = {}

    def shown(view: _View) -> Tensor:
        value = view.value
        return view.of(inside[value] if value in inside else source(value))

    for index, call in enumerate(calls):
        args, kwargs = _mapped(call.args, shown), _mapped(call.kwargs, shown)
        replay = replaying(call.draw) if call.draw is not None else nullcontext()
        with prepare(call.op), torch.set_grad_enabled(call.with_grad), replay:
            begun = now()
            result = call.func(*args, **kwargs)
        note(index, begun)
        inputs = {key_of(storage_of(t)) for t in tensors_in((args, kwargs))}
        outputs = fresh_storages(result, inputs, device)
        if len(outputs) != len(fresh[call.op.index]):
            raise InternalError(
                f"{call.facts.name} made {len(outputs)} storages when it ran again, "
                f"{len(fresh[call.op.index])} when it was recorded"
            )
        inside.update(zip(fresh[call.op.index], outputs, strict=True))
        for value in call.op.writes:
            if (before := replaced.get(value)) is not None and before in inside:
                inside[value] = inside.pop(before)
        del args, kwargs, result, outputs
        for value in [v for v in inside if v not in keep and last_read.get(v, -1) <= index]:
            del inside[value]
    return {value: inside[value] for value in keep}


def fresh_storages(
    result: Any, inputs: Iterable[int], device: torch.device
) -> list[UntypedStorage]:
    """The storages of a result on `device` that are not among `inputs` (by key), in order."""
    seen = set(inputs)
    found = []
    for tensor in components_on(tensors_in(result), device):
        storage = storage_of(tensor)
        if key_of(storage) not in seen and nbytes_of(storage):
            seen.add(key_of(storage))
            found.append(storage)
    return found


def _mapped(given: Any, function: Callable[[_View], Any]) -> Any:
    """`given` with what `function` makes of each view in it."""
    if isinstance(given, _View):
        return function(given)
    if isinstance(given, (list, tuple)):
        return type(given)(_mapped(one, function) for one in given)
    if isinstance(given, dict):
        return {name: _mapped(one, function) for name, one in given.items()}
    return given


def _views(call: Call) -> list[_View]:
    found: list[_View] = []

    def look(given: Any) -> None:
        if isinstance(given, _View):
            found.append(given)
        elif isinstance(given, (list, tuple)):
            for one in given:
                look(one)
        elif isinstance(given, dict):
            for one in given.values():
                look(one)

    look(call.args)
    look(call.kwargs)
    return found
