"""What each paper says of itself, and what its policy does here: writes docs/reproductions.md.

    make reproduce  (or: python benchmarks/reproduce.py [--only vdnn home])

The papers' claims, machines and steps are in `reproductions.toml`, with where they were read. Each is
asked of our policy of that name: the step is recorded on fake tensors, priced on the paper's machine
by its data sheet, planned and simulated. Figures of ours are never typed: they are what this found, kept
in `results/reproductions.json` with the commit they are of. With `--only` the others stay as they are.
"""

import argparse
import json
import tomllib
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from _where import where, write
from penstock import policies
from penstock.errors import PenstockError
from penstock.ir.machine import Machine
from penstock.ir.policy import Problem
from penstock.ir.trace import Trace
from penstock.machines import find
from penstock.search import largest
from penstock.simulate.least import least_budget
from penstock.sizes import parse_size
from penstock.solve.best import Outcome
from penstock.source import sized, step_and_machine

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = Path(__file__).with_name("reproductions.toml")
PAGE = ROOT / "docs" / "reproductions.md"
RESULTS = Path(__file__).with_name("results") / "reproductions.json"


@dataclass(frozen=True, slots=True)
class Claim:
    """One figure that a paper gives for itself."""

    policy: str  # ours, with its options
    says: str
    read: str  # in which way we know: `paper`, `abstract` or `code`
    machine: str
    step: str
    asks: str  # see `ASKED`
    theirs: float
    budget: str = ""  # bytes, or a share of the plain step's peak
    unit: int = 1  # of the batch: how finely the largest is searched
    because: str = ""  # why ours is to be expected to differ

    @property
    def paper(self) -> str:
        found = policies.load(self.policy.partition(":")[0]).paper
        return "ours" if found is None else f"{found.authors}, {found.venue} {found.year}"


# -- what is asked --------------------------------------------------------------------------------


def slowdown(claim: Claim) -> float:
    """Step time under the budget over that with memory without end."""
    trace, machine = _step(claim.step, claim.machine)
    found = _planned(claim, trace, machine)
    if found.shortfall:
        raise PenstockError(f"does not fit by {found.shortfall / 2**20:,.0f} MiB")
    return found.timeline.seconds / trace.seconds


def least(claim: Claim) -> float:
    """The peak of the policy's smallest plan, as a share of the plain step's."""
    trace, machine = _step(claim.step, claim.machine)
    peaks = (found.timeline.peak for found in _smaller(claim, trace, machine))
    return min(peaks) / (trace.peak + trace.slack)


def growth(claim: Claim) -> float:
    """The largest batch that fits under the policy, over the largest that fits without."""
    machine, nbytes = find(claim.machine), parse_size(claim.budget, "budget")
    of_one = sized(claim.step, "batch", machine)

    def of(size: int) -> Trace:
        return _sized(claim.step, claim.machine, claim.unit * size, of_one)

    ours, plain = (largest(of, machine, nbytes, name) for name in (claim.policy, "keep"))
    if not plain.size:
        raise PenstockError(f"a batch of {claim.unit} does not fit without a policy")
    return ours.size / plain.size


ASKED: dict[str, Callable[[Claim], float]] = {
    "step time, x of unlimited": slowdown,
    "least peak, x of plain": least,
    "largest batch, x of plain": growth,
}


def _planned(claim: Claim, trace: Trace, machine: Machine) -> Outcome:
    text = claim.budget
    share = float(text[:-1]) / 100 if text.endswith("%") else None
    budget = int(share * (trace.peak + trace.slack)) if share else parse_size(text, "budget")
    return policies.ask(policies.configured(claim.policy), Problem(trace, machine, budget))


def _smaller(claim: Claim, trace: Trace, machine: Machine) -> Iterable[Outcome]:
    """What the policy makes of ever smaller budgets."""
    floor, most = least_budget(trace).nbytes, trace.peak + trace.slack
    for part in (1.0, 0.5, 0.25, 0.1, 0.0):
        budget = floor + int(part * (most - floor))
        try:
            yield policies.ask(policies.configured(claim.policy), Problem(trace, machine, budget))
        except PenstockError:
            continue


@cache
def _step(step: str, machine: str) -> tuple[Trace, Machine]:
    return step_and_machine(step, machine)


_known: dict[tuple[str, str, int], Trace] = {}


def _sized(step: str, machine: str, size: int, of: Callable[[int], Trace]) -> Trace:
    key = step, machine, size
    if key not in _known:
        _known[key] = of(size)
    return _known[key]


# -- the page -------------------------------------------------------------------------------------


def answer(claim: Claim) -> float | str:
    """Our figure, or why there is none."""
    try:
        return ASKED[claim.asks](claim)
    except PenstockError as error:
        return str(error).splitlines()[0]


def page(claims: list[Claim], kept: dict[str, dict[str, Any]]) -> str:
    rows = [
        f"| `{claim.policy}` | {claim.paper} | {claim.says} ({claim.read}) | `{claim.step}` on "
        f"`{claim.machine}`{f', {claim.budget}' if claim.budget else ''} | {claim.asks} | "
        f"{claim.theirs:.3g} | {_shown(found['ours'])} | {claim.because} | {found['commit']} |"
        for claim in claims
        if (found := kept.get(_key(claim))) is not None
    ]
    head = (
        "policy",
        "paper",
        "what it says",
        "our step",
        "figure",
        "theirs",
        "ours",
        "why",
        "commit",
    )
    return "\n".join(
        (
            "# Reproductions",
            "",
            "Written by `make reproduce`; edit `benchmarks/reproductions.toml`, not this page. Ours is",
            "simulated: the step is recorded on fake tensors and priced by the data sheet of the paper's",
            "machine. A paper's figure was measured with its own framework, kernels and way of counting",
            "memory, so look at the direction and the order of magnitude; the last column but one says",
            "what else differs.",
            "",
            f"| {' | '.join(head)} |",
            "|" + "---|" * len(head),
            *rows,
            "",
        )
    )


def _key(claim: Claim) -> str:
    """A claim without its words."""
    told = {what: value for what, value in asdict(claim).items() if what not in _WORDS}
    return json.dumps(told, sort_keys=True)


_WORDS = ("says", "read", "theirs", "because")


def _shown(ours: float | str) -> str:
    return ours if isinstance(ours, str) else f"{ours:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="policies by name")
    parser.add_argument("--missing", action="store_true", help="only those without an answer")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    claims = [Claim(**row) for row in tomllib.loads(CLAIMS.read_text())["claim"]]
    kept: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    kept = {key: kept[key] for key in map(_key, claims) if key in kept}
    asked = [
        claim
        for claim in claims
        if (not options.only or claim.policy.partition(":")[0] in options.only)
        and not (options.missing and _key(claim) in kept)
    ]
    console = Console(stderr=True)
    commit = where()["commit"]
    with (
        ProcessPoolExecutor(options.processes, get_context("spawn")) as pool,
        Progress(console=console) as bar,
    ):
        jobs = {pool.submit(answer, claim): claim for claim in asked}
        for done in bar.track(as_completed(jobs), total=len(jobs), description="asking"):
            kept[_key(jobs[done])] = {"ours": done.result(), "commit": commit}
            write(RESULTS, kept)
    PAGE.write_text(page(claims, kept))
    console.print(f"{len(kept)} of {len(claims)} claims in {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
