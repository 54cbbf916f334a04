"""A planned step in words: where the memory goes, what was decided and why, what limits the step,
what to change.

Facts are found by functions that return data, and made into text by those below them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import assert_never

from penstock.errors import mib
from penstock.ir.lineage import lineage
from penstock.ir.machine import Tier
from penstock.ir.plan import Place, Recompute, Residency, Swap
from penstock.ir.policy import Problem
from penstock.ir.schedule import Cause
from penstock.ir.timeline import COMPUTE, WORKSPACE, Timeline
from penstock.ir.trace import Gap, Kind, OpIndex, Trace
from penstock.report.document import Json
from penstock.report.fullest import Share, fullest
from penstock.report.words import duration, spoken
from penstock.simulate.least import least_budget
from penstock.simulate.run import unbounded
from penstock.solve.best import Outcome
from penstock.solve.swaps import late_gaps

__all__ = [
    "Paragraph",
    "Reason",
    "calm_budget",
    "explain",
    "explain_report",
    "reasons",
]

_CALM = 1.01
"""A step this near to the one without a budget counts as costing nothing."""
_PROBES = 6
"""Budgets that `calm_budget` tries: they narrow the range to a sixty-fourth."""
_SHOWN = 8
"""Values and decisions that are listed by name."""


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A heading and what stands under it."""

    title: str
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([self.title, *(f"  {line}" for line in self.lines)])


@dataclass(frozen=True, slots=True)
class Reason:
    """One decision about a gap with what it frees and what it costs."""

    decision: Swap | Recompute
    nbytes: int
    idle_seconds: float  # from the use before to the use after, as predicted
    copy_seconds: float | None  # out and back, alone on the links; None: there is no tier
    remake_ops: tuple[OpIndex, ...]  # that make it again; empty: it is swapped
    is_late: bool  # it was still on its way in when it was needed
    is_away_at_peak: bool  # it is idle while the step without a budget holds most


def explain(problem: Problem, found: Outcome, calm: int | None = None) -> tuple[Paragraph, ...]:
    """All there is to say of a plan. `calm`: what `calm_budget` found, if anybody looked."""
    return (
        _memory(problem.trace, found),
        _decisions(problem, found),
        _limits(problem, found),
        _advice(problem, found, calm),
    )


# -- facts ---------------------------------------------------------------------------------------


def reasons(problem: Problem, found: Outcome) -> tuple[Reason, ...]:
    """The decisions of a plan about gaps with what speaks for them, the largest values first."""
    if not found.plan.decisions:
        return ()
    trace, tiers = problem.trace, problem.machine.tiers
    idle = _idle_seconds(found.timeline)
    late, residency = late_gaps(found), Residency(trace, found.plan)
    worst = int(trace.live.argmax())

    def reason(decision: Swap | Recompute) -> Reason:
        gap = decision.gap
        nbytes = trace.values[gap.value].nbytes
        again: tuple[OpIndex, ...] = ()
        match decision:
            case Swap(tier=name):
                tier: Tier | None = problem.machine.tier(name)
            case Recompute(remake_at=at):
                tier = tiers[0] if tiers else None
                again = lineage(trace, gap.value, at, residency.holds)
            case _:
                assert_never(decision)
        # What nothing uses again never comes back.
        copies = (tier.write, tier.read)[: 1 if gap.stop is None else 2] if tier else ()
        return Reason(
            decision,
            nbytes,
            idle(gap),
            sum(link.seconds(nbytes) for link in copies) if copies else None,
            again,
            gap in late,
            gap.covers(worst),
        )

    about_gaps: tuple[Swap | Recompute, ...] = (*found.plan.swaps, *found.plan.recomputes)
    return tuple(sorted(map(reason, about_gaps), key=lambda it: (-it.nbytes, -it.idle_seconds)))


def calm_budget(
    problem: Problem, found: Outcome, solve: Callable[[Problem], Outcome]
) -> int | None:
    """About the least budget at which a plan costs no time: 1 % over the step without one, or less.

    `found` is what `solve` made of the problem. Asks it a few times more, halving the range each
    time; None if no budget below what the step takes without one will do.
    """
    trace = problem.trace
    low, high = least_budget(trace).nbytes, trace.peak + trace.slack
    at_most = _CALM * unbounded(trace, problem.machine).seconds

    def is_calm(found: Outcome) -> bool:
        return not found.shortfall and found.timeline.seconds <= at_most

    calm = None
    if is_calm(found):
        calm = high = min(problem.budget, high)
    else:
        low = max(problem.budget, low)
    for _ in range(_PROBES):
        if high - low <= trace.peak // 100:
            break
        budget = (low + high) // 2
        tried = solve(Problem(trace, problem.machine, budget, problem.given))
        if is_calm(tried):
            calm = high = budget
        else:
            low = budget
    return calm


def _idle_seconds(timeline: Timeline) -> Callable[[Gap], float]:
    """For a gap: the predicted seconds between the use that opens it and the one that closes it."""
    first = timeline.first_runs
    starts, ends = timeline.span_start[first].tolist(), timeline.span_end[first].tolist()

    def idle(gap: Gap) -> float:
        until = timeline.seconds if gap.stop is None else starts[gap.stop]
        if gap.wraps:
            until += timeline.seconds
        return float(until - ends[gap.start])

    return idle


# -- where the memory goes -----------------------------------------------------------------------


def _memory(trace: Trace, found: Outcome) -> Paragraph:
    if not found.timeline.times.size:
        return Paragraph("The step holds nothing.", ())
    most = fullest(found.schedule, found.timeline)
    when = "before the first op"
    if most.op is not None:
        op = trace.ops[most.op]
        when = f"in {op.phase}, {trace.describe_op(op.index)}"
    lines = [
        f"{mib(most.nbytes)} at {duration(most.seconds)} of {duration(found.timeline.seconds)}, {when}",
        f"by kind: {_shares(_spoken_of(most.kinds), most.nbytes)}",
    ]
    if any(module for module, _ in most.modules):
        named = [(module or "outside any module", nbytes) for module, nbytes in most.modules]
        lines.append(f"by module: {_shares(named, most.nbytes)}")
    lines.append("the largest values:")
    for value in most.values[:_SHOWN]:
        it = trace.values[value]
        lines.append(f"  {mib(it.nbytes)}  {spoken(it.kind)}  {trace.describe(value)}")
    return Paragraph("Where the memory goes, when the device is fullest", tuple(lines))


def _shares(shares: Iterable[Share], of: int) -> str:
    """Each with its share of the whole; what is under half a percent is left out."""
    parts = [f"{what} {mib(n)} ({n / of:.0%})" for what, n in shares if n >= 0.005 * of]
    return ", ".join(parts[:_SHOWN] + ["others"] * (len(parts) > _SHOWN))


# -- what was decided, and why -------------------------------------------------------------------


def _decisions(problem: Problem, found: Outcome) -> Paragraph:
    trace, title = problem.trace, "What was decided, and why"
    known = reasons(problem, found)
    if not found.plan.decisions:
        fits = problem.budget >= trace.peak + trace.slack
        why = "the whole step fits" if fits else "this plan decides nothing"
        return Paragraph(title, (f"everything is kept: {why}",))
    lines = [
        _tally(known, "swapped", Swap),
        _tally(known, "recomputed", Recompute),
        _placed(trace, found.plan.places),
    ]
    lines += [_in_words(trace, reason) for reason in known[:_SHOWN]]
    if hidden := len(known) - _SHOWN:
        lines += [f"and {hidden} more"] if hidden > 0 else []
    return Paragraph(title, tuple(filter(None, lines)))


def _tally(known: Iterable[Reason], what: str, sort: type[Swap | Recompute]) -> str:
    nbytes = [reason.nbytes for reason in known if isinstance(reason.decision, sort)]
    values = f"{len(nbytes)} value{'s' if len(nbytes) != 1 else ''}"
    return f"{values} {what}, {mib(sum(nbytes))} in all" if nbytes else ""


def _placed(trace: Trace, places: Sequence[Place]) -> str:
    storages = {trace.values[place.value].storage: place.value for place in places}
    nbytes = sum(trace.values[value].nbytes for value in storages.values())
    values = f"{len(storages)} value{'s' if len(storages) != 1 else ''}"
    tiers = ", ".join(sorted({place.tier for place in places}))
    return (
        f"{values} placed in {tiers}, where ops reach them, {mib(nbytes)} in all" if places else ""
    )


def _in_words(trace: Trace, reason: Reason) -> str:
    decision, gap = reason.decision, reason.decision.gap
    stop = "the end" if gap.stop is None else f"op {gap.stop}"
    if gap.wraps:
        stop += " of the next step"
    peak = ", while the step is fullest" if reason.is_away_at_peak else ""
    head = (
        f"{trace.describe(gap.value)}, {mib(reason.nbytes)}, idle for {duration(reason.idle_seconds)} "
        f"from op {gap.start} to {stop}{peak}"
    )
    match decision:
        case Swap(tier=tier):
            assert reason.copy_seconds is not None
            way = "out" if gap.stop is None else "out and back"
            return f"{head}: swapped to {tier}, {way} in {duration(reason.copy_seconds)}, " + (
                "and waited for" if reason.is_late else "without being waited for"
            )
        case Recompute():
            seconds = sum(trace.ops[op].seconds for op in reason.remake_ops)
            ops = f"{len(reason.remake_ops)} op{'s' if len(reason.remake_ops) != 1 else ''}"
            rate = seconds / (reason.nbytes / 2**20) if reason.nbytes else 0.0
            cost = f"remade by {ops} in {duration(seconds)}, {duration(rate)} a MiB"
            return f"{head}: {cost}{_against_a_copy(reason, seconds)}"
        case _:
            assert_never(decision)


def _against_a_copy(reason: Reason, seconds: float) -> str:
    copy = reason.copy_seconds
    if copy is None:
        return "; there is no tier to copy it to"
    if copy > reason.idle_seconds:
        return f"; a copy out and back takes {duration(copy)}, longer than it is idle"
    if seconds < copy:
        return f"; a copy out and back keeps the links busy for {duration(copy)}"
    return ""


# -- what limits the step ------------------------------------------------------------------------


def _limits(problem: Problem, found: Outcome) -> Paragraph:
    trace, timeline = problem.trace, found.timeline
    free = unbounded(trace, problem.machine)
    plain, again = free.seconds, timeline.recompute_seconds
    dragged = timeline.busy(COMPUTE) - again - free.busy(COMPUTE)
    over = f" ({timeline.seconds / plain - 1:+.1%})" if plain else ""
    lines = [f"{duration(timeline.seconds)} a step, {duration(plain)} without a budget{over}"]
    lines += [
        f"waiting {_CAUSES[cause]}: {_part(seconds, timeline.seconds)}"
        for cause, seconds in timeline.stalls.items()
        if seconds
    ]
    if again:
        lines.append(f"recomputation: {_part(again, timeline.seconds)}")
    by = _what_slows(problem, timeline)
    if dragged > 1e-9:
        lines.append(f"compute slowed down by {by}: {_part(dragged, timeline.seconds)}")
    for lane in timeline.lanes:
        moved = f", {mib(timeline.traffic[lane])}" if lane in timeline.traffic else ""
        lines.append(f"{lane} is busy for {_part(timeline.busy(lane), timeline.seconds)}{moved}")
    if found.shortfall:
        op = found.schedule.worst
        where = f" at {trace.describe_op(op)}" if op is not None else ""
        lines.append(f"so: the plan does not fit, {mib(found.shortfall)} are missing{where}")
    else:
        lines.append(f"so: {_verdict(timeline, plain, dragged, by)}")
    return Paragraph("What limits the step", tuple(lines))


_CAUSES = {
    Cause.INPUT: "for values that are on their way in",
    Cause.ROOM: "for room that copies out have yet to make",
    Cause.FENCE: "because the plan says so",
}


def _what_slows(problem: Problem, timeline: Timeline) -> str:
    """What can make ops take longer than without a budget."""
    if not problem.machine.device.faults:
        return "copies"
    return "copies and page faults" if timeline.lanes[1:] else "page faults"


def _verdict(timeline: Timeline, plain: float, dragged: float, by: str) -> str:
    if timeline.seconds <= _CALM * plain:
        return "compute is the limit; the budget costs next to nothing"
    losses: dict[str, float] = {
        **{str(cause): seconds for cause, seconds in timeline.stalls.items()},
        "again": timeline.recompute_seconds,
        "drag": dragged,
    }
    worst = max(losses, key=lambda what: losses[what])
    copies = timeline.lanes[1:]
    busiest = max(copies, key=timeline.busy, default="")
    if worst == "again":
        return "recomputation is the limit; a faster tier would let more be swapped"
    if worst == "drag":
        return f"{by} take speed from compute" + (f"; {busiest} is the busiest" if busiest else "")
    if timeline.busy(busiest) >= 0.8 * timeline.seconds:
        return f"{busiest} is the limit: it hardly ever rests"
    if worst == Cause.INPUT:
        return "copies back come too late where many are wanted at once"
    return "copies out end too late where much room is wanted at once"


def _part(seconds: float, of: float) -> str:
    return f"{duration(seconds)} ({seconds / of:.0%})" if of else duration(seconds)


# -- what to change ------------------------------------------------------------------------------


def _advice(problem: Problem, found: Outcome, calm: int | None) -> Paragraph:
    trace, least = problem.trace, least_budget(problem.trace)
    lines = [
        f"budget {mib(problem.budget)}; without one {mib(trace.peak + trace.slack)}",
    ]
    if trace.ops:
        filled = ", ".join(f"{what} {mib(n)}" for what, n in least.holders)
        needs = f"{trace.describe_op(least.op)} needs that at once ({filled})"
        lines.append(f"no plan does with less than {mib(least.nbytes)}: {needs}")
    if calm is not None and calm > problem.budget:
        lines.append(f"from about {mib(calm)} on, the budget costs no time")
    elif calm is not None and calm < min(problem.budget, trace.peak + trace.slack):
        lines.append(f"about {mib(calm)} would cost no time either")
    if found.timeline.peak:
        kind, nbytes = next(iter(found.timeline.at_peak().items()))
        share = nbytes / found.timeline.peak
        lines.append(f"{spoken(kind)} is the most of the peak ({share:.0%}): {_remedy(kind)}")
    return Paragraph("What to change", tuple(lines))


def _remedy(kind: str) -> str:
    """What makes less of this kind of bytes, beside a smaller budget."""
    if kind == WORKSPACE:
        return "another algorithm for the op that takes it, or a smaller batch"
    if kind == "allocator":
        return "it belongs to no value; fewer different sizes of tensors make less of it"
    match Kind(kind):
        case Kind.ACTIVATION | Kind.INPUT:
            return (
                "it grows with the batch and the length of a sample; a smaller budget moves it out"
            )
        case Kind.TEMPORARY:
            return "what backward makes on the way; a smaller batch makes less"
        case Kind.GRADIENT:
            return "frozen parameters need none, and zero_grad(set_to_none=True) frees them sooner"
        case Kind.OPTIMIZER_STATE:
            return "an optimizer with less state (SGD has one value or none a parameter, Adam two)"
        case Kind.PARAMETER | Kind.BUFFER:
            return "the model itself; a narrower dtype halves it, a smaller budget moves it out"
        case other:
            assert_never(other)


# -- a report ------------------------------------------------------------------------------------


def explain_report(body: Json) -> tuple[Paragraph, ...]:
    """What a report that `penstock run --report` left says in words."""
    runs = [name for name in ("predicted", "measured") if body[name] is not None]
    paragraphs = [Paragraph("The run", tuple(_run_facts(body)))]
    for name in runs:
        run = body[name]
        of, peak = run["seconds"], run["peak"]
        lines = [
            f"{mib(peak)} at the peak: {_shares(_spoken_of(run['at_peak'].items()), peak)}",
            f"{duration(of)} a step",
        ]
        lines += [
            f"waiting {_CAUSES[Cause(cause)]}: {_part(seconds, of)}"
            for cause, seconds in run["stalls"].items()
            if seconds
        ]
        if run["recompute_seconds"]:
            lines.append(f"recomputation: {_part(run['recompute_seconds'], of)}")
        lines += [f"{lane} moves {mib(nbytes)}" for lane, nbytes in run["traffic"].items()]
        paragraphs.append(Paragraph(f"One step, {name}", tuple(lines)))
    if len(runs) == 2:
        paragraphs.append(Paragraph("How far the prediction was off", tuple(_errors(body))))
    return tuple(paragraphs)


def _run_facts(body: Json) -> Iterator[str]:
    without, steps = body["without_budget"], body["steps"]
    yield f"budget {mib(body['budget'])}, policy {body['policy']}, {body['machine']['device']['name']}"
    if without is not None:
        yield f"without a budget: {mib(without['peak'])}, {duration(without['seconds'])} a step"
        yield f"no plan does with less than {mib(body['least_budget'])}"
    planned = [step for step in steps if step["mode"] == "planned"]
    yield f"{len(steps)} steps, {len(planned)} of them planned"
    if planned:  # while a budget is a share, the first steps show what it is a share of
        most = max(step["peak"] for step in planned)
        of = f"{most / body['budget']:.1%} of the budget"
        yield f"planned steps took at most {mib(most)} ({of})"
    for event, count in Counter(e for step in steps for e in step["events"]).most_common(_SHOWN):
        yield f"{event}" + (f" ({count} times)" if count > 1 else "")


def _errors(body: Json) -> Iterator[str]:
    for what in ("peak", "seconds"):
        predicted, measured = body["predicted"][what], body["measured"][what]
        if measured:
            yield f"{what} {predicted / measured - 1:+.1%}"


# -- words ---------------------------------------------------------------------------------------


def _spoken_of(kinds: Iterable[Share]) -> Iterator[Share]:
    return ((spoken(kind), nbytes) for kind, nbytes in kinds)
