"""tflms: swap what spans many levels of the graph, without a look at any clock.

Idea      Every op has a level in a topological sort. A value whose reader is many levels below its
          maker is swapped, and a control edge from an op some levels above the reader brings it back.
          `v1` swaps what forward hands to backward, with the edges of the paper: `direct_order` takes
          an op so many levels above the reader, `chain_rule` the gradient of an op so many steps
          after the maker. `v2` swaps all that spans more than a threshold, and searches the largest
          threshold that fits, then the largest distance of the edge, then of readers that share a copy.
Assumes   Sizes and times of ops are not known (`v1`), or only sizes (`v2`). Parameters never move.
Inferred  A value leaves as soon as it is made. The first reader of a group shares its copy back with
          those whose levels follow within `groupby`; for another group the value leaves again, by a
          copy, since a plan has no drop of what the tier still holds. An edge that starts above the
          maker brings the value back as soon as it can be; without an edge it comes when it is
          needed. Values by bytes, not by rank, are too small to move. The search asks our simulator.
          The first `n_tensors` are those made first.
Not here  Modes that synchronise copies: here no copy is late for its room, so they make nothing fit.
Symbols   lb, ub: the nearest and the farthest that an edge may start, in levels or steps.
Reads     The trace and the first tier (past its room, the next); `v2` the budget too. No seconds.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

from penstock.ir.plan import Plan, Swap
from penstock.ir.policy import Accounting, Counts, Need, Paper, Problem
from penstock.ir.trace import Gap, OpIndex, Phase
from penstock.simulate.least import MOVABLE_FROM
from penstock.solve.best import best, outcome
from penstock.solve.offloads import named_storages, swap_within
from penstock.solve.paths import Graph, ancestor, graph_of
from penstock.solve.tiers import shelved

__all__ = ["Tflms", "Tuned", "chain_rule", "direct_order"]

_BACK = 10  # levels: v2 looks no farther above the one that it wants
# What v1 leaves out: Const, Mul, Add, Identity, Assign, Variable, Reshape, Shape, Placeholder.
_LEFT_OUT = {
    "mul",
    "add",
    "clone",
    "copy",
    "to_copy",
    "full",
    "zeros",
    "ones",
    "arange",
    "scalar_tensor",
}


@dataclass(frozen=True, slots=True)
class Tflms:
    """Large model support by levels; `v2` finds its own parameters, `v1` takes those given."""

    version: Literal["v1", "v2"] = "v2"
    n_tensors: int | None = None  # v1: how many to swap; none: all
    lb: int = 1  # v1
    ub: int = 10_000  # v1
    control: Literal["chain_rule", "direct_order"] = "chain_rule"  # v1
    fuse_swapins: bool = False  # v1: do all backward readers share one copy back?
    swap_branches: bool = False  # v1: are long edges inside forward swapped too?
    branch_threshold: int = 0  # v1: levels
    share: float = 0.9  # v2: of the memory beside parameters, what the search may fill
    smallest: int = MOVABLE_FROM  # bytes: smaller values are kept
    accounting: Accounting = "ours"

    paper: ClassVar = Paper(
        "TFLMS: Large Model Support in TensorFlow by Graph Rewriting",
        "Le, Imai, Negishi, Kawachiya",
        "arXiv",
        2018,
        "https://arxiv.org/abs/1807.02037",
    )
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TIER})
    counts: ClassVar[Counts] = Counts(workspace=False, slack=False)

    def __call__(self, problem: Problem) -> Plan:
        if self.version == "v1":
            return problem.given.plus(self.rewritten(problem))
        graph = graph_of(problem.trace)
        tuned = self.tuned(problem, graph)
        if tuned is None:
            least = self.swapped(problem, graph, Tuned(1, 1, 0))
            return best(problem, [problem.given, least]).plan
        return self.swapped(problem, graph, tuned)

    # -- version 1 ---------------------------------------------------------------------------------

    def rewritten(self, problem: Problem) -> list[Swap]:
        graph, named = graph_of(problem.trace), named_storages(problem)
        rule = chain_rule if self.control == "chain_rule" else direct_order
        swaps = []
        for gap in sorted(self.edges(problem, graph), key=lambda gap: (gap.value, gap.start)):
            made = problem.trace.values[gap.value].producer
            assert made is not None and gap.stop is not None
            # The source sets a bound that would reach above the maker back to 1.
            lb = self.lb if graph.level[made] <= graph.level[gap.stop] - self.lb else 1
            edge = rule(graph, made, gap.stop, lb, self.ub)
            back = gap.stop if edge is None else edge + 1
            swaps.append(swap_within(problem, gap, named, evict_at=made + 1, prefetch_at=back))
            named.add(problem.trace.values[gap.value].storage)
        return shelved(problem, swaps)

    def edges(self, problem: Problem, graph: Graph) -> Iterator[Gap]:
        """The gaps that v1 swaps."""
        trace = problem.trace
        chosen: set[int] = set()
        for gap in problem.free_gaps(self.smallest):
            value = trace.values[gap.value]
            if value.producer is None or gap.stop is None or gap.wraps or value.kind.is_state:
                continue
            maker = trace.ops[value.producer]
            if maker.phase is not Phase.FORWARD or _bare(maker.name) in _LEFT_OUT:
                continue
            match trace.ops[gap.stop].phase:
                case Phase.BACKWARD:
                    is_first = trace.ops[gap.start].phase is Phase.FORWARD
                    is_wanted = is_first or not self.fuse_swapins
                case Phase.FORWARD:
                    spans = graph.level[gap.stop] - graph.level[value.producer]
                    is_wanted = self.swap_branches and spans > self.branch_threshold
                case Phase.OPTIMIZER:
                    is_wanted = False
            if is_wanted and (gap.value in chosen or len(chosen) != self.n_tensors):
                chosen.add(gap.value)
                yield gap

    # -- version 2 ---------------------------------------------------------------------------------

    def tuned(self, problem: Problem, graph: Graph) -> "Tuned | None":
        """The parameters that the search finds; `None` if not even the smallest threshold fits."""
        trace = problem.trace
        fixed = sum(trace.values[v].nbytes for v in trace.initial if trace.values[v].kind.is_state)
        limited = replace(problem, budget=fixed + int((problem.budget - fixed) * self.share))
        size = 1 + max(graph.level, default=0)

        def fits(tuned: Tuned) -> bool:
            return not outcome(limited, self.swapped(problem, graph, tuned)).shortfall

        if fits(Tuned(size, 1, 0)):
            return Tuned(size, 1, 0)
        if not fits(found := Tuned(1, 1, 0)):
            return None
        found = found._replace(
            threshold=_largest(1, size, lambda n: fits(found._replace(threshold=n)))
        )
        found = found._replace(ahead=_largest(1, size, lambda n: fits(found._replace(ahead=n))))
        if fits(found._replace(groupby=size)):
            return found._replace(groupby=size)
        return found._replace(groupby=_largest(0, size, lambda n: fits(found._replace(groupby=n))))

    def swapped(self, problem: Problem, graph: Graph, tuned: "Tuned") -> Plan:
        """The plan for these parameters."""
        trace, named = problem.trace, named_storages(problem)
        level, swaps = graph.level, []
        for gap in problem.free_gaps(self.smallest):
            value = trace.values[gap.value]
            made = value.producer
            if made is None or gap.stop is None or gap.wraps or value.kind.is_state:
                continue
            if level[gap.stop] - level[made] <= tuned.threshold:
                continue
            is_grouped = level[gap.start] - level[made] > tuned.threshold
            if is_grouped and level[gap.stop] - level[gap.start] <= tuned.groupby:
                continue
            wanted = max(level[gap.stop] - tuned.ahead - 1, level[made] + 1)
            above = max(wanted - _BACK, level[made])
            edge = ancestor(graph, gap.stop, above=above, at_most=wanted)
            back = gap.stop if edge is None else edge + 1
            swaps.append(swap_within(problem, gap, named, evict_at=made + 1, prefetch_at=back))
            named.add(value.storage)
        return problem.given.plus(shelved(problem, swaps))


class Tuned(NamedTuple):
    """What v2's search looks for, in levels."""

    threshold: int
    ahead: int
    groupby: int


def _largest(low: int, high: int, passes: Callable[[int], bool]) -> int:
    """The largest number that passes, by bisection; `low` is known to."""
    best_so_far = low
    while low <= high:
        middle = (low + high) // 2
        if passes(middle):
            best_so_far, low = middle, middle + 1
        else:
            high = middle - 1
    return best_so_far


# -- where control edges start --------------------------------------------------------------------


def direct_order(graph: Graph, maker: OpIndex, reader: OpIndex, lb: int, ub: int) -> OpIndex | None:
    """An op from which the reader can be reached, more than `lb` levels above it, but no more than
    `ub`, and below the maker.
    """
    level = graph.level
    above = max(level[reader] - ub, level[maker])
    return ancestor(graph, reader, above=above, at_most=level[reader] - lb - 1)


def chain_rule(graph: Graph, maker: OpIndex, reader: OpIndex, lb: int, ub: int) -> OpIndex | None:
    """The gradient of an op that runs `lb` steps after the maker in forward: the chain rule has it
    run shortly before the reader.
    """
    level = graph.level
    if level[reader] - lb < graph.first_backward:
        return direct_order(graph, maker, reader, lb, ub)
    frontier, seen = [maker], {maker}
    for depth in range(ub + 1):
        if not frontier:
            return None
        following = [other for op in frontier for other in graph.after[op]]
        if depth >= lb:
            between = [
                op
                for op in following
                if graph.is_backward[op] and level[maker] < level[op] < level[reader]
            ]
            if between:
                return between[0]
        frontier = []
        for op in following:
            if not graph.is_backward[op] and op not in seen:
                seen.add(op)
                frontier.append(op)
    return None


def _bare(name: str) -> str:
    return name.removeprefix("aten.").strip("_")
