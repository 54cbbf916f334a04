"""In which tier a value waits, when the first one cannot hold all that leaves."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain

from penstock.ir.machine import Tier
from penstock.ir.plan import Swap
from penstock.ir.policy import Problem
from penstock.ir.trace import Gap
from penstock.simulate.shelves import Shelves
from penstock.solve.ledger import Ledger
from penstock.solve.pressure import Pressure
from penstock.solve.swaps import just_in_time, op_starts

__all__ = ["sent_below", "shelved", "spread"]


def sent_below(
    problem: Problem,
    gaps: Iterable[Gap],
    *,
    margin: float = 1.1,
    pressure: Pressure | None = None,
    away: Mapping[Gap, Gap] | None = None,
) -> list[Swap]:
    """Swaps `just_in_time`, each to the tier that `spread` has for it.

    `away`: the part of each gap in which its value may be away; None: all of it.
    """
    found: list[Swap] = []
    for tier, there in spread(problem, gaps):
        whole = {gap if away is None else away[gap]: gap for gap in there}
        timed = just_in_time(problem.trace, tier, whole, margin=margin, pressure=pressure)
        found += [replace(swap, gap=whole[swap.gap]) for swap in timed]
    return found


def shelved(problem: Problem, swaps: Iterable[Swap]) -> list[Swap]:
    """`swaps` to the first tier; those that it cannot hold beside what is given go where `spread` says.

    For methods that know of one tier: triggers stay as they are, though the next link be slower.
    """
    wanted = list(swaps)
    first, values = problem.machine.tiers[:1], problem.trace.values
    sent = sum(values[swap.gap.value].nbytes for swap in (*wanted, *problem.given.swaps))
    if not first or sent <= first[0].capacity:  # even if all of it lay there at once
        return wanted
    homes = spread(problem, [swap.gap for swap in wanted])
    tier_of = {gap: tier.name for tier, there in homes for gap in there}
    return [replace(swap, tier=tier_of[swap.gap]) for swap in wanted]


def spread(problem: Problem, gaps: Iterable[Gap]) -> list[tuple[Tier, list[Gap]]]:
    """For each tier, those of `gaps` that go there, beside what is given.

    All go to the first as long as it holds them. Room is made there by such as the next tier can write
    at once, so that its queue stays short; if that is not enough, by what idles longest, because a slow
    link hides it best.
    """
    trace, machine = problem.trace, problem.machine
    shelves, starts = Shelves(trace, machine, problem.given), op_starts(trace)

    def idle(gap: Gap) -> float:
        end = starts[-1] if gap.stop is None or gap.wraps else starts[gap.stop]
        around = starts[gap.stop] if gap.wraps and gap.stop is not None else 0.0
        return end + around - starts[gap.start + 1]

    here = list(gaps)
    found: list[tuple[Tier, list[Gap]]] = []
    for tier, below in zip(machine.tiers, (*machine.tiers[1:], None), strict=True):
        for gap in here:
            shelves.add(gap, tier.name)
        moved: set[Gap] = set()
        if below is not None and shelves.peak(tier.name) > tier.capacity:
            at_once = _written_at_once(problem, below, sorted(here, key=lambda gap: gap.start))
            longest = sorted(here, key=lambda gap: (-idle(gap), gap.value, gap.start))
            for gap in chain(at_once, longest):
                if gap not in moved and shelves.is_over(tier, gap):
                    shelves.add(gap, tier.name, -1)
                    moved.add(gap)
        found.append((tier, [gap for gap in here if gap not in moved]))
        here = [gap for gap in here if gap in moved]
    return found


def _written_at_once(problem: Problem, tier: Tier, gaps: Iterable[Gap]) -> Iterator[Gap]:
    """Those of `gaps`, in the order in which they open, that find the link to `tier` free."""
    trace, starts = problem.trace, op_starts(problem.trace)
    link = Ledger(trace.columns.seconds + trace.columns.host_seconds, tier.write.bandwidth)
    for gap in gaps:
        first, nbytes = gap.start + 1, trace.values[gap.value].nbytes
        if first >= len(trace.ops):
            continue
        written = bisect_right(starts, starts[first] + tier.write.seconds(nbytes))
        if not link.is_full(first, written):
            link.book(nbytes, first)
            yield gap
