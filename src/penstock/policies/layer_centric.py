"""layer-centric: Layrub's reuse between layers: what a layer has used up leaves while the next runs.

Idea      Keep a few blobs on the device and rotate them along the network. When the last layer that
          uses a value has run, the value is copied out beside the next layer, and the step waits for
          both; in backward the values of a layer are loaded beside the layer that comes before it.
Assumes   One device, one tier, the layer as the unit of time: no seconds, and a distance of one layer.
Inferred  Whatever a layer leaves behind for backward is a blob, also what it made for itself alone
          (masks, indices). The source gives a block back one layer after its last use, and neither
          the first layer nor the last two send anything away.
Not here  Reuse inside a layer (a gradient in the place of its activation), ReLU's mask of 8 bits, and
          the fixed places in the pool: plans carry none of these. In backward an op waits for what
          it reads, not for every copy of its layer.
Reads     The trace and the first tier (past its room, the next); neither seconds nor the budget.
"""

from bisect import bisect_right
from dataclasses import dataclass
from typing import ClassVar

from penstock.ir.plan import Plan
from penstock.ir.policy import Accounting, Counts, Need, Paper, Problem
from penstock.simulate.least import MOVABLE_FROM
from penstock.solve.layers import last_used_in, layers_of
from penstock.solve.offloads import named_storages, swap_within
from penstock.solve.tiers import shelved

__all__ = ["LayerCentric"]


@dataclass(frozen=True, slots=True)
class LayerCentric:
    """Every value that waits for backward leaves one layer after its last use."""

    smallest: int = MOVABLE_FROM  # bytes: smaller values are kept
    accounting: Accounting = "ours"

    paper: ClassVar = Paper(
        "Layer-Centric Memory Reuse and Data Migration for Extreme-Scale Deep Learning on "
        "Many-Core Architectures",
        "Jin, Liu, Jiang, Ma, Shi, He, Zhao",
        "ACM TACO",
        2018,
        "https://doi.org/10.1145/3243904",
    )
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TIER})
    counts: ClassVar[Counts] = Counts(workspace=False, slack=False, state=False)

    def __call__(self, problem: Problem) -> Plan:
        layers = layers_of(problem.trace)
        named = named_storages(problem)
        begins = sorted({layer.backward for layer in layers})
        gaps = problem.free_gaps(self.smallest)
        swaps = []
        for n, blobs in last_used_in(problem.trace, layers, gaps, own=True).items():
            if not 0 < n < len(layers) - 2:
                continue
            for gap in blobs:
                assert gap.stop is not None
                # Of the backwards begun by then, the last is its own layer's: one before that.
                ahead = bisect_right(begins, gap.stop) - 2
                swaps.append(
                    swap_within(
                        problem,
                        gap,
                        named,
                        evict_at=layers[n].last + 1,
                        prefetch_at=begins[max(0, ahead)],
                        fence=layers[n + 1].last + 1,
                    )
                )
        return problem.given.plus(shelved(problem, swaps))
