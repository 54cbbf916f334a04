"""Everything that a GPU adds: the tests marked `cuda`, real steps under budgets, predicted steps.

    make test-gpu

Writes `benchmarks/results/<device>.json`. Each workload is trained three times from one seed: plainly,
and with 60 % and 35 % of what the plain step reserved. A row holds peaks in bytes that the caching
allocator reserved, the median of step seconds, and whether losses and parameters are bit-identical;
it is `ok` if they are, or if the budget was refused because it is below the least that can do.
Then plain steps are predicted without the device and measured on it (see `gpu_prediction`).
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import gpu_prediction
from _where import where, write
from gpu_prediction import keep, result_path
from penstock import zoo
from penstock.api import fit
from penstock.errors import BudgetError
from penstock.zoo import workloads

ROOT = Path(__file__).resolve().parent.parent
WORKLOADS = ("gpt2", "bert", "resnet", "unet")
SHARES = (0.6, 0.35)
STEPS, RECORDED = 8, 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("small", "full"), default="full")
    parser.add_argument("--workloads", nargs="+", default=WORKLOADS, choices=zoo.names())
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "make test-gpu: torch sees no GPU here "
            f"(torch {torch.__version__}, built for CUDA: {torch.version.cuda or 'no'}). "
            "Run it on a machine with a CUDA device and a CUDA build of torch; "
            "`make test` covers everything that needs none.",
            file=sys.stderr,
        )
        return 2
    torch.cuda.init()  # its counters cannot be reset before that
    # Kernels that add in no fixed order would make any two plain runs differ, too.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    tests = run_tests()
    with workloads.batches_on(torch.device("cuda")):
        rows = [row for name in options.workloads for row in workload_rows(name, options.size)]
    path = result_path(torch.cuda.get_device_name())
    write(path, body(tests, rows))
    torch.cuda.empty_cache()
    predicted = gpu_prediction.rows(gpu_prediction.WORKLOADS, options.size)
    keep(path, "prediction", {"size": options.size, "rows": predicted})
    Console(width=None if sys.stdout.isatty() else 160).print(gpu_prediction.table(predicted))
    print(f"{path.relative_to(ROOT)}: {len(rows)} rows; tests: {tests['summary']}")
    ran = all(row["ok"] for row in rows) and not any("failed" in row for row in predicted)
    return 0 if tests["passed"] and ran else 1


def run_tests() -> dict[str, Any]:
    """The whole suite, with the tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-m", "cuda or not cuda"]
    ended = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True)
    print(ended.stdout)
    summary = re.findall(r"^\d+ (?:passed|failed|error).*$", ended.stdout, re.MULTILINE)
    return {"passed": ended.returncode == 0, "summary": summary[-1] if summary else "none ran"}


def workload_rows(name: str, size: zoo.Size) -> list[dict[str, Any]]:
    plain = train(name, size, None)
    rows = [row_of(name, "plain", plain, plain)]
    for share in SHARES:
        budget = int(share * plain["peak"])
        try:
            found = train(name, size, budget)
        except BudgetError as error:
            print(f"{name} at {share:.0%}: {error}")
            refusal = {"workload": name, "run": f"{share:.0%}", "budget": budget}
            rows.append(refusal | {"least_budget": error.least, "ok": error.least > budget})
            continue
        rows.append(row_of(name, f"{share:.0%}", found, plain) | {"budget": budget})
        print(rows[-1])
    return rows


def train(name: str, size: zoo.Size, budget: int | None) -> dict[str, Any]:
    """Some steps from a fresh model; under Penstock if there is a budget."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    if budget is None:
        return steps_of(name, size)
    with fit(budget, device="cuda") as session:
        found = steps_of(name, size)
    planned = [step for step in session.reports if step.mode == "planned"]
    last = planned[-1] if planned else None
    return found | {
        "peak": max(step.peak for step in session.reports),
        "predicted_peak": last and last.predicted_peak,
        "predicted_seconds": last and last.predicted_seconds,
        "stalls": last and last.stalls,
        "traffic": last and last.traffic,
        "decisions": last and last.decisions,
        "events": sorted({event for step in session.reports for event in step.events}),
    }


def steps_of(name: str, size: zoo.Size) -> dict[str, Any]:
    work = zoo.workload(name, size)
    for model in work.models:
        model.to("cuda")
    losses, seconds = [], []
    for number in range(STEPS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        losses += [loss.detach().cpu() for loss in work.step(number)]
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return {
        "seconds": statistics.median(seconds[RECORDED:]),
        "peak": torch.cuda.max_memory_reserved(),
        "losses": losses,
        "parameters": [parameter.detach().cpu() for parameter in work.parameters()],
    }


def row_of(name: str, run: str, found: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    identical = all(
        len(found[what]) == len(plain[what])
        and all(torch.equal(a, b) for a, b in zip(found[what], plain[what], strict=True))
        for what in ("losses", "parameters")
    )
    kept = {what: value for what, value in found.items() if what not in ("losses", "parameters")}
    ratio = found["seconds"] / plain["seconds"]
    row = {"workload": name, "run": run, "identical": identical, "ok": identical, "ratio": ratio}
    return row | kept


def body(tests: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        **where(),
        "device": torch.cuda.get_device_name(),
        "device_memory": torch.cuda.get_device_properties(0).total_memory,
        "cuda": torch.version.cuda,
        "steps": f"median of steps {RECORDED + 1} to {STEPS}",
        "tests": tests,
        "rows": rows,
    }


if __name__ == "__main__":
    sys.exit(main())
