"""What one call cost: its time, its floating-point operations, the bytes it needed for scratch."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils.flop_counter import flop_registry, sdpa_flop

from penstock.dispatch.resident import CpuMeter, CudaMeter

__all__ = [
    "Cost",
    "CpuStopwatch",
    "CudaStopwatch",
    "Foreseen",
    "Stopwatch",
    "dtype_of",
    "flops_of",
    "moved_bytes",
    "stopwatch_for",
]

# Below this, scratch bytes drown in the page counters of the kernel.
_NOTABLE = 256 * 1024


class Cost:
    """What one call cost; on CUDA the seconds are known only after a synchronisation.

    `asking`: host seconds to ask a device for it that works off a queue. On a CPU they are the call's
    own.
    """

    __slots__ = ("_seconds", "asking", "peak_above", "settled_above")

    def __init__(
        self,
        seconds: Callable[[], float],
        peak_above: int,
        settled_above: int,
        asking: float = 0.0,
    ) -> None:
        self._seconds = seconds
        self.asking = asking
        self.peak_above = peak_above  # bytes: the most held during the call, above what was before
        self.settled_above = settled_above  # bytes: held after it, above what was before

    def seconds(self) -> float:
        return self._seconds()

    def scratch(self, outputs: int, *, settles: bool = True) -> int:
        """Bytes that the call held beyond its `outputs` and gave back.

        `settles`: what it holds afterwards is none of them, but what a library keeps.
        """
        beyond = self.peak_above - max(outputs, self.settled_above if settles else 0)
        return beyond if beyond >= _NOTABLE else 0


class Foreseen(Cost):
    """The cost of a call that never ran: no seconds, and the scratch that its kernel is known to take."""

    __slots__ = ("_scratch",)

    def __init__(self, scratch: int = 0) -> None:
        super().__init__(lambda: 0.0, 0, 0)
        self._scratch = scratch

    def scratch(self, outputs: int, *, settles: bool = True) -> int:  # noqa: ARG002  (it is known)
        return self._scratch


class Stopwatch(Protocol):
    """Runs a call, and says what it cost."""

    def run(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Cost]: ...


class CpuStopwatch:
    """Wall time, and the high-water mark of the resident set."""

    def __init__(self, meter: CpuMeter) -> None:
        self._meter = meter

    def run(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Cost]:
        before = self._meter.resident()
        self._meter.restart()
        start = time.perf_counter()
        result = func(*args, **kwargs)
        seconds = time.perf_counter() - start
        peak, after = self._meter.recent_needed(), self._meter.resident()
        return result, Cost(lambda: seconds, peak - before, after - before)


class CudaStopwatch:
    """Events around the call on the device's current stream, and the allocator's own peak."""

    def __init__(self, device: torch.device, meter: CudaMeter) -> None:
        self._device, self._meter = device, meter

    def run(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Cost]:
        before = self._meter.used()
        self._meter.restart()
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        start.record(torch.cuda.current_stream(self._device))
        asked = time.perf_counter()
        result = func(*args, **kwargs)
        asking = time.perf_counter() - asked
        end.record(torch.cuda.current_stream(self._device))
        peak, after = self._meter.recent_needed(), self._meter.used()

        def seconds() -> float:
            end.synchronize()
            return float(start.elapsed_time(end)) / 1e3

        return result, Cost(seconds, peak - before, after - before, asking)


def stopwatch_for(device: torch.device, meter: CpuMeter | CudaMeter) -> Stopwatch:
    return CpuStopwatch(meter) if isinstance(meter, CpuMeter) else CudaStopwatch(device, meter)


def flops_of(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    """By torch's own flop counter, or here for the CPU's kernels that it does not know; else 0."""
    count = flop_registry.get(func._overloadpacket)
    if count is None and func in _FLASH_ON_CPU:
        return int(sdpa_flop(*_for_each_head(args[:3])))
    if count is not None and func._overloadpacket in _ATTENTION:
        return int(count(*_for_each_head(args), **kwargs, out_val=result))
    if count is None and func in _RECURRENT_ON_CPU:
        sequence, to_gates, from_state = args[:3]
        rows = sequence.numel() // sequence.shape[-1]
        return int(2 * rows * (to_gates.numel() + from_state.numel()) * _RECURRENT_ON_CPU[func])
    if count is None:
        place = _VECTOR_PRODUCTS.get(func._overloadpacket)
        return 0 if place is None else 2 * int(args[place].numel())
    return int(count(*args, **kwargs, out_val=result))


def _for_each_head(args: Sequence[Any]) -> list[Any]:
    """Shapes of attention's arguments, where keys and values of several heads count for each of them.

    torch 2.11 counts no others.
    """
    shapes = [one.shape if isinstance(one, Tensor) else one for one in args]
    split = [one for one in shapes if isinstance(one, torch.Size) and len(one) == 4]
    heads = max((one[1] for one in split), default=0)
    return [torch.Size((one[0], heads, *one[2:])) if one in split else one for one in shapes]


_ATTENTION = {packet for packet in flop_registry if "_scaled_dot_product" in str(packet)}
_FLASH_ON_CPU = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default}
_RECURRENT_ON_CPU = {
    torch.ops.aten.mkldnn_rnn_layer.default: 1,
    torch.ops.aten.mkldnn_rnn_layer_backward.default: 2,
}
"""With the number of products that each weight takes part in, for every row."""
_VECTOR_PRODUCTS = {
    torch.ops.aten.mv: 0,
    torch.ops.aten.addmv: 1,
    torch.ops.aten.addmv_: 1,
    torch.ops.aten.dot: 0,
    torch.ops.aten.vdot: 0,
}
"""With the place of the argument that has as many elements as there are products."""


def dtype_of(tensors: Sequence[Tensor]) -> str:
    """The dtype that a call computes in: of the first tensor of floats, else of the first."""
    for tensor in tensors:
        if tensor.dtype.is_floating_point:
            return str(tensor.dtype).removeprefix("torch.")
    return str(tensors[0].dtype).removeprefix("torch.") if tensors else ""


def moved_bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes that a call touching each of `tensors` once moves."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
