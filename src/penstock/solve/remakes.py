"""When dropped values are remade, and together with which others."""

from penstock.ir.lineage import Gone, lineage
from penstock.ir.plan import Plan, Recompute, Residency
from penstock.ir.trace import Gap, Trace, ValueId

__all__ = ["collective", "remade_at_need"]


def remade_at_need(
    rest: Plan, trace: Trace, targets: list[Gap]
) -> tuple[list[Recompute], list[Gap]]:
    """The targets that can be remade when they are needed, beside `rest`; and those that cannot."""
    alone = [Recompute(gap, gap.stop) for gap in targets if gap.stop is not None]
    lost = _impossible(rest, trace, alone)
    return [one for one in alone if one.gap not in lost], lost


def _impossible(rest: Plan, trace: Trace, remakes: list[Recompute]) -> list[Gap]:
    """The gaps of those of `remakes` whose lineage is gone when they are due, beside `rest`."""
    residency = Residency(trace, rest.plus(remakes))
    lost: list[Gap] = []
    for decision in remakes:
        try:
            lineage(trace, decision.gap.value, decision.remake_at, residency.holds)
        except Gone:
            lost.append(decision.gap)
    return lost


def collective(rest: Plan, trace: Trace, targets: list[Recompute]) -> list[Recompute]:
    """Targets that are made on the way to a target needed earlier are kept in that pass."""
    at = {decision.gap: decision.remake_at for decision in targets}
    gaps_of: dict[ValueId, list[Gap]] = {}
    for gap in at:
        gaps_of.setdefault(gap.value, []).append(gap)
    residency = Residency(trace, rest.plus(targets))
    for decision in sorted(targets, key=lambda one: one.remake_at):
        when = at[decision.gap]
        try:
            ops = lineage(trace, decision.gap.value, when, residency.holds)
        except Gone:
            return []
        for value in {v for op in ops for v in trace.ops[op].writes}:
            for gap in gaps_of.get(value, ()):
                if gap.start < when < at[gap]:
                    at[gap] = when
    joined = [Recompute(gap, when) for gap, when in at.items()]
    return [] if _impossible(rest, trace, joined) else joined
