"""Autocast of a GPU that is not there.

Torch's own kernels cast what they are told is on a GPU, and nothing is (see `absent`). These take their
place: which operators, torch says itself; what each does is the table "CUDA Op-Specific Behavior"
of its autocast documentation (`torch.amp`).
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_map_only

from penstock.dispatch.schema import tensors_in

__all__ = ["autocasting"]

_KEY = "AutocastCUDA"
_LOWER = frozenset(
    [
        "_convolution",
        "convolution",
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_tbc",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "cudnn_convolution",
        "cudnn_convolution_transpose",
        "prelu",
        "addmm",
        "addmv",
        "addr",
        "matmul",
        "einsum",
        "mm",
        "mv",
        "linalg_vecdot",
        "linear",
        "addbmm",
        "baddbmm",
        "bmm",
        "chain_matmul",
        "linalg_multi_dot",
        "_thnn_fused_lstm_cell",
        "_thnn_fused_gru_cell",
        "lstm_cell",
        "gru_cell",
        "rnn_tanh_cell",
        "rnn_relu_cell",
        "_scaled_dot_product_flash_attention",
        "scaled_dot_product_attention",
    ]
)
_WIDEST = frozenset(
    [
        "addcdiv",
        "addcmul",
        "atan2",
        "bilinear",
        "cross",
        "dot",
        "vdot",
        "grid_sampler",
        "index_put",
        "tensordot",
        "scatter_add",
    ]
)
_RESULT = frozenset(
    [
        "prod",
        "softmax",
        "log_softmax",
        "cumprod",
        "cumsum",
        "linalg_vector_norm",
        "linalg_matrix_norm",
        "sum",
    ]
)
"""Casts its result instead of what it reads. All others are computed in float32."""


@contextmanager
def autocasting() -> Iterator[None]:
    """While it lasts, autocast for cuda casts fake tensors of a GPU."""
    library = torch.library.Library("aten", "IMPL")
    casts = _Casts()
    clear = torch.clear_autocast_cache

    def forget() -> None:
        casts.known.clear()
        clear()

    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    with warnings.catch_warnings(action="ignore"):  # torch warns of what it is asked to replace
        for full in torch._C._dispatch_get_all_op_names():
            if full.startswith("aten::") and has_kernel(full, _KEY):
                library.impl(full.removeprefix("aten::"), casts.kernel(full), _KEY)
    torch.clear_autocast_cache = forget
    try:
        yield
    finally:
        torch.clear_autocast_cache = clear
        library._destroy()


class _Casts:
    """Makes the kernels; holds the weights that they have cast, until the region ends."""

    def __init__(self) -> None:
        self.known: dict[
            int, tuple[Tensor, Tensor]
        ] = {}  # by id: a weight, and what it was cast to

    def kernel(self, full: str) -> Callable[..., Any]:
        name, _, overload = full.removeprefix("aten::").partition(".")
        func: OpOverload = getattr(getattr(torch.ops.aten, name), overload or "default")
        cast = self._cast_of(func, name)

        def kernel(*args: Any, **kwargs: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(_DISPATCH_KEY)):
                args, kwargs = cast(args, kwargs)
                return func(*args, **kwargs)

        return kernel

    def _cast_of(self, func: OpOverload, name: str) -> Callable[[Any, Any], tuple[Any, Any]]:
        if name in _LOWER:
            return lambda *given: self._all(given, torch.get_autocast_dtype("cuda"))
        if name in _WIDEST:
            return lambda *given: self._all(given, _widest(given))
        if name in _RESULT:
            place = [argument.name for argument in func._schema.arguments].index("dtype")
            return lambda args, kwargs: _with_dtype(args, kwargs, place)
        return lambda *given: self._all(given, torch.float32)

    def _all(self, given: tuple[Any, Any], dtype: torch.dtype) -> tuple[Any, Any]:
        cast: tuple[Any, Any] = tree_map_only(Tensor, lambda one: self._one(one, dtype), given)
        return cast

    def _one(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        if not _is_cast(tensor) or tensor.dtype == dtype:
            return tensor
        is_weight = (
            dtype == torch.get_autocast_dtype("cuda")
            and tensor.dtype == torch.float32
            and tensor.requires_grad
            and tensor.is_leaf
            and not tensor._is_view()
            and torch.is_autocast_cache_enabled()
        )
        if not is_weight:
            return tensor.to(dtype)
        if id(tensor) not in self.known:
            self.known[id(tensor)] = tensor, tensor.to(dtype)
        return self.known[id(tensor)][1]


_DISPATCH_KEY = getattr(torch._C.DispatchKey, _KEY)


def _is_cast(tensor: Tensor) -> bool:
    is_real = tensor.is_floating_point() and tensor.dtype != torch.float64
    return is_real and tensor.device.type == "cuda"


def _widest(given: tuple[Any, Any]) -> torch.dtype:
    cast = [one.dtype for one in tensors_in(given) if _is_cast(one)]
    return torch.float32 if torch.float32 in cast else torch.get_autocast_dtype("cuda")


def _with_dtype(
    args: tuple[Any, ...], kwargs: dict[str, Any], place: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments, with float32 for the result if nobody asked for another dtype."""
    if not _is_cast(args[0]) or kwargs.get("dtype") is not None:
        return args, kwargs
    if place < len(args):
        return (*args[:place], args[place] or torch.float32, *args[place + 1 :]), kwargs
    return args, {**kwargs, "dtype": torch.float32}
