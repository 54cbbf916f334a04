"""How many bytes a call is about to take, asked of torch before it runs."""

from collections.abc import Hashable, Iterable
from types import NoneType
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from penstock.dispatch.generators import draw_of, rewind
from penstock.dispatch.schema import Facts, tensors_in
from penstock.dispatch.storage import (
    components_of,
    components_on,
    is_sparse,
    key_of,
    nbytes_of,
    storage_of,
)

__all__ = ["output_bytes"]

_META = torch.device("meta")
_ANSWERS: dict[Hashable, int] = {}
"""What was asked before: a step repeats its calls, and a meta kernel takes 0.3 ms."""
_MOST_ANSWERS = 1 << 14
_PLAIN = (
    *(bool, int, float, complex, str, NoneType),
    *(torch.dtype, torch.layout, torch.device, torch.memory_format),
)
"""Of arguments that are tensors or one of these nothing is held by what is remembered of them."""


def output_bytes(
    func: OpOverload,
    facts: Facts,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    device: torch.device,
) -> int:
    """Bytes of the new storages that a call makes on `device`, by running it on meta tensors.

    Where a result's shape depends on data, a guess from above: as much as its inputs. Of sparse ones torch
    does not tell: then what dense ones would make, but no more than that guess.
    """
    if facts.mutates:
        return 0
    question = _question(func, args, kwargs)
    if question in _ANSWERS:
        return _ANSWERS[question]
    draw = draw_of(kwargs, device) if facts.random else None
    given = tensors_in((args, kwargs))
    sparse = [one for one in given if is_sparse(one)]
    try:
        shadow = _Shadow()
        result = func(*shadow.of(args), **shadow.of(_on_meta(kwargs)))
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        answer = _bytes_of(sparse or given)
    else:
        known = {key_of(storage_of(t)) for t in shadow.made}
        made = map(storage_of, components_on(tensors_in(result), _META))
        answer = sum(nbytes_of(storage) for storage in made if key_of(storage) not in known)
        if sparse:
            answer = min(answer, _bytes_of(given))
    finally:
        if draw is not None:
            rewind(draw)
    if question is not None:
        if len(_ANSWERS) == _MOST_ANSWERS:
            _ANSWERS.clear()
        _ANSWERS[question] = answer
    return answer


def _question(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
    """All that decides what a call makes; None if that cannot be told without holding it."""
    try:
        return func, torch.get_default_dtype(), _told(args), _told(kwargs)
    except _Untold:
        return None


class _Untold(Exception):
    pass


def _told(given: Any) -> Hashable:
    if isinstance(given, Tensor):
        if is_sparse(given):
            raise _Untold  # how many elements a sparse one has, its shape does not tell
        return given.size(), given.stride(), given.dtype
    if isinstance(given, (list, tuple)):
        return type(given), tuple(map(_told, given))
    if isinstance(given, dict):
        return tuple((name, _told(one)) for name, one in given.items() if name != "generator")
    if isinstance(given, _PLAIN):
        return type(given), given  # 1, 1.0 and True are equal
    raise _Untold


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    components = (one for tensor in tensors for one in components_of(tensor))
    return sum(one.numel() * one.element_size() for one in components)


class _Shadow:
    """Arguments with every tensor replaced by one of the same shape that has no bytes."""

    def __init__(self) -> None:
        self.made: list[Tensor] = []

    def of(self, given: Any) -> Any:
        if isinstance(given, Tensor):
            if is_sparse(given):
                made = torch.empty(given.size(), dtype=given.dtype, device=_META)
            else:
                made = torch.empty_strided(
                    given.size(), given.stride(), dtype=given.dtype, device=_META
                )
            self.made.append(made)
            return made
        if isinstance(given, (list, tuple)):
            return type(given)(self.of(one) for one in given)
        if isinstance(given, dict):
            return {name: self.of(one) for name, one in given.items()}
        return given


def _on_meta(kwargs: dict[str, Any]) -> dict[str, Any]:
    moved = {name: one for name, one in kwargs.items() if name not in ("generator", "pin_memory")}
    if moved.get("device") is not None:
        moved["device"] = _META
    return moved
