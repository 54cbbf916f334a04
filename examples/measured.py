"""Run a script as Python would, and write what memory its training steps took.

    python examples/measured.py OUT.json STEPS SCRIPT [ARGUMENTS...]

Writes bytes: `base`, what the process held when it began to build its model; `data`, what of its
address space counted against RLIMIT_DATA then; `peaks`, the most that each step held above `base`.
Penstock counts a budget from the same base, and reads the same counters of the kernel.

The first STEPS steps run with the C library's allocator as it is. Ahead of those that follow it is
told, as Penstock tells it, to return what is freed: their peaks are what the step needs, without
what the library keeps for later.
"""

import json
import re
import runpy
import sys
from pathlib import Path

from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from penstock.dispatch.resident import CAllocator, CpuMeter


def main() -> None:
    out, steps, script, *arguments = sys.argv[1:]
    meter = CpuMeter()
    start: dict[str, int] = {}
    peaks: list[int] = []

    def before_first_parameter(*_: object) -> None:
        if not start:
            start.update(base=meter.resident(), data=data_bytes())
            meter.reset_peak()

    def after_step(*_: object) -> None:
        peaks.append(meter.peak() - start["base"])
        if len(peaks) == int(steps):
            CAllocator()
        meter.reset_peak()

    register_module_parameter_registration_hook(before_first_parameter)
    register_optimizer_step_post_hook(after_step)
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).resolve().parent)
    runpy.run_path(script, run_name="__main__")
    Path(out).write_text(json.dumps({**start, "peaks": peaks}))


def data_bytes() -> int:
    """Bytes of this process that count against RLIMIT_DATA."""
    found = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "this kernel does not report VmData"
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
