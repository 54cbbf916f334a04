"""Which results of forward to save for backward, so that the least work is done again.

This is the question of PyTorch's `activation_memory_budget` and of selective checkpointing: the
bytes saved at the end of forward are limited, not those held while backward runs. Each result is
made again at most once. Solved as an integer programme.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.solve.milp import Model

__all__ = ["Result", "Saved", "save"]


@dataclass(frozen=True, slots=True)
class Result:
    """What one op of forward makes. `reads`: positions of other results; inputs are always there."""

    nbytes: float
    cost: float  # of making it again
    reads: tuple[int, ...] = ()
    needed: bool = True  # does backward read it?


@dataclass(frozen=True, slots=True)
class Saved:
    """`saved` and `again` are positions of results."""

    saved: tuple[int, ...]
    again: tuple[int, ...]
    nbytes: float
    cost: float
    proven: bool


def save(results: Sequence[Result], budget: float, time_limit: float = 60.0) -> Saved:
    """The least cost inside `budget` bytes, and of those answers the one with the fewest bytes.

    Raises `SolveError` if none is found in `time_limit` seconds.
    """
    total = sum(one.cost for one in results)
    # Bytes decide between equal costs only: all of them together weigh less than any difference.
    least = min((one.cost for one in results if one.cost), default=1.0)
    weight = 1e-3 * least / max(sum(one.nbytes for one in results), 1e-30) if total else 0.0
    model = Model()
    kept = [model.binary(("save", n), cost=weight * one.nbytes) for n, one in enumerate(results)]
    again = [model.binary(("again", n), cost=one.cost) for n, one in enumerate(results)]
    for n, one in enumerate(results):
        if one.needed:
            model.at_least(1, (kept[n], 1), (again[n], 1))
        for read in one.reads:
            model.at_least(0, (kept[read], 1), (again[read], 1), (again[n], -1))
    model.at_most(
        budget, *((variable, one.nbytes) for variable, one in zip(kept, results, strict=True))
    )
    solution = model.solve(time_limit)
    chosen = {name for name, value in solution.values.items() if value > 0.5}
    saved = tuple(n for n in range(len(results)) if ("save", n) in chosen)
    remade = tuple(n for n in range(len(results)) if ("again", n) in chosen and n not in saved)
    return Saved(
        saved,
        remade,
        sum(results[n].nbytes for n in saved),
        sum(results[n].cost for n in remade),
        solution.proven,
    )
