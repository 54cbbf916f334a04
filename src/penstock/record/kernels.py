"""What some kernels take for themselves that torch's fake tensors do not show.

On a CPU, oneDNN's recurrent layer returns its scratch as an output, whose size only oneDNN knows. It
grows by the same bytes with every step of the sequence (pages aside), so two real calls on short ones
tell it. And the sum or mean of some losses stands in the storage of its summands.

On a GPU, the backward of softmax multiplies gradient and output into a tensor of its own first, and it
and that of log-softmax copy what is not contiguous: `softmax_backward_cuda_out`, `host_softmax_backward`
in aten/src/ATen/native/cuda/SoftMax.cu of torch 2.13. Of other kernels there it is not said here what
they take: `simulate.roofline` has what calibration saw.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

__all__ = ["scratch_on_gpu", "with_scratch"]

_LAYER = torch.ops.aten.mkldnn_rnn_layer.default
_SCRATCH = 3  # its place among the layer's outputs
_REDUCED = frozenset(
    {
        torch.ops.aten.mse_loss.default,
        torch.ops.aten.smooth_l1_loss.default,
        torch.ops.aten.soft_margin_loss.default,
        torch.ops.aten.binary_cross_entropy.default,
    }
)
"""They compute a term for each element, and then shrink what they give out to the sum of these."""
_SHORT = (32, 64)  # steps of the sequences that are really run
_SOFTMAX_BACKWARD = torch.ops.aten._softmax_backward_data.default
_LOG_SOFTMAX_BACKWARD = torch.ops.aten._log_softmax_backward_data.default


def scratch_on_gpu(func: OpOverload, args: tuple[Any, ...]) -> int:
    """Bytes that a call on fake tensors of a GPU would take while it runs, as far as its source says."""
    if func not in (_SOFTMAX_BACKWARD, _LOG_SOFTMAX_BACKWARD) or args[0].numel() == 0:
        return 0
    gradient: Tensor = args[0]
    output: Tensor = args[1]
    product = 0
    if func is _SOFTMAX_BACKWARD:
        gradient = gradient * output
        product = gradient.nbytes
    return product + sum(one.nbytes for one in (gradient, output) if not one.is_contiguous())


def with_scratch(func: OpOverload, args: tuple[Any, ...], result: Any) -> Any:
    """`result` of a call on fake tensors, with scratch of the size that a real call returns."""
    if func in _REDUCED and result.dim() == 0:
        terms = torch.broadcast_shapes(args[0].shape, args[1].shape)
        return result.new_empty(terms).resize_(())
    if func is not _LAYER:
        return result
    outputs = list(result)
    fake: FakeTensor = outputs[_SCRATCH]
    if fake.numel() == 0 and args[-1]:  # only training keeps it
        tensors, others = args[:7], args[7:]
        shapes = tuple((tuple(one.shape), one.dtype) for one in tensors)
        nbytes = _scratch_bytes(shapes, tuple(map(_frozen, others)))
        outputs[_SCRATCH] = fake.new_empty(nbytes // fake.element_size())
    return tuple(outputs)


@cache
def _scratch_bytes(shapes: tuple[tuple[tuple[int, ...], torch.dtype], ...], rest: Any) -> int:
    """Of a layer on a (steps, batch, features) sequence and weights of these shapes."""
    (steps, *features), dtype = shapes[0]

    def of(length: int) -> int:
        with unset_fake_temporarily(), torch.enable_grad():  # without, there is no scratch
            sequence = torch.zeros(length, *features, dtype=dtype)
            others = [torch.zeros(shape, dtype=kind) for shape, kind in shapes[1:]]
            kept: Tensor = _LAYER(sequence, *others, *rest)[_SCRATCH]
        return kept.numel() * kept.element_size()

    if steps <= _SHORT[1]:
        return of(int(steps))
    short, longer = map(of, _SHORT)
    return longer + (longer - short) * (int(steps) - _SHORT[1]) // (_SHORT[1] - _SHORT[0])


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
