"""What a person sees while a script runs: recording, planning, then a line for each step."""

from rich.console import Console

from penstock.errors import mib
from penstock.ir.plan import Plan
from penstock.ir.trace import Trace
from penstock.report.table import forecast, step_line
from penstock.session import Session, StepReport
from penstock.solve.best import Outcome

__all__ = ["Progress"]


class Progress:
    """Tells `console` of a session's progress. Says nothing where nobody watches.

    Lines, not a live display: the script's own output goes to the same terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._session: Session | None = None
        self._told: Plan | None = None

    def follow(self, session: Session) -> None:
        """Begin: `session` is the one whose callbacks are `recorded` and `step`."""
        self._session = session
        self._say("recording: the first step warms up, the second becomes the trace")

    def recorded(self, trace: Trace) -> None:
        session = self._session
        if session is not None:
            self._say(
                f"planning: {len(trace.ops)} ops that take {mib(trace.peak + trace.slack)} without "
                f"a budget, with {session.policy_name}, for {mib(session.budget)}"
            )

    def step(self, report: StepReport) -> None:
        session = self._session
        if session is None or not self._console.is_terminal:
            return
        line = step_line(report, session.budget)
        self._console.print(line, markup=False, soft_wrap=True)
        if report.mode == "planned" and session.outcome is not None:
            self._announce(session, session.outcome)

    def _announce(self, session: Session, found: Outcome) -> None:
        """Tell of a plan once: in full the first that a step has taught, then what changes."""
        if self._told is None and session.trace is not None:
            table = forecast(session.trace, session.machine, session.budget, found)
            self._console.print(table)
        elif found.plan is not self._told:
            peak, seconds = found.timeline.peak, found.timeline.seconds
            self._say(f"planned again: predicted peak {mib(peak)}, step {seconds:.3f} s")
        self._told = found.plan

    def _say(self, text: str) -> None:
        if self._console.is_terminal:
            self._console.print(f"penstock: {text}", markup=False, soft_wrap=True)
