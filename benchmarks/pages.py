"""What memory costs that a process takes from the system: by how much, and how long it was free.

    python benchmarks/pages.py [--json FILE]

A mapping is made, one byte of each page is written, and the mapping is given back: in nanoseconds a byte
(medians of rounds). On a plain machine all rows are alike. A virtual machine may hand free memory back
to its host after a while: then more of it is dearer, and some that was free for long.
"""

import argparse
import mmap
import time
from pathlib import Path
from statistics import median

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from _where import where, write

GIB = 1 << 30
SIZES = (GIB // 4, GIB, 4 * GIB)
PAUSES = (0.0, 5.0)


def taken(nbytes: int, *, huge: bool) -> float:
    """Seconds to take `nbytes` from the system, in huge pages if they are asked for."""
    mapping = mmap.mmap(-1, nbytes)
    if huge:
        mapping.madvise(mmap.MADV_HUGEPAGE)
    pages = np.frombuffer(mapping, np.uint8)[:: mmap.PAGESIZE]
    begun = time.perf_counter()
    pages[:] = 1
    seconds = time.perf_counter() - begun
    del pages
    mapping.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sizes = [nbytes for nbytes in SIZES if nbytes < psutil.virtual_memory().available // 2]
    found: dict[tuple[bool, int, float], list[float]] = {}
    for _ in range(options.rounds):
        for huge in (False, True):
            for nbytes in sizes:
                taken(nbytes, huge=huge)
                for pause in PAUSES:
                    time.sleep(pause)
                    each = taken(nbytes, huge=huge) / nbytes
                    found.setdefault((huge, nbytes, pause), []).append(each)
    rows = [
        {"huge": huge, "nbytes": nbytes, "pause": pause, "ns_a_byte": 1e9 * median(each)}
        for (huge, nbytes, pause), each in found.items()
    ]
    table = Table(title="Memory taken from the system, ns a byte")
    for head in ("pages", "GiB", "free for, s", "ns a byte"):
        table.add_column(head, justify="right")
    for row in rows:
        pages = "huge" if row["huge"] else "small"
        size, each = f"{row['nbytes'] / GIB:g}", f"{row['ns_a_byte']:.2f}"
        table.add_row(pages, size, f"{row['pause']:g}", each)
    Console().print(table)
    if options.json:
        write(options.json, {**where(), "rounds": options.rounds, "rows": rows})


if __name__ == "__main__":
    main()
