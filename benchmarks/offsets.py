"""Can hard buffers be packed in their capacity? The instances of google/minimalloc (ASPLOS 2023).

    python benchmarks/offsets.py [--data DIR] [--only A B] [--seconds 60] [--json FILE]

Of each instance: the most bytes alive at once and the best greedy packing, as shares of the capacity;
then the packing that `solve.offsets.exact` finds in the time given, checked for overlaps. Ends with an
error if an instance is not packed.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from _data import add_option, folder
from _where import where, write
from penstock.interop.minimalloc import Instance, read_minimalloc
from penstock.solve.offsets import assign, check, exact
from penstock.solve.skyline import Buffer, pack


def packed(instance: Instance, seconds: float) -> dict[str, Any]:
    wanted, capacity = instance.buffers, instance.capacity
    greedy = assign(wanted)
    began = time.perf_counter()
    found = exact(wanted, capacity=capacity, seconds=seconds)
    took = time.perf_counter() - began
    faults = check(wanted, found.offsets)
    tops = (low + buffer.nbytes for low, buffer in zip(found.offsets, wanted, strict=True))
    height = max(tops)
    return {
        "name": instance.name,
        "buffers": len(wanted),
        "capacity": capacity,
        "alive": greedy.floor,
        "greedy": greedy.height,
        "height": height,
        "seconds": took,
        "fits": not faults and height <= capacity,
        "faults": faults[:3],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_option(parser)
    parser.add_argument("--only", nargs="*", help="names of instances, such as A")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each instance")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    paths = sorted(folder("minimalloc", options.data).glob("*.csv"))
    instances = [read_minimalloc(path) for path in paths]
    pack([Buffer(0, 2, 1)], 1, seconds=1)  # compiled, or read from the cache, not on the clock
    table = Table(title="Packed under their capacity")
    for head in ("instance", "buffers", "alive", "greedy", "packed", "seconds"):
        table.add_column(head, justify="left" if head == "instance" else "right")
    rows = []
    for instance in instances:
        if options.only and instance.name not in options.only:
            continue
        row = packed(instance, options.seconds)
        rows.append(row)
        shares = (f"{row[what] / row['capacity']:.3f}" for what in ("alive", "greedy", "height"))
        verdict = "" if row["fits"] else f" NOT PACKED {' '.join(row['faults'])}"
        table.add_row(row["name"], str(row["buffers"]), *shares, f"{row['seconds']:.2f}{verdict}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if options.json:
        write(options.json, {**where(), "rows": rows})
    return 0 if all(row["fits"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
