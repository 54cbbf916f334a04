"""vdnn: a layer's input leaves while the layer runs, and comes back in backward.

Idea      Copy the input X of a layer out while the layer computes; the next layer waits for the copy.
          In backward each layer calls for the nearest X upstream that is away, but looks no further
          than the next convolution, so that nothing comes back too early. `all` does this for every
          layer that extracts features, `conv` for convolutions only; `dyn` takes the first that fits
          of nothing, `conv` and `all`.
Assumes   One device, one stream of copies, layers run one at a time. Weights and the classifier stay.
Inferred  The classifier is the fully connected layers that end a pass, with activations, dropout and
          loss (all of a step that has no other layer); without any, the last layer before the loss, as
          in the source of vDNN++. An activation in place belongs to the layer before it; another is a
          layer. In steps that spend more on products, attention or recurrent cells than on
          convolutions, those take the part of convolutions. An X for which nobody called comes when
          it is needed. If nothing fits, the plan that lacks least.
Not here  Kernels: a trace has one for each op, so `dyn` climbs its ladder without the choice of
          algorithms. In backward an op waits for what it reads, not for every copy of its layer.
          The first layer's X, which the paper reads again from the host's batch, is copied out.
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

__all__ = ["Vdnn"]


@dataclass(frozen=True, slots=True)
class Vdnn:
    """Offload the inputs of all feature-extraction layers, of convolutions, or what must be."""

    variant: Literal["all", "conv", "dyn"] = "dyn"
    smallest: int = MOVABLE_FROM  # bytes: smaller values are kept
    accounting: Accounting = "ours"

    paper: ClassVar = Paper(
        "vDNN: Virtualized Deep Neural Networks for Scalable, Memory-Efficient Neural Network Design",
        "Rhu, Gimelshein, Clemons, Zulfiqar, Keckler",
        "MICRO",
        2016,
        "https://arxiv.org/abs/1602.08124",
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
        of_heavy = {n: gaps for n, gaps in inputs.items() if layers[n].kind in heavy}
        if self.variant != "all":
            yield problem.given.plus(offloads(problem, layers, of_heavy, heavy, fenced=True))
        if self.variant != "conv":
            yield problem.given.plus(offloads(problem, layers, inputs, heavy, fenced=True))
