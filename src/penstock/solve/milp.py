"""A mixed-integer linear programme by columns and rows, solved by HiGHS.

    model = Model()
    keep = model.binary("keep", cost=3.0)
    late = model.continuous("late", upper=10.0, cost=1.0)
    model.at_least(2.0, (keep, 2.0), (late, 1.0))
    solution = model.solve(time_limit=10)
    solution.values["keep"]

The objective is minimised. A name may be anything that hashes, such as `("resident", value, op)`.
"""

import math
from array import array
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import NewType

import numpy as np

from penstock.errors import InternalError, NeedError, SolveError, UsageError

__all__ = ["Model", "Solution", "Variable"]

Variable = NewType("Variable", int)
"""A column of a model."""


@dataclass(frozen=True, slots=True)
class Solution:
    """What was found. `values` is by name; those of integer variables are whole numbers.

    `bound`: no solution has a smaller objective. `proven`: this one is as near to it as was asked.
    """

    values: Mapping[Hashable, float]
    objective: float
    proven: bool
    bound: float


@dataclass(slots=True)
class Model:
    """A programme under construction."""

    names: dict[Hashable, Variable] = field(default_factory=dict)
    offset: float = 0.0  # of the objective
    _cost: "array[float]" = field(default_factory=lambda: array("d"))
    _lower: "array[float]" = field(default_factory=lambda: array("d"))
    _upper: "array[float]" = field(default_factory=lambda: array("d"))
    _whole: "array[int]" = field(default_factory=lambda: array("i"))
    _row_lower: "array[float]" = field(default_factory=lambda: array("d"))
    _row_upper: "array[float]" = field(default_factory=lambda: array("d"))
    _starts: "array[int]" = field(default_factory=lambda: array("i"))
    _columns: "array[int]" = field(default_factory=lambda: array("i"))
    _factors: "array[float]" = field(default_factory=lambda: array("d"))

    @property
    def rows(self) -> int:
        """Number of constraints."""
        return len(self._row_lower)

    def binary(self, name: Hashable, *, cost: float = 0.0) -> Variable:
        """A variable that is 0 or 1."""
        return self._add(name, 0.0, 1.0, cost, whole=True)

    def integer(
        self, name: Hashable, *, lower: float = 0.0, upper: float = math.inf, cost: float = 0.0
    ) -> Variable:
        """A variable that is a whole number."""
        return self._add(name, lower, upper, cost, whole=True)

    def continuous(
        self, name: Hashable, *, lower: float = 0.0, upper: float = math.inf, cost: float = 0.0
    ) -> Variable:
        """A variable that is any number between its bounds."""
        return self._add(name, lower, upper, cost, whole=False)

    def fix(self, variable: Variable, value: float) -> None:
        """The variable can be nothing but `value`."""
        self._lower[variable] = self._upper[variable] = value

    def lower_to(self, variable: Variable, upper: float) -> None:
        """The variable is no more than `upper`."""
        self._upper[variable] = min(self._upper[variable], upper)

    def charge(self, variable: Variable, cost: float) -> None:
        """The variable costs so much more."""
        self._cost[variable] += cost

    def is_fixed(self, variable: Variable) -> bool:
        return self._lower[variable] == self._upper[variable]

    def at_most(self, limit: float, *terms: tuple[Variable, float]) -> None:
        """The sum of variable times factor over `terms` is `limit` or less."""
        self.between(-math.inf, limit, *terms)

    def at_least(self, limit: float, *terms: tuple[Variable, float]) -> None:
        """The sum of variable times factor over `terms` is `limit` or more."""
        self.between(limit, math.inf, *terms)

    def equal(self, value: float, *terms: tuple[Variable, float]) -> None:
        """The sum of variable times factor over `terms` is `value`."""
        self.between(value, value, *terms)

    def between(self, lower: float, upper: float, *terms: tuple[Variable, float]) -> None:
        """The sum of variable times factor over `terms` lies from `lower` to `upper`."""
        factors: dict[Variable, float] = {}
        for variable, factor in terms:  # HiGHS takes each variable once a row
            factors[variable] = factors.get(variable, 0.0) + factor
        self._row_lower.append(lower)
        self._row_upper.append(upper)
        self._starts.append(len(self._columns))
        self._columns.extend(factors.keys())
        self._factors.extend(factors.values())

    def solve(
        self,
        time_limit: float,
        gap: float = 0.0,
        start: Mapping[Hashable, float] | None = None,
    ) -> Solution:
        """The best solution that is found in `time_limit` seconds.

        `gap`: the share of the objective by which it may miss the optimum. `start`: a solution to
        begin with, by name; what it leaves out is completed. Raises `SolveError` if there is no
        solution, or if none is found in time; `NeedError` without HiGHS. Two calls give the same
        solution unless the time limit ends them.
        """
        try:
            import highspy
        except ImportError:
            raise NeedError("this needs HiGHS: pip install 'penstock[solvers]'") from None

        if not time_limit > 0:
            raise UsageError(f"time_limit is {time_limit:g} seconds; it must be more than 0")
        if not self.names:
            return Solution({}, self.offset, proven=True, bound=self.offset)
        costs = np.array(self._cost, np.float64)
        # Costs are often seconds, and far below the solver's tolerances: the largest becomes
        # about a thousand. By a power of two, so that nothing is rounded.
        largest = float(np.abs(costs).max())
        scale = 2.0 ** (10 - math.frexp(largest)[1]) if largest else 1.0
        whole = np.array(self._whole, np.int32)

        solver = highspy.Highs()  # type: ignore[no-untyped-call]
        for option, value in (
            ("output_flag", False),
            ("threads", 1),
            ("time_limit", float(time_limit)),
            ("mip_rel_gap", float(gap)),
        ):
            solver.setOptionValue(option, value)
        status = solver.passModel(
            len(costs),
            self.rows,
            len(self._columns),
            int(highspy.MatrixFormat.kRowwise),
            int(highspy.ObjSense.kMinimize),
            self.offset * scale,
            costs * scale,
            np.array(self._lower, np.float64),
            np.array(self._upper, np.float64),
            np.array(self._row_lower, np.float64),
            np.array(self._row_upper, np.float64),
            np.array(self._starts, np.int32),
            np.array(self._columns, np.int32),
            np.array(self._factors, np.float64),
            whole,
        )
        shape = f"{len(costs)} variables and {self.rows} constraints"
        if status == highspy.HighsStatus.kError:
            raise InternalError(f"HiGHS refuses the programme of {shape}")
        if start:
            named = {self.names[name]: value for name, value in start.items()}
            solver.setSolution(
                len(named),
                np.fromiter(named.keys(), np.int32, len(named)),
                np.fromiter(named.values(), np.float64, len(named)),
            )
        solver.run()

        outcome = solver.getModelStatus()
        if outcome in (
            highspy.HighsModelStatus.kInfeasible,
            highspy.HighsModelStatus.kUnboundedOrInfeasible,
            highspy.HighsModelStatus.kUnbounded,
        ):
            told = solver.modelStatusToString(outcome).lower()
            raise SolveError(f"the programme of {shape} has no solution: HiGHS says {told}")
        info = solver.getInfo()
        if info.primal_solution_status != int(highspy.SolutionStatus.kSolutionStatusFeasible):
            raise SolveError(
                f"no solution of the programme of {shape} was found in {time_limit:g} s: "
                "raise time_limit, or make the step smaller"
            )
        found = np.array(solver.getSolution().col_value, np.float64)
        found = np.where(whole == 1, np.rint(found), found)
        objective = float(costs @ found) + self.offset
        proven = outcome == highspy.HighsModelStatus.kOptimal
        if whole.any():
            bound = min(objective, info.mip_dual_bound / scale)
        else:
            bound = objective if proven else -math.inf
        return Solution(
            dict(zip(self.names, found.tolist(), strict=True)), objective, proven, bound
        )

    def _add(
        self, name: Hashable, lower: float, upper: float, cost: float, *, whole: bool
    ) -> Variable:
        if name in self.names:
            raise InternalError(f"two variables are named {name!r}")
        self.names[name] = variable = Variable(len(self._cost))
        self._cost.append(cost)
        self._lower.append(lower)
        self._upper.append(upper)
        self._whole.append(int(whole))
        return variable
