"""The fast simulator against a plain one, which walks the records of a schedule one by one."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from penstock.ir.machine import Device, Direct, Faults, Link, Machine, Tier
from penstock.ir.plan import Place, Plan, wraps
from penstock.ir.schedule import Cause, Drop, Evict, Prefetch, Run, Wait
from penstock.ir.timeline import COMPUTE, Span, lane_of
from penstock.simulate.chart import Times, chart
from penstock.simulate.lower import lower
from penstock.simulate.run import limit_of, price
from strategies import placements, plans, problems

ALL = 1 << 60
"""Bytes that are more than any step holds."""


class Plain:
    """The design's cost semantics, for schedules that keep nothing away between steps."""

    def __init__(self, schedule, machine, kept=ALL, limit=ALL):
        self.schedule, self.machine, self.trace = schedule, machine, schedule.trace
        self.now = 0.0
        self.spans: list[Span] = []
        self.times: list[tuple[float, float]] = []  # of each action
        self.copies: dict[int, tuple[str, float, float, float]] = {}  # lane, start, end, drag
        self.free_at: defaultdict[str, float] = defaultdict(float)
        self.stalls = dict.fromkeys(Cause, 0.0)
        # Changes of the held bytes: when, in which order at one time, and by how much.
        self.changes: list[tuple[float, int, int]] = []
        self.ran_until: dict[int, float] = {}
        self.leaving: list[tuple[int, Evict, int]] = []
        begins = [v for v in self.trace.initial if v not in schedule.below]
        self.hold(begins, 0.0, -1)
        # What the process keeps of what was freed, among the bytes that it holds.
        self.live = self.highest = self.bytes_of(begins)
        self.kept, self.limit = min(kept, limit), limit
        self.out: list[int] = []  # copies out whose bytes are not free yet
        for row, action in enumerate(schedule.actions):
            start = self.now
            for gone in [one for one in self.out if self.copies[one][2] <= self.now]:
                self.out.remove(gone)
                self.live -= schedule.transfers[gone].nbytes
            match action:
                case Run():
                    start = self.run(action, row)
                case Evict(transfer=transfer):
                    self.leaving.append((row, action, transfer))
                    start = self.copy(transfer, [])
                    self.out.append(transfer)
                case Prefetch(transfer=transfer, out=out, room=room):
                    first = [one for one in (out, *room) if one is not None]
                    start = self.copy(transfer, [self.copies[one][2] for one in first])
                    self.hold([schedule.transfers[transfer].value], start, 3 * row + 1)
                    self.touch(schedule.transfers[transfer].nbytes)
                    self.live += schedule.transfers[transfer].nbytes
                case Wait(transfer=transfer, cause=cause):
                    late = max(0.0, self.copies[transfer][2] - self.now)
                    self.stalls[cause] += late
                    self.now += late
                case Drop(value=value):
                    self.hold([value], self.now, 3 * row, sign=-1)
                    self.live -= self.bytes_of([value])
            is_copy = isinstance(action, Evict | Prefetch)
            end = self.copies[action.transfer][2] if is_copy else self.now
            self.times.append((start, end))
        for row, action, transfer in self.leaving:
            used_until = 0.0 if action.after is None else self.ran_until[action.after]
            freed = max(self.copies[transfer][2], used_until)
            self.hold([schedule.transfers[transfer].value], freed, 3 * row, sign=-1)

    def hold(self, values, at, order, sign=1):
        for value in values:
            self.changes.append((at, order, sign * self.trace.values[value].nbytes))

    def bytes_of(self, values):
        return sum(self.trace.values[value].nbytes for value in values)

    def touch(self, need):
        """So many bytes more are held: how many of them come from the system?"""
        if self.kept + need > self.limit:
            self.kept = self.live
        anew = min(max(self.live + need - self.kept, 0), need)
        self.kept = max(self.kept, self.live + need)
        self.highest = max(self.highest, self.live + need)
        return anew

    def spared(self, op, takes):
        """Seconds of faults in the run of an op, if what it takes was kept."""
        faults = self.machine.device.faults
        blocks = [self.trace.values[value].nbytes for value in takes]

        def seconds(nbytes):
            small = faults.small if nbytes >= 64 << 10 else 0.0
            return nbytes * (faults.large if nbytes >= 4 << 20 else small)

        return sum(map(seconds, blocks)) + seconds(op.workspace) + faults.returned * op.workspace

    def run(self, action, row):
        op = self.trace.ops[action.op]
        if not action.again:
            freed = self.trace.freed_after[op.index - 1] if op.index else ()
            returning = self.machine.device.faults.returned * self.bytes_of(freed)
            self.now += op.host_seconds - min(returning, 0.8 * op.host_seconds)
        start = self.now
        left = op.seconds + sum(map(self.below, action.direct))
        if need := self.bytes_of(action.takes) + op.workspace:
            most = min(self.spared(op, action.takes), 0.8 * left)
            left -= most * (1.0 - self.touch(need) / need)
        self.live += self.bytes_of(action.takes) - self.bytes_of(action.frees)
        while left:
            others = self.copies.values()
            speed = np.prod([1 - drag for _, a, b, drag in others if a <= self.now < b])
            edges = [edge for _, a, b, _ in others for edge in (a, b) if edge > self.now]
            step = min([left / speed, *(edge - self.now for edge in edges)])
            self.now += step
            left -= step * speed
        self.hold(action.takes, start, 3 * row + 1)
        self.changes.append((start, 3 * row + 1, op.workspace))
        self.hold(action.frees, self.now, 3 * row + 2, sign=-1)
        self.changes.append((self.now, 3 * row + 2, -op.workspace))
        if not action.again:
            self.ran_until[action.op] = self.now
        self.spans.append(Span(COMPUTE, start, self.now, action.op, action.again))
        return start

    def below(self, access):
        """Seconds more because a value is used where it is placed."""
        direct, bandwidth = self.machine.tier(access.tier).direct, self.machine.device.bandwidth
        rate = direct.write if access.written else direct.read
        here = 1 / bandwidth if bandwidth else 0.0
        return self.trace.values[access.value].nbytes * max(0.0, 1 / rate - here)

    def copy(self, transfer, after):
        it = self.schedule.transfers[transfer]
        lane, tier = lane_of(it.tier, inward=it.inward), self.machine.tier(it.tier)
        link = tier.read if it.inward else tier.write
        start = max([self.now, self.free_at[lane], *after])
        end = start + link.seconds(it.nbytes)
        self.free_at[lane] = end
        self.copies[transfer] = lane, start, end, tier.drag
        self.spans.append(Span(lane, start, end, it.value))
        return start

    @property
    def curve(self):
        held, points = 0, {}
        for at, _, nbytes in sorted(self.changes):
            held += nbytes
            points[at] = held, max(held, points.get(at, (0, 0))[1])
        return points

    @property
    def peak(self):
        return max(most for _, most in self.curve.values()) + self.trace.slack


@st.composite
def schedules(draw):
    problem = draw(problems())
    plan = draw(plans(problem.trace, problem.machine))
    inside = Plan(tuple(d for d in plan.decisions if not d.gap.wraps))
    budget = draw(st.sampled_from([problem.budget, None]))
    return lower(problem.trace, inside, budget), problem.machine


DIRECT = Machine(
    Device("cpu", 2**40, 2.0**32),
    (Tier("nvm", 2**40, Link(2.0**30), Link(2.0**31), 0.5, Direct(2.0**31, 2.0**30)),),
)


@st.composite
def placed_schedules(draw):
    problem = draw(problems())
    trace = problem.trace
    plan = draw(placements(trace, DIRECT))
    inside = (d for d in plan.decisions if not isinstance(d, Place) and not d.gap.wraps)
    placed = (place for place in plan.places if not wraps(trace, place))
    budget = draw(st.sampled_from([problem.budget, None]))
    return lower(trace, Plan((*inside, *placed)), budget), DIRECT


@given(schedules() | placed_schedules())
def test_the_fast_simulator_and_the_plain_one_agree(case):
    schedule, machine = case
    fast, plain = price(schedule, machine), Plain(schedule, machine)
    assert fast.spans == plain.spans
    assert (fast.seconds, fast.stalls) == (plain.now, plain.stalls)
    assert fast.peak == plain.peak
    # The curve after the last change at each moment.
    last = dict(zip(fast.times.tolist(), fast.total.tolist(), strict=True))
    assert last == {at: held for at, (held, _) in plain.curve.items()}


@given(schedules() | placed_schedules(), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))
def test_they_agree_where_what_is_freed_stays(case, small, large, returned):
    schedule, machine = case
    faults = Faults(small * 2.0**-22, large * 2.0**-22, returned * 2.0**-22)
    machine = replace(machine, device=replace(machine.device, faults=faults))
    highest = Plain(schedule, machine).highest
    fast = price(schedule, machine)
    plain = Plain(schedule, machine, highest, limit_of(schedule, highest))
    assert fast.spans == plain.spans
    assert (fast.seconds, fast.stalls) == (plain.now, plain.stalls)


@given(schedules() | placed_schedules())
def test_a_chart_depends_on_the_times_alone(case):
    """The engine charts what it measured with the code that charts what is predicted."""
    schedule, machine = case
    priced, plain = price(schedule, machine), Plain(schedule, machine)
    start, end = (np.array(column) for column in zip(*plain.times, strict=True))
    never = np.full(len(schedule.copies), -np.inf)
    charted = chart(schedule, Times(start, end, plain.now, plain.stalls, never))
    assert charted.spans == priced.spans
    assert (charted.times == priced.times).all()
    assert (charted.resident == priced.resident).all()
    assert (charted.traffic, charted.peak) == (priced.traffic, priced.peak)
