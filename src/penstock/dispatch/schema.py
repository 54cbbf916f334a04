"""What a torch operator does to its arguments, read off its schema once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from penstock.dispatch.storage import is_sparse

__all__ = ["TRAINING_ARGUMENT", "Facts", "facts_of", "tensors_in"]

aten = torch.ops.aten

# Batch norm updates its running statistics in place, and its schema does not say so.
_SECRET_WRITES: dict[OpOverload, tuple[int, ...]] = {
    aten.native_batch_norm.default: (3, 4),
    aten.cudnn_batch_norm.default: (3, 4),
    aten.miopen_batch_norm.default: (3, 4),
}
TRAINING_ARGUMENT = 5
"""Position of batch norm's argument that says whether it updates its statistics."""

# What these do, they do outside the process or to state that no argument shows. The last one takes bytes
# over that others made: a batch that a loader's worker sends.
_NEVER_AGAIN = frozenset({"c10d", "_c10d_functional", "c10d_functional", "symm_mem", "aten.set_"})


# Of these, torch's tags do not tell it.
_SIZED_BY_DATA = ("aten._coalesce", "aten._to_sparse")


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about one operator overload."""

    name: str  # e.g. `aten.mm`
    is_view: bool  # makes views and touches no byte, unless of a sparse tensor: see `makes_view`
    mutates: tuple[int | str, ...]  # arguments written in place: position, or keyword
    secret_writes: tuple[int, ...]  # written too, in training, though the schema is silent
    random: bool
    sized_by_data: bool  # the shape of what it makes depends on values
    repeatable: bool

    def makes_view(self, args: Sequence[Any]) -> bool:
        """Does this call touch no byte? Of a sparse tensor most views are made by copying."""
        return self.is_view and not (args and is_sparse(args[0]))

    def written(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
        """The tensors among the arguments that the call writes in place."""
        for where in self.mutates:
            if isinstance(where, str):
                given = kwargs.get(where)
            else:
                given = args[where] if where < len(args) else None
            if isinstance(given, Tensor):
                yield given
            elif isinstance(given, (list, tuple)):
                yield from (one for one in given if isinstance(one, Tensor))
        if self.secret_writes and args[TRAINING_ARGUMENT]:
            for position in self.secret_writes:
                if isinstance(args[position], Tensor):
                    yield args[position]

    def again(self, args: Sequence[Any]) -> list[Any]:
        """The arguments with which a second run of the call changes no model state.

        Batch norm in training ignores the running statistics except to update them: without them
        its outputs are the same bits.
        """
        if self.secret_writes and args[TRAINING_ARGUMENT]:
            return [None if i in self.secret_writes else a for i, a in enumerate(args)]
        return list(args)


@cache
def facts_of(func: OpOverload) -> Facts:
    schema = func._schema
    mutates: list[int | str] = []
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            mutates.append(argument.name if argument.kwarg_only else position)
    namespace, _, overload = func.name().partition("::")
    name = f"{namespace}.{overload.split('.')[0]}"
    return Facts(
        name=name,
        is_view=func.is_view or func in _METADATA,
        mutates=tuple(mutates),
        secret_writes=_SECRET_WRITES.get(func, ()),
        random=torch.Tag.nondeterministic_seeded in func.tags,
        sized_by_data=torch.Tag.dynamic_output_shape in func.tags
        or name.startswith(_SIZED_BY_DATA),
        repeatable=_NEVER_AGAIN.isdisjoint((namespace, name)),
    )


# These neither make nor read bytes.
_METADATA = frozenset(
    {
        aten.detach.default,
        aten.alias.default,
        aten.lift_fresh.default,
        aten._unsafe_view.default,
        aten._reshape_alias.default,
        torch.ops.profiler._record_function_enter_new.default,
        torch.ops.profiler._record_function_exit._RecordFunction,
    }
)


def tensors_in(values: Any, into: list[Tensor] | None = None) -> list[Tensor]:
    """The tensors in arguments or results: lists, tuples and dicts are entered, in order."""
    found: list[Tensor] = [] if into is None else into
    if isinstance(values, Tensor):
        found.append(values)
    elif isinstance(values, (list, tuple)):
        for one in values:
            if isinstance(one, Tensor):
                found.append(one)
            elif isinstance(one, (list, tuple, dict)):
                tensors_in(one, found)
    elif isinstance(values, dict):
        for one in values.values():
            tensors_in(one, found)
    return found
