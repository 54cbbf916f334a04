"""Measure this machine: what each op costs on it, by training small models of many shapes.

What it learns is written into the machine, so that `simulate.roofline` can price steps that were
never run.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any, TypeAlias

import torch

from penstock.dispatch.clock import Clock
from penstock.dispatch.resident import CAllocator, CpuMeter, CudaMeter
from penstock.ir.machine import Machine, Rate, Sample
from penstock.ir.trace import Op, Phase, Trace
from penstock.record.measure import stopwatch_for
from penstock.record.overhead import overheads
from penstock.record.step import Recorder
from penstock.record.yardsticks import Loop, large_loops, loops
from penstock.simulate.faults import Taken, fitted_faults
from penstock.simulate.roofline import fitted, host_key, keys_of

__all__ = ["calibrated"]

_WARM_UP, _REPEATS = 2, 5
_PASSES = 2
"""How often each model is trained, with the others between. The faster time counts: others may use the
machine, and an op is never faster than it can be."""
_TELLING = 4
"""An op has rates of its own if it was seen with sizes that differ by this factor at least."""
_FEW = 3
"""Different sizes that it needs for that."""

Keyed: TypeAlias = tuple[str, Sample]
"""An op that ran, and a name under which its cost is looked up."""


def calibrated(
    machine: Machine,
    device: torch.device,
    meter: CpuMeter | CudaMeter,
    allocator: CAllocator | None = None,
    told: Callable[[str, int, int], None] = lambda label, done, of: None,
) -> Machine:
    """`machine` with the cost of its ops. Takes four minutes on a CPU.

    May `allocator` keep what is freed, ops are timed while it does: of the two times of an op that is the
    one which repeats. In steps where all goes back it is seen what ops take, and what that costs.
    `told(label, done, of)` hears of each model before it is trained.
    """
    trained = [*loops(), *(large_loops() if device.type == "cuda" else ())]
    passes: list[list[Keyed]] = []
    fresh: list[Keyed] = []  # the same, where what is freed goes back
    taken: list[Taken] = []
    keeper = allocator if allocator is not None and allocator.may_keep else None
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        beside = overheads(trained, device, meter)
        for number in range(_PASSES):
            passes.append([])
            for done, loop in enumerate(trained, number * len(trained)):
                told(loop.label, done, _PASSES * len(trained))
                if keeper is None:
                    passes[-1] += _measured(loop, device, meter)[1]
                    continue
                if not number:
                    tight, seen = _measured(loop, device, meter)
                    fresh += seen
                with _kept(keeper):
                    calm, seen = _measured(loop, device, meter)
                passes[-1] += seen
                if not number:
                    taken.append(Taken(tight[0], _seconds(tight), _seconds(calm)))
    samples: defaultdict[str, list[Sample]] = defaultdict(list)
    for same in zip(*passes, fresh or passes[0], strict=True):
        key, sample = min(same[:-1], key=lambda one: one[1].seconds)
        memory = same[-1][1] if fresh else sample
        samples[key].append(sample._replace(workspace=memory.workspace, unwritten=memory.unwritten))
    costs = {key: fitted(seen) for key, seen in samples.items() if _tells(key, seen)}
    overhead = min(beside.values())
    costs |= {kind: replace(costs[kind], library=held - overhead) for kind, held in beside.items()}
    rates = {
        dtype: _best(samples, f"matmul {dtype}")
        for dtype in ("float32", "bfloat16")
        if f"matmul {dtype}" in samples
    }
    bandwidth = costs.get("pointwise in place float32", Rate()).bandwidth
    device_now = replace(
        machine.device,
        bandwidth=bandwidth,
        flops=rates,
        costs=costs,
        overhead=overhead,
        faults=fitted_faults(taken) if taken else machine.device.faults,
        costs_are_calm=bool(taken),
    )
    return replace(machine, device=device_now)


@contextmanager
def _kept(allocator: CAllocator) -> Iterator[None]:
    """What is freed meanwhile stays."""
    allocator.keep()
    try:
        yield
    finally:
        allocator.tighten()


def _tells(key: str, seen: Sequence[Sample]) -> bool:
    """Were there enough sizes to tell a launch from a rate?"""
    if not key.startswith("aten."):
        return True
    sizes = {one.moved for one in seen}
    return len(sizes) >= _FEW and max(sizes) >= _TELLING * max(1, min(sizes))


def _best(samples: dict[str, list[Sample]], key: str) -> float:
    """The highest rate of arithmetic that was seen, per second."""
    return max(one.flops / one.seconds for one in samples[key] if one.seconds)


def _measured(
    loop: Loop, device: torch.device, meter: CpuMeter | CudaMeter
) -> tuple[list[Trace], list[Keyed]]:
    """All that one loop tells: of its ops, and of the host before each."""
    traces = _steps(loop, device, meter)
    hosts = _queued(loop, device, traces[0]) if device.type == "cuda" else _hosts(traces)
    return traces, [*_samples(traces), *hosts]


def _seconds(traces: Sequence[Trace]) -> float:
    """What the steps took, as the sum of each op's median."""
    found = 0.0
    for ops in zip(*(trace.ops for trace in traces), strict=True):
        found += median(op.seconds for op in ops) + median(op.host_seconds for op in ops)
    return found


def _samples(traces: Sequence[Trace]) -> Iterator[Keyed]:
    """Each op of a step by the names under which it is looked up, with its median over the steps."""
    for ops in zip(*(trace.ops for trace in traces), strict=True):
        op: Op = ops[0]
        made = [traces[0].values[value] for value in traces[0].fresh[op.index]]
        sample = Sample(
            op.flops,
            op.moved,
            median(one.seconds for one in ops),
            int(median(one.workspace for one in ops)),
            sum(one.unwritten for one in made) / max(1, sum(one.allocated for one in made)),
        )
        for key in keys_of(op):
            yield key, sample


def _hosts(traces: Sequence[Trace]) -> Iterator[Keyed]:
    """The host's time before each op, by phase."""
    steps = zip(*(trace.ops for trace in traces), strict=True)
    for ops, freed in zip(steps, traces[0].columns.freed_before.tolist(), strict=True):
        yield host_key(ops[0]), Sample(0, freed, median(one.host_seconds for one in ops))


def _queued(loop: Loop, device: torch.device, trace: Trace) -> Iterator[Keyed]:
    """The host's time for an op of each phase when it only asks for it: the recorder would take its share.

    Each phase begins on an idle device, whose queue then has room for all of the phase.
    """
    model, optimizer = loop.made(device)
    seconds: defaultdict[Phase, list[float]] = defaultdict(list)

    def timed(phase: Phase, run: Callable[[], Any]) -> Any:
        torch.cuda.synchronize(device)
        begun = time.perf_counter()
        result = run()
        seconds[phase].append(time.perf_counter() - begun)
        return result

    for _ in range(_WARM_UP + _REPEATS):
        with torch.autocast(device.type, torch.bfloat16, enabled=loop.is_mixed):
            loss = timed(Phase.FORWARD, model)
        timed(Phase.BACKWARD, loss.backward)
        del loss
        timed(Phase.OPTIMIZER, optimizer.step)
        optimizer.zero_grad()
    for phase, taken in seconds.items():
        ops = [op for op in trace.ops if op.phase is phase]
        if ops:
            yield host_key(ops[0]), Sample(0, 0, median(taken[_WARM_UP:]) / len(ops))


def _steps(loop: Loop, device: torch.device, meter: CpuMeter | CudaMeter) -> list[Trace]:
    """The traces of a few steps of one loop."""
    model, optimizer = loop.made(device)
    recorder = Recorder(device, stopwatch_for(device, meter))
    traces = []
    recorder.open()
    try:
        with Clock(recorder.run):
            for _ in range(_WARM_UP + _REPEATS):
                recorder.begin()
                with torch.autocast(device.type, torch.bfloat16, enabled=loop.is_mixed):
                    loss = model()
                loss.backward()
                del loss
                recorder.optimizer_begins(optimizer)
                optimizer.step()
                recorder.optimizer_ends(optimizer)
                optimizer.zero_grad()
                traces.append(recorder.end().trace)
    finally:
        recorder.close()
    return traces[_WARM_UP:]
