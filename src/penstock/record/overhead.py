"""What a process takes beside its tensors once it trains: code of kernels, MKL's packed matrices, pools.

How much depends on the sizes and the shapes of a step, and libraries keep it: the second model that a
process trains adds little to the first one's. So on a CPU each model is trained in a process of its own,
a fork of one that has only imported. On a GPU it is what cuBLAS works in, of one size for all models, and
this process tells it.
"""

import gc
import json
import pickle
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from statistics import median

import torch

from penstock.dispatch.resident import CAllocator, CpuMeter, CudaMeter, live_tensor_bytes
from penstock.errors import InternalError
from penstock.record.settle import settle
from penstock.record.yardsticks import Loop

__all__ = ["overheads"]

_STEPS = 3
_PATIENCE = 120.0
"""Seconds after which a model that takes one has hung."""


def overheads(
    loops: Sequence[Loop], device: torch.device, meter: CpuMeter | CudaMeter
) -> dict[str, int]:
    """Bytes by kind of model: the median over those of that kind."""
    plain = [loop for loop in loops if not loop.is_mixed]
    if device.type == "cpu":
        found = _in_processes(plain)
    else:
        base = _beside(device, meter)
        found = [_trained(loop, device, meter) - base for loop in plain]
    by_kind: defaultdict[str, list[int]] = defaultdict(list)
    for loop, nbytes in zip(plain, found, strict=True):
        by_kind[loop.kind].append(max(0, nbytes))
    return {kind: int(median(those)) for kind, those in by_kind.items()}


def _beside(device: torch.device, meter: CpuMeter | CudaMeter) -> int:
    gc.collect()
    return meter.used() - live_tensor_bytes(device)


def _trained(loop: Loop, device: torch.device, meter: CpuMeter | CudaMeter) -> int:
    """What is held beside tensors after a few steps."""
    model, optimizer = loop.made(device)
    for _ in range(_STEPS):
        model().backward()
        optimizer.step()
    return _beside(device, meter)


def _in_processes(loops: Sequence[Loop]) -> list[int]:
    # Not forks of this process, which may have threads; and -P: no module that lies in the person's
    # folder may take the place of one of ours.
    asked = subprocess.run(
        [sys.executable, "-P", "-m", __name__],
        input=pickle.dumps([*loops]),
        capture_output=True,
        check=False,
    )
    if asked.returncode:
        last = (asked.stderr.decode().strip().splitlines() or ["no message"])[-1]
        raise InternalError(f"what a process takes beside tensors could not be measured: {last}")
    found: list[int] = json.loads(asked.stdout)
    return found


def _main() -> None:
    loops: list[Loop] = pickle.load(sys.stdin.buffer)  # noqa: S301  (our own process wrote it)
    import_module("torch._dynamo")  # as the first optimizer does: here once for all forks
    context = get_context("fork")
    found: list[int | str] = []
    for loop in loops:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_tell, args=(there, loop))
        process.start()
        there.close()
        found.append(here.recv() if here.poll(_PATIENCE) else f"{loop.label}: it has hung")
        process.kill()
        process.join()
        if isinstance(found[-1], str):
            sys.exit(found[-1])
    json.dump(found, sys.stdout)


def _tell(there: Connection, loop: Loop) -> None:
    device, meter = torch.device("cpu"), CpuMeter()
    try:
        settle()  # not before the fork: it wakes the threads of torch's pool, which no fork has
        CAllocator()  # returns what is freed
        base = _beside(device, meter)
        there.send(_trained(loop, device, meter) - base)
    except Exception as error:
        there.send(f"{loop.label}: {error}")


if __name__ == "__main__":
    _main()
