"""auto: ask several policies, blend their answers, and take the best.

Idea      No method wins everywhere. Planning costs seconds, simulating milliseconds, a bad plan
          costs every step: so ask those that plan quickly. A plan that moves too little (most policies
          never touch model state) is a good beginning: `belady` sends away what is still lacking.
          Where ops can use a slow memory as it lies, those are asked too who leave values there.
          Then blend: copies cost nothing while the link keeps up, remakes cost the same at any time. So
          search for how much of each method's remakes to make, swap the rest, and set triggers anew.
Assumes   That the simulator tells the truth, to a few percent: a session also tries the plans of those
          who were often the fastest when carried out.
Inferred  A blend must be `gain` faster than the best answer: what many have used is surer.
Reads     Everything, through the policies that it asks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from penstock.errors import NeedError, PlanError
from penstock.ir.machine import Machine
from penstock.ir.plan import Plan
from penstock.ir.policy import Need, Paper, Policy, Problem
from penstock.policies import ask, configured, quick
from penstock.simulate.run import unbounded
from penstock.solve.best import Outcome
from penstock.solve.blend import blended

__all__ = ["Auto"]


@dataclass(frozen=True, slots=True)
class Auto:
    """The best plan by simulation: one that fits, then the fastest."""

    # Whom to ask; `all`: all that need no time limit. Few, and none that tries for long to fit alone: a
    # step is planned again while it runs, as long as its times are being learnt.
    among: str = "belady capuchin:rounds=7 chen dtr:rounds=1 g10 keep swap-all"
    direct: str = "autotm:time_limit=2 sentinel"  # asked too where ops use a slow memory as it lies
    blends: int = 60  # plans that are tried beside the answers
    seconds: float = 1.0  # after which no other is tried
    gain: float = 0.01  # share of the step's time that a blend must save to be preferred
    # Whose plans a session tries too, where they are about as fast by simulation.
    tried: str = "capuchin dtr rotor:time_limit=1"

    paper: ClassVar[Paper | None] = None
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        """Raise `UsageError` for a name that is none: some are asked when a session has long begun."""
        for name in f"{self.among} {self.direct} {self.tried}".split():
            if name != "all":
                configured(name)

    def __call__(self, problem: Problem) -> Plan:
        answers = list(self.answers(problem))
        if not answers:
            raise NeedError(f"none of {self.among} can plan this step on this machine")
        best = min(answers, key=lambda found: found.rank)
        plain = unbounded(problem.trace, problem.machine).seconds
        is_free = best.timeline.seconds <= (1 + self.gain) * plain
        if not self.blends or (is_free and not best.missing):
            return best.plan
        blend = blended(problem, answers, evaluations=self.blends, time_limit=self.seconds)
        is_faster = blend.timeline.seconds < (1 - self.gain) * best.timeline.seconds
        if blend.missing < best.missing or is_faster:
            return replace(blend.plan, policy=problem.given.policy)  # whoever asks signs it
        return best.plan

    def rivals(self) -> dict[str, Policy]:
        """Each of `tried`, completed where it moves too little."""
        alone = replace(self, direct="", blends=0, tried="")
        return {name: replace(alone, among=name) for name in self.tried.split()}

    def asked(self, machine: Machine) -> list[str]:
        if self.among == "all":
            return [name for name in quick() if name != "auto"]
        is_direct = any(tier.direct for tier in machine.tiers)
        return [*self.among.split(), *(self.direct.split() if is_direct else ())]

    def answers(self, problem: Problem) -> Iterator[Outcome]:
        for name in self.asked(problem.machine):
            found = _answer(configured(name), problem)
            if found is not None and found.shortfall and found.plan.decisions:
                yield found
                found = _answer(configured("belady"), replace(problem, given=found.plan))
            if found is not None:
                yield found


def _answer(policy: Policy, problem: Problem) -> Outcome | None:
    """What `policy` makes of `problem`; None if it cannot."""
    try:
        return ask(policy, problem)
    except (NeedError, PlanError):
        return None
