"""What a followed step did and when: for its chart, and to plan better with."""

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from penstock.engine.lanes import Copy
from penstock.engine.watch import Moment, Watch
from penstock.ir.machine import Link, Machine
from penstock.ir.schedule import Cause, Schedule, Verb
from penstock.ir.timeline import Timeline, lane_of
from penstock.simulate.chart import Times, chart

__all__ = ["Log"]

_TELLING = 64 << 20
"""A lane that moved fewer bytes than this says nothing about its bandwidth."""


class Log:
    """When each action of a schedule happened, by its row.

    What it says of times, it says when the step has ended: on a GPU it waits for the device then.
    """

    def __init__(self, schedule: Schedule, watch: Watch) -> None:
        self.schedule = schedule
        self.watch, self.now = watch, watch.now
        self.times: dict[int, tuple[Moment, Moment]] = {}
        self.waits: dict[int, Cause] = {}  # those of `times` in which the compute lane stood still
        self.copies: dict[int, Copy] = {}
        self.samples: list[tuple[float, int]] = []  # seconds since the step began, bytes held
        self._row_of = [around.row for around in schedule.around]

    def ran(self, op: int, begun: Moment, held: int) -> None:
        """Op `op` ran its first time in this step; now the device holds `held` bytes."""
        self.times[self._row_of[op]] = begun, self.now()
        self.samples.append((time.perf_counter() - self.watch.began, held))

    def did(self, row: int, begun: Moment) -> None:
        """The action of `row` began at `begun` and has ended."""
        self.times[row] = begun, self.now()

    def waited(self, row: int, begun: Moment, cause: Cause) -> None:
        self.did(row, begun)
        self.waits[row] = cause

    def stalls(self) -> dict[Cause, float]:
        """Seconds in which the compute lane stood still, by cause."""
        found = dict.fromkeys(Cause, 0.0)
        times = self._times()
        for row, cause in self.waits.items():
            begun, ended = times[row]
            found[cause] += ended - begun
        return found

    def _times(self) -> dict[int, tuple[float, float]]:
        self.watch.settle()
        told = self.watch.seconds
        return {row: (told(begun), told(ended)) for row, (begun, ended) in self.times.items()}

    def _span(self, copy: Copy) -> tuple[float, float]:
        """When a copy that has ended moved its bytes."""
        if copy.begun is None or copy.finished is None:
            return copy.started, copy.ended
        return self.watch.seconds(copy.begun), self.watch.seconds(copy.finished)

    def chart(self, seconds: float, stalls: dict[Cause, float]) -> Timeline:
        """The measured timeline. What was left out counts as done when the host got there."""
        verb = self.schedule.verb
        start, end = np.full(len(verb), np.nan), np.full(len(verb), np.nan)
        for row, (begun, ended) in self._times().items():
            start[row], end[row] = begun, ended
        for row, copy in self.copies.items():
            if copy.ended:
                start[row], end[row] = self._span(copy)
        began = self.watch.began
        on_compute = np.where((verb <= Verb.RUN_AGAIN) & ~np.isnan(end), end, began)
        reached = np.maximum.accumulate(on_compute)
        missing = np.isnan(start)
        start[missing] = end[missing] = reached[missing]
        for out, back in self._stayed():
            start[out] = end[out] = start[back]
        earlier = np.full(len(self.schedule.copies), -np.inf)
        times = Times(start - began, end - began, seconds, stalls, earlier)
        return chart(self.schedule, times)

    def _stayed(self) -> Iterator[tuple[int, int]]:
        """The rows of an eviction that was called back, and of the copy in that was asked too early."""
        subject, extra = self.schedule.subject, self.schedule.extra
        stayed = {
            int(subject[row]): row
            for row, copy in self.copies.items()
            if copy.ended and not copy.inward and not copy.has_gone()
        }
        if not stayed:
            return
        for back in np.flatnonzero(self.schedule.verb == Verb.PREFETCH).tolist():
            out = stayed.get(int(extra[back]), back)
            if out < back:  # not that of the next step
                yield out, back

    def seconds(self) -> NDArray[np.float64]:
        """Ops x (own, host) seconds in this step; NaN for an op that was not seen."""
        found = np.full((len(self._row_of), 2), np.nan)
        verbs, subjects = self.schedule.verb.tolist(), self.schedule.subject.tolist()
        left = self.watch.began  # when the compute lane was last busy or waiting
        for row, (begun, ended) in sorted(self._times().items()):
            if verbs[row] == Verb.RUN:
                found[subjects[row]] = ended - begun, max(0.0, begun - left)
            left = ended
        return found

    def rates(self, machine: Machine) -> Machine:
        """The machine with the bandwidths that its links had in this step, beside compute."""
        moved: defaultdict[str, int] = defaultdict(int)
        busy: defaultdict[str, float] = defaultdict(float)
        transfers = self.schedule.transfers
        self.watch.settle()
        for row, copy in self.copies.items():
            if copy.ended and copy.error is None and not copy.was_called_back:
                transfer = transfers[self.schedule.subject[row]]
                lane = lane_of(transfer.tier, inward=transfer.inward)
                moved[lane] += copy.moved
                begun, ended = self._span(copy)
                busy[lane] += ended - begun

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
