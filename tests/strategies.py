"""Random steps, machines, plans and problems for hypothesis: small, valid, and shrinkable.

Times and bandwidths are powers of two or small multiples of them, so that sums of them are exact and
properties can compare with `==`.
"""

from dataclasses import dataclass, field, replace

from hypothesis import strategies as st

from penstock.errors import PlanError
from penstock.ir.machine import Device, Link, Machine, Tier
from penstock.ir.plan import Decision, Place, Plan, Recompute, Swap, check
from penstock.ir.policy import Problem
from penstock.ir.trace import Gap, Kind, Op, OpIndex, Phase, StorageId, Trace, Value, ValueId
from penstock.simulate.least import least_budget

__all__ = ["fits", "machines", "placements", "plans", "problems", "traces"]

TICK = 2.0**-10  # seconds
SIZES = st.sampled_from([2**20, 2**22, 2**16, 2**24, 3 * 2**20, 2**10])
_SCRATCH = st.sampled_from([0, 0, 0, 2**10, 2**16, 2**21])


@st.composite
def traces(draw: st.DrawFn, max_layers: int = 6) -> Trace:
    """A forward chain with skips, in-place writes and buffers, its backward, and an optimizer."""
    step = _Step(draw)
    data = step.value(draw(SIZES), Kind.INPUT)
    params = [step.value(draw(SIZES), Kind.PARAMETER) for _ in range(draw(st.integers(1, 2)))]
    buffer = step.value(2**10, Kind.BUFFER)
    live, layers = [data], []
    for _ in range(draw(st.integers(2, max_layers))):
        reads = [live[-1], *draw(st.lists(st.sampled_from(live), max_size=1))]
        param = draw(st.sampled_from([None, *params]))
        reads += [param] if param is not None else []
        in_place = live[-1] != data and draw(st.sampled_from([False, False, True]))
        over = [live[-1]] if in_place else []
        fresh = [] if in_place else [(draw(SIZES), Kind.ACTIVATION)]
        if param is not None and draw(st.booleans()):  # running statistics
            reads, over = [*reads, buffer], [*over, buffer]
        made = step.op(Phase.FORWARD, reads, fresh, over)
        buffer = made.get(buffer, buffer)
        result = made[live[-1]] if in_place else max(set(made.values()) - {buffer})
        live = [*(live[:-1] if in_place else live), result]
        layers.append((reads, result, param))

    gradient = None
    grads: dict[int, int] = {}
    for reads, result, param in reversed(layers):
        # What autograd saved: an operand or the result, unless something overwrote it since.
        kept = [v for v in dict.fromkeys((*reads, result)) if not step.is_overwritten(v)]
        saved = draw(st.lists(st.sampled_from(kept), min_size=1, unique=True)) if kept else []
        inward = [] if gradient is None else [gradient]
        fresh = [(draw(SIZES), Kind.TEMPORARY)]
        if param is not None:
            fresh.append((step.values[param].nbytes, Kind.GRADIENT))
        made = step.op(Phase.BACKWARD, [*inward, *saved], fresh)
        gradient = min(made.values())
        if param is not None:
            grads[param] = max(made.values())
    for param, grad in grads.items():
        state = step.value(step.values[param].nbytes, Kind.OPTIMIZER_STATE)
        step.op(Phase.OPTIMIZER, [grad, param, state], over=[param, state])
    return step.trace()


@dataclass
class _Step:
    """A step under construction."""

    draw: st.DrawFn
    ops: list[Op] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    initial: list[Value] = field(default_factory=list)

    def value(self, nbytes: int, kind: Kind, producer: int | None = None, over: int = -1) -> int:
        number = len(self.values)
        storage = number if over < 0 else self.values[over].storage
        maker = None if producer is None else OpIndex(producer)
        self.values.append(Value(ValueId(number), StorageId(storage), nbytes, kind, maker))
        return number

    def op(
        self,
        phase: Phase,
        reads: list[int],
        fresh: list[tuple[int, Kind]] = (),
        over: list[int] = (),
    ) -> dict[int, int]:
        """Append an op. What it writes, by the version that it overwrites or by itself."""
        index, draw = len(self.ops), self.draw
        made = {}
        for old in over:
            it = self.values[old]
            self.values[old] = replace(it, freed=OpIndex(index))
            made[old] = self.value(it.nbytes, it.kind, index, over=old)
        for nbytes, kind in fresh:
            number = self.value(nbytes, kind, index)
            made[number] = number
        self.ops.append(
            Op(
                OpIndex(index),
                f"op{index}",
                phase,
                tuple(ValueId(v) for v in dict.fromkeys(reads)),
                tuple(ValueId(v) for v in made.values()),
                draw(st.integers(1, 8)) * TICK,
                draw(st.sampled_from([0, 0, 1])) * TICK,
                workspace=draw(_SCRATCH),
                random=draw(st.booleans()),
                repeatable=phase is not Phase.OPTIMIZER and draw(st.integers(0, 9)) < 9,
            )
        )
        return made

    def is_overwritten(self, value: int) -> bool:
        return self.values[value].freed is not None

    def trace(self) -> Trace:
        """Free what is still alive: state never, the rest with its last use or a little later."""
        last_use = {v: op.index for op in self.ops for v in (*op.reads, *op.writes)}
        backward = {v for op in self.ops if op.phase is Phase.BACKWARD for v in op.reads}
        values = []
        for it in self.values:
            saved = it.kind is Kind.ACTIVATION and it.id in backward
            freed = it.freed
            if freed is None and not it.kind.is_state and it.kind is not Kind.INPUT:
                later = last_use[it.id] + self.draw(st.sampled_from([0, 0, 1, 3]))
                freed = OpIndex(later) if later < len(self.ops) else None
            values.append(replace(it, freed=freed, saved=saved))
        return Trace(tuple(self.ops), tuple(values))


@st.composite
def machines(draw: st.DrawFn, min_tiers: int = 1) -> Machine:
    """A device and one or two tiers, from links that hide every copy to links that hide none."""
    links = st.builds(
        Link, st.sampled_from([2.0**30, 2.0**34, 2.0**26]), st.sampled_from([0.0, TICK])
    )
    tiers = tuple(
        Tier(name, 2**40, draw(links), draw(links), draw(st.sampled_from([0.0, 0.5])))
        for name in ("host", "disk")[: draw(st.integers(min_tiers, 2))]
    )
    return Machine(Device("cpu", 2**40), tiers)


@st.composite
def plans(draw: st.DrawFn, trace: Trace, machine: Machine, at_least: int = 1) -> Plan:
    """A valid plan: each gap is kept, swapped or recomputed, at times that nobody would choose."""
    plan = Plan(policy="random")
    early: set[int] = set()  # storages with a copy out that starts before the gap opens
    named: set[int] = set()
    for gap in trace.gaps(at_least):
        storage = trace.values[gap.value].storage
        treatment = draw(st.sampled_from(["swap", "recompute", "keep", "recompute"]))
        if treatment == "keep" or (gap.wraps and storage in early):
            continue
        ahead = treatment == "swap" and storage not in named and draw(st.booleans())
        decision = (
            draw(_swaps(trace, machine, gap, ahead=ahead))
            if treatment == "swap"
            else Recompute(gap, OpIndex(draw(st.integers(gap.start + 1, gap.stop))))
            if gap.stop is not None and not gap.wraps
            else None
        )
        if decision is not None and fits(trace, again := plan.plus([decision])):
            plan = again
            named.add(storage)
            early |= {storage} if ahead else set()
    return plan


@st.composite
def _swaps(draw: st.DrawFn, trace: Trace, machine: Machine, gap: Gap, *, ahead: bool) -> Decision:
    """A swap of `gap`. `ahead`: the copy out starts with the op after which the gap opens."""
    end = len(trace.ops)
    made, freed = trace.values[gap.value].producer, trace.values[gap.value].freed
    first = gap.start if ahead and made != gap.start else gap.start + 1
    last = end if gap.stop is None or gap.wraps else max(first, gap.stop - 2)
    if gap.stop is None and freed is not None:
        last = freed
    evict_at = draw(st.integers(first, last))
    back = None
    if gap.stop is not None:
        earliest = 0 if gap.wraps else max(evict_at, gap.start) + 1
        back = OpIndex(draw(st.integers(min(earliest, gap.stop), gap.stop)))
    idle = max(evict_at, gap.start + 1)
    fence = draw(st.none() | st.integers(idle, end - 1)) if idle < end else None
    tier = draw(st.sampled_from(machine.tiers)).name
    return Swap(gap, tier, OpIndex(evict_at), back, None if fence is None else OpIndex(fence))


@st.composite
def problems(draw: st.DrawFn, max_layers: int = 6) -> Problem:
    """A step, a machine, and a budget between hopeless and more than enough."""
    trace = draw(traces(max_layers))
    least = least_budget(trace).nbytes
    share = draw(st.sampled_from([0.5, 0.0, 0.25, 0.75, 1.0, 1.5, -0.25]))
    budget = least + int(share * (trace.peak - least))
    return Problem(trace, draw(machines()), budget)


def fits(trace: Trace, plan: Plan) -> bool:
    """Does `plan` pass `check`?"""
    try:
        check(trace, plan)
    except PlanError:
        return False
    return True


@st.composite
def placements(draw: st.DrawFn, trace: Trace, machine: Machine) -> Plan:
    """A valid plan that places values, beside decisions of other sorts."""
    plan = draw(st.sampled_from([Plan(policy="random")]) | plans(trace, machine))
    direct = [tier.name for tier in machine.tiers if tier.direct is not None]
    ops = st.integers(0, len(trace.ops))
    values = st.sampled_from(trace.values)
    for value in draw(st.lists(values, max_size=8)):
        out, back = draw(st.none() | ops), draw(st.none() | ops)
        place = Place(value.id, draw(st.sampled_from(direct)), out, back)
        if fits(trace, again := plan.plus([place])):
            plan = again
    return plan
