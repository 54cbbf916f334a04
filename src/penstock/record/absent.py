"""Fake tensors of a GPU on a machine without one: torch decides as it would with the GPU there.

Fake CUDA tensors run forward anywhere, but what is compiled asks each tensor for its device: the
autograd engine looks for a stream of that device and fails, dropout and attention take the paths of
the device. So compiled code is told that the tensor is nowhere (on "meta"), Python code that it is on
the GPU, and the few choices that compiled code makes by device are made here.

**Inferred.** Attention: flash without a mask in half precision, else memory-efficient, else plain, as
`select_sdp_backend` of torch 2.13 does. cuDNN's attention, batch norm and LSTM are not chosen: the
LSTM is that of the CPU.

**Rejected.** A device guard put into torch's registry: the autograd engine then asks for more.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F  # noqa: N812  (its name everywhere)

from penstock.record.autocast import autocasting

__all__ = ["NOWHERE", "as_if_present", "is_absent", "replaced", "told"]

aten = torch.ops.aten
NOWHERE = torch.device("meta")
told: ContextVar[torch.device] = ContextVar("told", default=NOWHERE)
"""What compiled code hears when it asks where a tensor of the GPU is."""
_HALF = (torch.float16, torch.bfloat16)
_KERNELS = ("silu_backward", "mish_backward", "native_channel_shuffle")
"""What a GPU has a kernel for, and torch would else take apart. No other operator is like that."""
_WIDEST_HEAD = 256  # of flash attention


def is_absent(device: torch.device) -> bool:
    """Is this a GPU that torch cannot reach here?"""
    return device.type == "cuda" and not torch.cuda.is_available()


@contextmanager
def as_if_present() -> Iterator[None]:
    """While it lasts, fake tensors of a GPU take the paths that they take where one is."""
    methods: dict[str, Any] = {
        "is_cuda": property(lambda tensor: tensor.device.type == "cuda"),
        "is_cpu": property(lambda tensor: tensor.device.type == "cpu"),
        "to": _to,
        "cpu": lambda tensor, **options: _to(tensor, "cpu", **options),
        "cuda": lambda tensor, device=None, **options: _to(tensor, device or "cuda", **options),
        "type_as": _to,
        "copy_": _copy,
    }
    library = torch.library.Library("aten", "IMPL")
    with ExitStack() as stack:
        stack.callback(library._destroy)
        for name in _KERNELS:
            if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "CUDA"):
                library.impl(name, _never, "CUDA")
        for name, method in methods.items():
            stack.enter_context(replaced(FakeTensor, name, method))
        for name in ("to", "cuda"):  # of a batch that is loaded outside, and real
            stack.enter_context(replaced(Tensor, name, methods[name]))
        stack.enter_context(replaced(vars(F)["_VF"], "dropout", _dropout))
        stack.enter_context(replaced(vars(F)["_VF"], "lstm", _lstm))
        stack.enter_context(replaced(F, "scaled_dot_product_attention", _attention))
        # Autocast for a GPU switches itself off where there is none.
        common = torch.cuda.amp.common
        stack.enter_context(replaced(common, "amp_definitely_not_available", lambda: False))
        stack.enter_context(replaced(torch.cuda, "is_bf16_supported", lambda *_, **__: True))
        stack.enter_context(autocasting())
        stack.enter_context(replaced(torch.backends.cudnn, "is_acceptable", lambda _: False))
        yield


def _never(*_args: Any, **_kwargs: Any) -> Any:
    raise AssertionError("a fake tensor reached a kernel of a GPU")


@contextmanager
def replaced(owner: Any, name: str, by: Any) -> Iterator[None]:
    """`owner.name` is `by` while it lasts."""
    is_own = name in vars(owner)
    was = vars(owner).get(name)
    setattr(owner, name, by)
    try:
        yield
    finally:
        if is_own:
            setattr(owner, name, was)
        else:
            delattr(owner, name)


def _to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`Tensor.to`, by what Python sees of the devices."""
    if args and isinstance(args[0], Tensor):
        other, args = args[0], args[1:]
        args = (other.device, other.dtype, *args)
    device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(
        *args, **{name: value for name, value in kwargs.items() if name != "copy"}
    )
    copy = kwargs.get("copy", False) or any(one is True for one in args[2:])
    if device is None or device.type == tensor.device.type:
        options: dict[str, Any] = {
            "dtype": dtype or tensor.dtype,
            "copy": copy,
            "non_blocking": non_blocking,
        }
        if memory_format is not None:
            options["memory_format"] = memory_format
        return torch._C.TensorBase.to(tensor, **options)
    moved: Tensor = aten._to_copy.default(
        tensor, dtype=dtype, device=device, non_blocking=non_blocking, memory_format=memory_format
    )
    return moved


def _copy(tensor: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:  # noqa: FBT001, FBT002
    """`Tensor.copy_` without the method's device guard; torch's own decompositions call it."""
    copied: Tensor = aten.copy_.default(tensor, source, non_blocking)
    return copied


def _dropout(tensor: Tensor, p: float, train: bool) -> Tensor:  # noqa: FBT001
    """On a GPU one kernel, whose mask is of one byte an element."""
    if tensor.is_cuda and train and 0 < p < 1 and tensor.numel():
        dropped: Tensor = torch.native_dropout(tensor, p, train)[0]
        return dropped
    plain: Tensor = torch._C._VariableFunctions.dropout(tensor, p, train)
    return plain


def _lstm(*args: Any) -> Any:
    """The whole layer is one op on a GPU; on a CPU too, but not where tensors are nowhere."""
    token = told.set(torch.device("cpu"))
    try:
        return torch._C._VariableFunctions.lstm(*args)
    finally:
        told.reset(token)


_plain_attention = F.scaled_dot_product_attention


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: FBT001, FBT002
) -> Tensor:
    if not query.is_cuda:
        return _plain_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if torch.is_autocast_enabled("cuda") and query.is_floating_point():
        lower = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(lower), key.to(lower), value.to(lower)
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(lower)
    width = query.shape[-1]
    is_grouped = query.dim() == 4 and query.shape[1] != key.shape[1]
    is_dense = query.dim() == 4 and value.shape[-1] == width
    if (
        is_dense
        and attn_mask is None
        and query.dtype in _HALF
        and width <= _WIDEST_HEAD
        and not (is_causal and query.shape[-2] != key.shape[-2])
    ):
        scale = width**-0.5 if scale is None else scale
        padding = -width % 8
        if padding:
            query, key, value = (F.pad(one, (0, padding)) for one in (query, key, value))
        out: Tensor = aten._scaled_dot_product_flash_attention.default(
            query, key, value, dropout_p, is_causal, scale=scale
        )[0]
        return out[..., :width] if padding else out
    alignment = 8 if query.dtype in _HALF else 4
    if is_dense and not is_grouped and width % alignment == 0:
        needs_grad = torch.is_grad_enabled() and any(
            one.requires_grad for one in (query, key, value)
        )
        mask = None if attn_mask is None else _additive(attn_mask, query, key)
        seen: Tensor = aten._scaled_dot_product_efficient_attention.default(
            query, key, value, mask, needs_grad, dropout_p, is_causal, scale=scale
        )[0]
        return seen
    if is_causal:  # compiled code would make the mask where it believes the tensors to be
        shape = (query.shape[-2], key.shape[-2])
        attn_mask = torch.ones(shape, dtype=torch.bool, device=query.device).tril()
    plain: Tensor = aten._scaled_dot_product_attention_math.default(
        query, key, value, attn_mask, dropout_p, scale=scale, enable_gqa=enable_gqa
    )[0]
    return plain


def _additive(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """A mask as the kernel wants it: numbers to add, each row on 16-byte boundaries, expanded."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, float("-inf"))
    length = key.shape[-2]
    if padding := -mask.shape[-1] % 16:
        mask = F.pad(mask, (0, padding))[..., :length]
    return mask.expand(query.shape[0], query.shape[1], query.shape[-2], length)
