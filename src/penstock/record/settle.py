"""What a process does once, so that the first step is like the others."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from penstock.ir.machine import Machine
from penstock.ir.plan import Plan
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.record.machine import describe
from penstock.record.yardsticks import tiny_loops
from penstock.solve.best import outcome

__all__ = ["settle"]


@cache
def settle() -> None:
    """Do once, small and on one thread, what would otherwise disturb the first step. Takes 0.1 s.

    The first call into MKL's vector functions picks their implementation; made by two threads at
    once, one of them may briefly run another one, of other accuracy. And what libraries set up when
    they are first used (the code of torch's kernels, 20 MiB; torch's compiler, which the first
    optimizer imports; oneDNN; autograd; our compiled simulator) takes memory that is not the step's.
    Draws no random number, and does the same whatever the script's defaults are.
    """
    with (
        torch.device("cpu"),
        _single_precision(),
        torch.autocast("cpu", enabled=False),
        torch.inference_mode(mode=False),
        torch.enable_grad(),
        torch.random.fork_rng([]),
    ):
        few = torch.linspace(0.1, 0.9, 8)
        for function in (torch.tanh, torch.exp, torch.log, torch.erf, torch.sqrt, torch.sin):
            function(few)
        for loop in tiny_loops():
            model = loop.make()
            optimizer = loop.optimizer(model.parameters())
            with torch.autocast("cpu", torch.bfloat16, enabled=loop.is_mixed):
                loss = model()
            loss.backward()
            optimizer.step()
    tiny = parse("f a x:I1 -> h:A1 1us")
    outcome(Problem(tiny, Machine(describe(torch.device("cpu"), ()).device), 1 << 20), Plan())


@contextmanager
def _single_precision() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
