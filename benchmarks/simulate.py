"""How long the simulator takes for a step of 10,000 ops, once compiled.

    python benchmarks/simulate.py [--ops 10000] [--repeat 51]

Prints medians in milliseconds, for a plan that keeps all and for one in which half of the saved values
are swapped and a quarter recomputed; `lower` and `price` apart, since a search over plans pays both.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import NamedTuple

import numba
import numpy as np
import psutil

from penstock.ir.machine import Device, Link, Machine, Tier
from penstock.ir.plan import Plan, Recompute, Swap, check
from penstock.ir.trace import Kind, Op, OpIndex, Phase, StorageId, Trace, Value, ValueId
from penstock.simulate.lower import lower
from penstock.simulate.run import price

MIB = 2**20


def chain(ops: int) -> Trace:
    """A forward chain of saved values, and a backward that reads them in reverse."""
    layers = ops // 2
    forward = [
        Op(
            OpIndex(n),
            "aten.mm",
            Phase.FORWARD,
            (ValueId(n - 1),) if n else (),
            (ValueId(n),),
            1e-3,
        )
        for n in range(layers)
    ]
    backward = [
        Op(
            OpIndex(layers + k),
            "aten.mm",
            Phase.BACKWARD,
            (ValueId(layers - 1 - k), *((ValueId(layers + k - 1),) if k else ())),
            (ValueId(layers + k),),
            2e-3,
        )
        for k in range(layers)
    ]
    last = 2 * layers - 1
    saved = [
        Value(
            ValueId(n), StorageId(n), 4 * MIB, Kind.ACTIVATION, OpIndex(n), OpIndex(last - n), True
        )
        for n in range(layers)
    ]
    gradients = [
        Value(
            ValueId(layers + k),
            StorageId(layers + k),
            4 * MIB,
            Kind.TEMPORARY,
            OpIndex(layers + k),
            OpIndex(min(layers + k + 1, last)),
        )
        for k in range(layers)
    ]
    return Trace((*forward, *backward), (*saved, *gradients))


def mixed(trace: Trace) -> Plan:
    """Of four saved values, two are swapped, one is remade from its neighbour, one stays."""
    decisions: list[Swap | Recompute] = []
    for gap in trace.saved_gaps():
        assert gap.stop is not None
        if gap.value % 2 and gap.stop - gap.start > 32:
            decisions.append(
                Swap(gap, "disk", OpIndex(gap.start + 1), OpIndex(max(gap.start + 2, gap.stop - 8)))
            )
        elif gap.value % 4 == 2:
            decisions.append(Recompute(gap, gap.stop))
    return Plan(tuple(decisions), "mixed")


class Taken(NamedTuple):
    """Medians over the repetitions, in milliseconds."""

    wall: float
    cpu: float  # of this thread: what a machine with other work to do cannot blur


def taken(call: Callable[[], object], repeat: int) -> Taken:
    call()  # compiles
    walls, cpus = [], []
    for _ in range(repeat):
        wall, cpu = time.perf_counter(), time.thread_time()
        call()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.thread_time() - cpu)
    return Taken(statistics.median(walls) * 1e3, statistics.median(cpus) * 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ops", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=51)
    given = parser.parse_args()

    link = Link(8 * 2**30, 20e-6)
    machine = Machine(Device("cpu", 2**40), (Tier("disk", 2**40, link, link, drag=0.05),))
    trace = chain(given.ops)
    print(
        f"{platform.machine()}, {psutil.cpu_count()} cores, load {psutil.getloadavg()[0]:.1f}; "
        f"python {platform.python_version()}, numpy {np.__version__}, numba {numba.__version__}, "
        f"penstock {version('penstock')}"
    )
    print(f"{len(trace.ops):,} ops, median of {given.repeat}, milliseconds")
    print(f"{'plan':<8}{'actions':>9}{'call':>8}{'wall':>9}{'cpu':>9}")
    for plan in (Plan(), mixed(trace)):
        check(trace, plan, machine)
        lowered = partial(lower, trace, plan, int(0.6 * trace.peak))
        schedule = lowered()
        for call in (lowered, partial(price, schedule, machine)):
            wall, cpu = taken(call, given.repeat)
            name = call.func.__name__
            print(f"{plan.policy:<8}{len(schedule.verb):>9,}{name:>8}{wall:>9.2f}{cpu:>9.2f}")


if __name__ == "__main__":
    main()
