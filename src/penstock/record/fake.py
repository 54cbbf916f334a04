"""One training step recorded without a device: no memory, no compute, the same ops and values.

Tensors are torch's fake ones: they have shapes and storages, but no bytes. How long a kernel runs is
not seen, and what it takes for itself only where `record.kernels` knows it; `simulate.roofline` prices
both.

Small tensors that are made of constants alone (positions, masks, schedules), and small batches of
integers, keep their values beside the shape: code that asks them decides as in a real step.

**Rejected.** Meta tensors: code that asks a tensor for its device takes other paths on them.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils._pytree import tree_map_only

from penstock.dispatch.clock import Clock
from penstock.dispatch.compiling import uncompiled
from penstock.dispatch.schema import facts_of, tensors_in
from penstock.errors import TraceError
from penstock.ir.trace import Trace
from penstock.record.absent import NOWHERE, as_if_present, is_absent, replaced, told
from penstock.record.kernels import scratch_on_gpu, with_scratch
from penstock.record.measure import Cost, Foreseen
from penstock.record.step import Recorder

__all__ = ["record_fake"]

aten = torch.ops.aten

Step = Callable[[int], Any]
"""Trains on batch `n`."""

_KNOWN_UP_TO = 1 << 16
"""Elements: larger tensors that are made of constants keep only their shape."""
_COUNTED_UP_TO = 1 << 22
"""The same for integers: positions and masks of a large batch are asked, weights are not."""
_WARM_UP = 4
"""Steps in which new optimizers may turn up, each making its state."""


def record_fake(make: Callable[[], Step], device: str = "cpu", label: str = "") -> Trace:
    """The trace of a whole step of `make()`; both run on fake tensors of `device`, with no times.

    A step ends with the optimizer that is met last. The first makes the optimizer's state; recorded
    is the first in which none is new. Without any, it is the second call.
    Raises `TraceError` if what the step does depends on the values of its tensors.
    """
    place = torch.device(device)
    mode = _Mode(allow_non_fake_inputs=True)
    fakes = _Fakes(mode, place)
    recorder = Recorder(place, fakes)
    met: list[int] = []

    def ended() -> Trace:
        trace = recorder.end(label).trace
        if not trace.values:
            raise TraceError(
                f"{label or 'the step'}: nothing ran on {place.type}. "
                "Make the model and its inputs on torch's default device"
            )
        # What the host took was the recording, not the step.
        return replace(trace, ops=tuple(replace(op, host_seconds=0.0) for op in trace.ops))

    def begins(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        recorder.optimizer_begins(optimizer)

    def ends(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        recorder.optimizer_ends(optimizer)
        is_new = id(optimizer) not in met
        if is_new:
            met.append(id(optimizer))
        if id(optimizer) == met[-1]:
            trace = ended()
            if not is_new:
                raise _Recorded(trace)
            recorder.begin()

    def build(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is _DEVICE:
            return fakes.told(args[0])
        return fakes.run(func, *fakes.of(func, args, kwargs))[0]

    def record(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is _DEVICE:
            return fakes.told(args[0])
        return recorder.run(func, *fakes.of(func, args, kwargs))

    hooks = [register_optimizer_step_pre_hook(begins), register_optimizer_step_post_hook(ends)]
    recorder.open()
    try:
        presence = as_if_present() if is_absent(place) else nullcontext()
        with uncompiled(), _quiet(), _remembering(), presence, mode:
            with place, Clock(build, transparent=(FakeTensor,)):
                step = make()
            with _unsuspected(), Clock(record, transparent=(FakeTensor,)):
                recorder.begin()
                for number in range(_WARM_UP):
                    step(number)
                    if not met:
                        trace = ended()
                        if number:
                            return trace
                        recorder.begin()
        raise TraceError(f"{label or 'the step'}: each of {_WARM_UP} steps had a new optimizer")
    except _Recorded as found:
        return found.trace
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise TraceError(
            f"{label or 'the step'}: what it does depends on the values of its tensors ({error}), "
            "which are not known without running it; record a real step with `penstock trace`"
        ) from None
    finally:
        for hook in hooks:
            hook.remove()
        recorder.close()


class _Recorded(BaseException):
    """Leaves the step: all that was to be seen was seen."""

    def __init__(self, trace: Trace) -> None:
        super().__init__(trace)
        self.trace = trace


class _Mode(FakeTensorMode):
    """Torch's, but for the device of constants: their values are on the CPU, they need not be."""

    def dispatch(
        self, func: OpOverload, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        result = super().dispatch(func, types, args, kwargs)
        kept = [one for one in _fakes_in(result) if one.constant is not None]
        if kept:
            asked = (kwargs or {}).get("device")
            others = [one.device for one in tensors_in((args, kwargs)) if one.device.type != "cpu"]
            for one in kept:
                one.fake_device = torch.device(asked or next(iter(others), _CPU))
        return result


def _fakes_in(result: Any) -> list[FakeTensor]:
    if isinstance(result, FakeTensor):
        return [result]
    return [one for one in tensors_in(result) if isinstance(one, FakeTensor)]


class _Fakes:
    """Runs calls on fake tensors, and keeps the values of small constants."""

    def __init__(self, mode: FakeTensorMode, device: torch.device) -> None:
        self._mode = mode
        self._place = device
        self._is_absent = is_absent(device)

    def told(self, tensor: FakeTensor) -> torch.device:
        """What compiled code is told when it asks a tensor for its device."""
        return told.get() if self._is_absent else tensor.fake_device

    def of(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Any]:
        """The arguments with each real tensor replaced by one and the same fake."""
        if self._is_absent and kwargs.get("device") == NOWHERE:
            kwargs = {**kwargs, "device": self._place}  # it had been told so
        is_lift = func in FakeTensorMode.lift_fns  # of `torch.tensor`, which tells torch the value
        if is_lift or all(isinstance(one, FakeTensor) for one in tensors_in((args, kwargs))):
            return args, kwargs
        return cast(tuple[Any, Any], tree_map_only(Tensor, self._fake, (args, kwargs)))

    def run(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Cost]:
        if func in _FILLS and isinstance(filled := args[0], FakeTensor):
            if filled.constant is not None and facts_of(func).random:
                self._mode.fake_tensor_converter.invalidate_constant_aliases(filled.constant)
            if filled.constant is None:
                return filled, _UNKNOWN
        cost = Foreseen(scratch_on_gpu(func, args)) if self._place.type == "cuda" else _UNKNOWN
        result = with_scratch(func, args, func(*args, **kwargs))
        is_constant = (
            isinstance(result, FakeTensor)
            and _is_small(result)
            and not facts_of(func).random
            and func not in _EMPTY
            and not tensors_in((args, kwargs))
        )
        if is_constant:
            place = {"device": _CPU} if "device" in kwargs else {}
            with unset_fake_temporarily():
                real = func(*args, **kwargs | place)
            device, result = result.device, self._known(real)
            cast(FakeTensor, result).fake_device = device
        return result, cost

    def _fake(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, FakeTensor):
            return tensor
        fake: Tensor | None = getattr(tensor, "_penstock_fake", None)
        if fake is None or fake.fake_mode is not self._mode:  # type: ignore[attr-defined]
            if _is_small(tensor) and not tensor.is_floating_point():
                with unset_fake_temporarily():
                    alias = tensor.detach()  # the tensor itself would hold the fake that holds it
                fake = self._known(alias)
            else:
                fake = self._mode.from_tensor(tensor)
            tensor._penstock_fake = fake  # type: ignore[attr-defined]
        return fake

    def _known(self, real: Tensor) -> Tensor:
        converter = self._mode.fake_tensor_converter
        found: Tensor = converter.from_real_tensor(self._mode, real, make_constant=True)
        return found


def _is_small(tensor: Tensor) -> bool:
    """Is its value kept, if it is known?"""
    return tensor.numel() <= (_KNOWN_UP_TO if tensor.is_floating_point() else _COUNTED_UP_TO)


_UNKNOWN = Foreseen()
_CPU = torch.device("cpu")
_DEVICE = torch.ops.prim.device.default
_FILLS = {
    aten.normal_.default,
    aten.uniform_.default,
    aten.zero_.default,
    aten.fill_.Scalar,
}
"""They write every element, and change no shape: on fake tensors they only take time."""
_EMPTY = {aten.empty.memory_format, aten.empty_strided.default}
"""Constants whose values nobody may read."""


@contextmanager
def _remembering() -> Iterator[None]:
    """While it lasts, torch keeps the values of small constants beside their shapes."""
    with (
        replaced(fake_tensor, "CONSTANT_NUMEL_LIMIT", _COUNTED_UP_TO),
        # It draws again until it likes what it drew.
        replaced(nn.init, "_no_grad_trunc_normal_", lambda tensor, *_, **__: tensor),
        replaced(torch.utils, "swap_tensors", _swap),
        # Optimizers take many tensors at once only of classes that they know.
        replaced(torch_optimizer, "_foreach_supported_types", [Tensor, nn.Parameter, FakeTensor]),
    ):
        yield


_swap_referenced = torch.utils.swap_tensors


def _swap(one: Tensor, other: Tensor) -> None:
    """As torch's, by which a module moves its parameters; but it lets torch itself refer to them.

    Those are the references by which the values of constants are forgotten: so they are, here.
    """
    with replaced(torch.utils, "weakref", SimpleNamespace(getweakrefs=lambda _: ())):
        _swap_referenced(one, other)  # type: ignore[no-untyped-call]
    for tensor in (one, other):
        if isinstance(tensor, FakeTensor):
            tensor.constant = None


@contextmanager
def _quiet() -> Iterator[None]:
    """While it lasts, torch does not log what it raises: a traceback above one clear line."""
    before, fake_tensor.log.disabled = fake_tensor.log.disabled, True
    try:
        yield
    finally:
        fake_tensor.log.disabled = before


@contextmanager
def _unsuspected() -> Iterator[None]:
    """While it lasts, transformers does not notice fake tensors: for them it builds other masks."""
    asking = sys.modules.get("transformers.utils.import_utils")
    if asking is None or not hasattr(asking, "is_fake_tensor"):
        yield
        return
    with replaced(asking, "is_fake_tensor", lambda _: False):
        yield
