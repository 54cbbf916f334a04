"""The state of random number generators, kept so that an op can be run again with the same draws."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

__all__ = ["Draw", "draw_of", "replaying", "rewind"]


@dataclass(frozen=True, slots=True)
class Draw:
    """Where a generator stood before an op drew from it."""

    generator: Generator
    state: Tensor | tuple[int, int]  # on CUDA (seed, offset), which costs no sync


def draw_of(kwargs: Mapping[str, Any], device: torch.device) -> Draw:
    """Where the generator that a call with these `kwargs` draws from stands now."""
    generator = kwargs.get("generator")
    if generator is None:
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            generator = torch.cuda.default_generators[index]
        else:
            generator = torch.default_generator
    return Draw(generator, _state(generator))


@contextmanager
def replaying(draw: Draw) -> Iterator[None]:
    """Inside, the generator stands where it stood; afterwards, where it stands now."""
    now = _state(draw.generator)
    _restore(draw.generator, draw.state)
    try:
        yield
    finally:
        _restore(draw.generator, now)


def rewind(draw: Draw) -> None:
    """Put the generator back for good: the op that drew from it failed and will be tried again."""
    _restore(draw.generator, draw.state)


def _state(generator: Generator) -> Tensor | tuple[int, int]:
    if generator.device.type == "cuda":
        return generator.initial_seed(), generator.get_offset()
    return generator.get_state()


def _restore(generator: Generator, state: Tensor | tuple[int, int]) -> None:
    if isinstance(state, tuple):
        generator.manual_seed(state[0])
        generator.set_offset(state[1])
    else:
        generator.set_state(state)
