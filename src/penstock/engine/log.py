"""What a followed step did and when: for its chart, and to plan better with."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from penstock.engine.lanes import Copy
from penstock.ir.machine import Link, Machine
from penstock.ir.schedule import Cause, Schedule, Verb
from penstock.ir.timeline import Timeline, lane_of
from penstock.simulate.chart import Times, chart

__all__ = ["Log"]

_TELLING = 64 << 20
"""A lane that moved fewer bytes than this says nothing about its bandwidth."""


class Log:
    """When each action of a schedule happened, by its row."""

    def __init__(self, schedule: Schedule, began: float) -> None:
        self.schedule = schedule
        self.began = began
        self.times: dict[int, tuple[float, float]] = {}
        self.copies: dict[int, Copy] = {}
        self.samples: list[tuple[float, int]] = []  # seconds since the step began, bytes held
        self._row_of = [around.row for around in schedule.around]

    def ran(self, op: int, begun: float, ended: float, held: int) -> None:
        """Op `op` ran its first time in this step; afterwards the device held `held` bytes."""
        self.times[self._row_of[op]] = begun, ended
        self.samples.append((ended - self.began, held))

    def chart(self, seconds: float, stalls: dict[Cause, float]) -> Timeline:
        """The measured timeline. What was left out counts as done when the host got there."""
        verb = self.schedule.verb
        start, end = np.full(len(verb), np.nan), np.full(len(verb), np.nan)
        for row, (begun, ended) in self.times.items():
            start[row], end[row] = begun, ended
        for row, copy in self.copies.items():
            if copy.ended:
                start[row], end[row] = copy.started, copy.ended
        on_compute = np.where((verb <= Verb.RUN_AGAIN) & ~np.isnan(end), end, self.began)
        reached = np.maximum.accumulate(on_compute)
        missing = np.isnan(start)
        start[missing] = end[missing] = reached[missing]
        earlier = np.full(len(self.schedule.copies), -np.inf)
        times = Times(start - self.began, end - self.began, seconds, stalls, earlier)
        return chart(self.schedule, times)

    def seconds(self) -> NDArray[np.float64]:
        """Ops x (own, host) seconds in this step; NaN for an op that was not seen."""
        found = np.full((len(self._row_of), 2), np.nan)
        verbs, subjects = self.schedule.verb.tolist(), self.schedule.subject.tolist()
        left = self.began  # when the compute lane was last busy or waiting
        for row in sorted(self.times):
            begun, ended = self.times[row]
            if verbs[row] == Verb.RUN:
                found[subjects[row]] = ended - begun, max(0.0, begun - left)
            left = ended
        return found

    def rates(self, machine: Machine) -> Machine:
        """The machine with the bandwidths that its links had in this step, beside compute."""
        moved: defaultdict[str, int] = defaultdict(int)
        busy: defaultdict[str, float] = defaultdict(float)
        transfers = self.schedule.transfers
        for row, copy in self.copies.items():
            if copy.ended and copy.error is None and not copy.was_called_back:
                transfer = transfers[self.schedule.subject[row]]
                lane = lane_of(transfer.tier, inward=transfer.inward)
                moved[lane] += copy.nbytes
                busy[lane] += copy.ended - copy.started

        def link(name: str, known: Link, *, inward: bool) -> Link:
            lane = lane_of(name, inward=inward)
            if moved[lane] < _TELLING:
                return known
            return Link(moved[lane] / busy[lane])

        return machine.with_tiers(
            *(
                replace(
                    tier,
                    write=link(tier.name, tier.write, inward=False),
                    read=link(tier.name, tier.read, inward=True),
                )
                for tier in machine.tiers
            )
        )
