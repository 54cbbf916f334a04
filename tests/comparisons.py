"""Comparisons of policies with known figures, for the tests of what shows them and for benchmarks."""

from collections.abc import Sequence
from itertools import product

from penstock.leaderboard import Entry

__all__ = ["GIB", "MIB", "POLICIES", "SMALL", "entry", "grid"]

MIB, GIB = 2**20, 2**30

POLICIES = (
    *("auto", "autoswap", "autotm", "belady", "capuchin", "checkmate", "chen", "deeptm", "dtr"),
    *("dymem", "echo", "flashneuron", "g10", "home", "keep", "layer-centric", "memonger", "meng"),
    *("modnn", "oneflow", "poet", "rotor", "sentinel", "superneurons", "swap-all", "swapadvisor"),
    *("tflms", "tmof", "vdnn", "vdnnpp"),
)


def entry(policy: str, share: float, seconds: float = 0.0, **facts: object) -> Entry:
    """A point of a step that takes 10 s and 1,000 MiB without a budget; it fills its budget."""
    budget = int(share * 1000 * MIB)
    known = {"step": "step", "on": "card", "plain": 10.0, "full": 1000 * MIB, "took": 0.25}
    known |= {"peak": budget, "budget": budget, "asked": f"{share:.0%}", "key": f"{policy} {share}"}
    return Entry(policy=policy, **{**known, "seconds": seconds, **facts})  # type: ignore[arg-type]


SMALL = [
    entry("keep", 0.8, 10.0, shortfall=200 * MIB, peak=1000 * MIB),
    entry("swap", 0.8, 10.4, swaps=7, moved=300 * MIB, stalled=0.4),
    entry("remake", 0.8, 12.0, recomputes=1, again=2.0),
    entry("solver", 0.8, 10.2, swaps=1, recomputes=2, cut_short=True, took=30.5),
    entry("picky", 0.8, problem="policy Picky needs a tier below the device"),
    entry("slow", 0.8, problem="planning was given up after 5 s", limit=5.0, took=5.0),
    entry("keep", 0.4, 10.0, shortfall=600 * MIB, peak=1000 * MIB),
    entry("swap", 0.4, 31.0, swaps=9, moved=900 * MIB, stalled=21.0),
    entry("remake", 0.4, 15.0, recomputes=4, again=5.0, peak=390 * MIB),
    entry("solver", 0.4, 15.0, recomputes=4, again=5.0),
    entry("picky", 0.4, problem="policy Picky needs a tier below the device"),
    entry("slow", 0.4, 29.0, shortfall=50 * MIB, below=50 * MIB),
]
"""One step on one card, at two budgets: one point of each sort that there is."""


def grid(
    policies: Sequence[str] = POLICIES, steps: int = 20, machines: int = 3, budgets: int = 4
) -> list[Entry]:
    """A whole comparison, made up: `keep` never fits, some never make a plan, the others differ."""
    found = []
    shares = [0.8, 0.6, 0.4, 0.25, 0.2, 0.15][:budgets]
    for s, m, share, (n, policy) in product(
        range(steps), range(machines), shares, enumerate(policies)
    ):
        name, on = f"model-{s} full", f"card-{m}"
        facts: dict[str, object] = {"step": name, "on": on, "key": f"{name} {on} {share} {policy}"}
        worth = ((n * 7919 + s * 104729) % 97) / 97  # of the policy, for this step
        reach = 0.1 + 0.6 * ((n * 31 + s) % 17) / 17  # the least share that it fits
        seconds = 10.0 * (1 + (0.02 + worth) * (1 / share - 1) ** 2 / (m + 1))
        if policy == "keep":
            facts |= {"shortfall": int((1 - share) * 1000 * MIB), "peak": 1000 * MIB}
            seconds = 10.0
        elif (n + s) % 29 == 7 and m == 0:
            facts["problem"] = f"policy {policy} needs a tier below the device"
        elif share < reach:
            facts["shortfall"] = int((reach - share) * 1000 * MIB)
        found.append(
            entry(policy, share, seconds, swaps=n, recomputes=s, moved=n * 10 * MIB, **facts)
        )
    return found
