"""vdnnpp: vDNN without the wait at the end of each layer.

Idea      The same inputs leave and come back as in vDNN, but no layer waits for the copy of the one
          before it: bytes are free as soon as their copy has ended, and compute waits only if it
          finds no room. `alternate` sends away the input of every other convolution, from the first.
Assumes   As vDNN.
Inferred  As vDNN. `dyn` climbs from nothing over `alternate` and `conv` to `all`; the source's own
          ladder leaves `alternate` out.
Not here  The pool and its size, allocation order, compression on the host's side (bitmask and values),
          and the choice of convolution algorithms: plans carry none of these.
Reads     The trace and the first tier (past its room, the next); `dyn` the budget too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from penstock.ir.plan import Plan
from penstock.ir.policy import Accounting, Counts, Need, Paper, Problem
from penstock.simulate.least import MOVABLE_FROM
from penstock.solve.layers import feature_inputs, heavy_kinds, layers_of
from penstock.solve.offloads import first_to_fit, offloads

__all__ = ["Vdnnpp"]


@dataclass(frozen=True, slots=True)
class Vdnnpp:
    """Offload as vDNN does, and wait only for room."""

    variant: Literal["all", "conv", "alternate", "dyn"] = "dyn"
    smallest: int = MOVABLE_FROM  # bytes: smaller values are kept
    accounting: Accounting = "ours"

    paper: ClassVar = Paper(
        "Dynamic Memory Management for GPU-Based Training of Deep Neural Networks",
        "Shriram S. B., Garg, Kulkarni",
        "IPDPS",
        2019,
        "https://github.com/shriramsb/vdnn-plus-plus",
    )
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TIER})
    counts: ClassVar[Counts] = Counts(slack=False)

    def __call__(self, problem: Problem) -> Plan:
        return first_to_fit(problem, self.plans(problem))

    def plans(self, problem: Problem) -> Iterator[Plan]:
        """The ladder, the plan that moves least first."""
        if self.variant == "dyn":
            yield problem.given
        layers = layers_of(problem.trace)
        heavy = heavy_kinds(problem.trace, layers)
        inputs = feature_inputs(problem, layers, self.smallest)
        convolutions = [n for n, layer in enumerate(layers) if layer.kind in heavy]
        rungs = {"alternate": convolutions[::2], "conv": convolutions, "all": list(inputs)}
        for name, chosen in rungs.items():
            if self.variant in (name, "dyn"):
                sent = {n: inputs[n] for n in chosen if n in inputs}
                yield problem.given.plus(offloads(problem, layers, sent, heavy, fenced=False))
