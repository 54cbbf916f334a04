"""What counts against a budget, paper by paper."""

from dataclasses import replace

from penstock.ir.policy import Counts, Problem

__all__ = ["counted"]


def counted(problem: Problem, counts: Counts) -> Problem:
    """The same problem with a budget that is only for what `counts` says.

    The trace keeps its ops and values, so a plan for the one fits the other.
    """
    trace, budget = problem.trace, problem.budget
    if not counts.state:
        budget += sum(
            trace.values[v].nbytes for v in trace.initial if trace.values[v].kind.is_state
        )
    if not counts.workspace:
        trace = replace(trace, ops=tuple(replace(op, workspace=0) for op in trace.ops))
    if not counts.slack:
        trace = replace(trace, slack=0)
    return replace(problem, trace=trace, budget=budget)
