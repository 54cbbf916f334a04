"""A GPU's steps that never ran there: is what was predicted what plain PyTorch takes on it?

    python benchmarks/gpu_prediction.py [--only gpt2 unet] [--machine FILE] [--size full]

Part of `make test-gpu`. Calibrates the GPU first (or takes `--machine FILE`). Then, for each workload,
in a process each: its step recorded on fake tensors where no GPU can be seen, and priced for this one;
and plain PyTorch on it. What is predicted is a step like all later ones: the optimizer has its state,
and what the first steps left in the allocator's cache is given back. Peaks count above what the process
held before it had a model. Worst first; into `benchmarks/results/<device>.json`, under `prediction`.
"""

import argparse
import gc
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from _children import last_said
from _where import where, write

RESULTS = Path(__file__).resolve().parent / "results"
WORKLOADS = ("gpt2", "bert", "llama", "t5", "vit", "resnet", "unet", "vgg-inplace")
WARM_UP, MEASURED = 3, 7
FIGURES = ("allocated", "reserved", "seconds")
"""Bytes at the peak that tensors and libraries were given, and that the allocator held; a step's time."""
MIB = 2**20

Figures = Mapping[str, float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--machine", type=Path, help="a machine file; default: calibrate first")
    parser.add_argument("--size", choices=("small", "full"), default="full")
    parser.add_argument("--only", nargs="+", default=WORKLOADS)
    parser.add_argument("--child", nargs=2, metavar=("TASK", "NAME"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        task, name = options.child
        print(json.dumps(CHILDREN[task](name, options.size, options.machine)))
        return 0
    import torch

    if not torch.cuda.is_available():
        print("benchmarks/gpu_prediction.py: torch sees no GPU here", file=sys.stderr)
        return 2
    found = rows(options.only, options.size, options.machine)
    Console(width=None if sys.stdout.isatty() else 160).print(table(found))
    path = result_path(torch.cuda.get_device_name())
    keep(path, "prediction", {**where(), "size": options.size, "rows": found})
    return 1 if any("failed" in row for row in found) else 0


def rows(names: Iterable[str], size: str, machine: Path | None = None) -> list[dict[str, Any]]:
    """Each workload predicted and measured, worst first. Calibrates if no machine is given."""
    with tempfile.TemporaryDirectory() as folder:
        if machine is None:
            machine = Path(folder) / "machine.json"
            calibrated = in_process("calibrate", str(machine), size, None)
            if "failed" in calibrated:
                return [{"workload": "calibration", **calibrated}]
        found = [
            row(
                name,
                in_process("predict", name, size, machine),
                in_process("measure", name, size, None),
            )
            for name in names
        ]
    return worst_first(found)


# -- what is decided ------------------------------------------------------------------------------


def row(name: str, guess: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """One workload: each figure predicted, measured, and how far the one is off the other."""
    if failed := guess.get("failed") or found.get("failed"):
        return {"workload": name, "failed": failed}
    return {
        "workload": name,
        "predicted": dict(guess),
        "measured": dict(found),
        "error": {what: guess[what] / found[what] - 1 for what in FIGURES},
    }


def worst_first(found: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What failed, then by the largest error of any figure."""

    def badness(one: Mapping[str, Any]) -> tuple[bool, float]:
        errors = one.get("error", {}).values()
        return "failed" in one, max(map(abs, errors), default=0.0)

    return sorted(map(dict, found), key=badness, reverse=True)


def medians(found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """By figure, the median of the errors' sizes over the workloads that ran; empty if none did."""
    ran = [one["error"] for one in found if "error" in one]
    return {what: statistics.median(abs(e[what]) for e in ran) for what in FIGURES} if ran else {}


def table(found: Sequence[Mapping[str, Any]]) -> Table:
    shown = Table(title="Predicted without the GPU, measured on it: a plain step")
    for head in ("workload", "allocated MiB", "error", "reserved MiB", "error", "ms", "error"):
        shown.add_column(head, justify="left" if head == "workload" else "right")
    for one in found:
        if "failed" in one:
            shown.add_row(one["workload"], one["failed"][:100])
            continue
        cells = []
        for what, unit in zip(FIGURES, (MIB, MIB, 1e-3), strict=True):
            cells += [f"{one['measured'][what] / unit:.1f}", f"{one['error'][what]:+.1%}"]
        shown.add_row(one["workload"], *cells)
    if middle := medians(found):
        cells = [cell for what in FIGURES for cell in ("", f"{middle[what]:.1%}")]
        shown.add_row("median", *cells)
    return shown


def result_path(device: str) -> Path:
    return RESULTS / f"{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.json"


def keep(path: Path, key: str, value: Any) -> None:
    """Set one key of a result file; what else it says stays."""
    before = json.loads(path.read_text()) if path.exists() else {}
    write(path, {**before, key: value})


# -- in processes of their own ----------------------------------------------------------------------


def in_process(task: str, name: str, size: str, machine: Path | None) -> dict[str, Any]:
    """What a task of `CHILDREN` returns in a fresh process; `failed` says why it returned nothing."""
    beside = () if machine is None else ("--machine", str(machine))
    unseen = {"CUDA_VISIBLE_DEVICES": ""} if task == "predict" else None
    return last_said(__file__, "--child", task, name, "--size", size, *beside, environment=unseen)


def calibrate(path: str, _size: str, _machine: Path | None) -> dict[str, Any]:
    """Measure the GPU, and write it to a machine file."""
    import penstock
    from penstock.ir.store import save

    save(path, penstock.calibrate(device="cuda", tier="none"))
    return {}


def predict(name: str, size: str, machine: Path | None) -> Figures:
    """A step of a workload that runs nowhere, priced for a GPU."""
    import torch

    from penstock.ir.machine import Machine
    from penstock.ir.store import load
    from penstock.record.fake import record_fake
    from penstock.simulate.allocators import allocations, cuda
    from penstock.simulate.roofline import priced
    from penstock.zoo.workloads import batches_on, workload

    known = load(str(machine))
    if not isinstance(known, Machine):
        raise SystemExit(f"{machine} describes no machine")
    with batches_on(torch.device("cuda")):
        recorded = record_fake(lambda: workload(name, size).step, "cuda", name)
    trace = priced(recorded, known)
    replay = cuda(allocations(trace, steps=MEASURED))
    beside = known.device.overhead
    return {
        "allocated": replay.allocated_peak + beside,
        "reserved": replay.reserved_peak + beside,
        "seconds": trace.seconds,
        "least_reserved": trace.peak + trace.slack,  # what `penstock plan` says must be there
        "ops": len(trace.ops),
    }


def measure(name: str, size: str, _machine: Path | None) -> Figures:
    """The same, in plain PyTorch on the GPU."""
    import torch

    from penstock.zoo.workloads import batches_on, workload

    torch.cuda.init()
    base = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    with batches_on(torch.device("cuda")):
        work = workload(name, size)
        for model in work.models:
            model.to("cuda")
        for number in range(WARM_UP):
            work.step(number)
        torch.cuda.synchronize()
        from_start = torch.cuda.max_memory_reserved() - base[1]
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        seconds = []
        for number in range(WARM_UP, WARM_UP + MEASURED):
            began = time.perf_counter()
            work.step(number)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
    return {
        "allocated": torch.cuda.max_memory_allocated() - base[0],
        "reserved": torch.cuda.max_memory_reserved() - base[1],
        "seconds": statistics.median(seconds),
        "reserved_from_start": from_start,  # with what the first steps left in the cache
    }


CHILDREN = {"calibrate": calibrate, "predict": predict, "measure": measure}


if __name__ == "__main__":
    sys.exit(main())
