"""Settling: nothing of the script is touched, and afterwards a step's kernels are no news."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pytest
import torch

from penstock.record.settle import settle
from runs import apart, files_mapped_by_a_step


@contextmanager
def half() -> Iterator[None]:
    torch.set_default_dtype(torch.float16)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


WITHIN = {
    "nothing": nullcontext,
    "no grad": torch.no_grad,
    "inference": torch.inference_mode,
    "half": half,
    "deterministic": deterministic,
    "meta": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("within", WITHIN)
def test_a_script_finds_its_numbers_and_defaults_as_they_were(within: str) -> None:
    context: AbstractContextManager[object] = WITHIN[within]()
    with context:
        state, dtype = torch.get_rng_state(), torch.get_default_dtype()
        grad = torch.is_grad_enabled()
        settle.__wrapped__()  # not only the first time
        assert torch.equal(torch.get_rng_state(), state)
        assert (torch.get_default_dtype(), torch.is_grad_enabled()) == (dtype, grad)


def test_the_code_of_kernels_is_there_before_a_step_runs() -> None:
    assert apart(files_mapped_by_a_step) < 3 << 20
