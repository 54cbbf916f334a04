"""Policies: one method, one file, found by its name.

A policy is a frozen dataclass that turns a `Problem` into a `Plan`; its file is named like it
(`swap_all.py` holds `SwapAll`). An outside package adds one through the entry point group
`penstock.policies`.
"""

import importlib
import math
import pkgutil
import re
from dataclasses import fields, replace
from importlib.metadata import entry_points
from typing import Any, get_args

from penstock.errors import NeedError, UsageError, nearest
from penstock.ir.policy import Accounted, Need, Policy, Problem
from penstock.simulate.accounting import counted
from penstock.solve.best import Outcome, outcome

__all__ = ["ask", "configured", "limited", "load", "names", "quick", "require", "words_of"]

_GROUP = "penstock.policies"


def names() -> tuple[str, ...]:
    """Every policy that can be loaded, by name."""
    own = {info.name.replace("_", "-") for info in pkgutil.iter_modules(__path__)}
    return tuple(sorted(own | {point.name for point in entry_points(group=_GROUP)}))


def quick() -> tuple[str, ...]:
    """Those that need no time limit: the others are solvers, or searches, and slow."""
    return tuple(name for name in names() if not _takes_a_limit(name))


def limited(name: str, seconds: float) -> str:
    """The policy `name` as it is asked for, with so many seconds if it takes a time limit."""
    return f"{name}:time_limit={seconds:g}" if _takes_a_limit(name) else name


def _takes_a_limit(name: str) -> bool:
    return "time_limit" in {field.name for field in fields(load(name))}  # type: ignore[arg-type]


def load(name: str) -> type[Policy]:
    """The policy class called `name`. Raises `UsageError` if there is none."""
    own = {info.name for info in pkgutil.iter_modules(__path__)}
    if (file := name.replace("-", "_")) in own:
        module = importlib.import_module(f"{__name__}.{file}")
        found: type[Policy] = getattr(module, file.title().replace("_", ""))
        return found
    for point in entry_points(group=_GROUP):
        if point.name == name:
            return point.load()  # type: ignore[no-any-return]
    raise UsageError(
        f"no policy is called {name!r}{nearest(name, names())}; there are: {', '.join(names())}"
    )


def configured(text: str) -> Policy:
    """A policy with its options, from `name` or `name:option=value,option=value`."""
    name, _, options = text.partition(":")
    policy = load(name.strip())
    known = {field.name: field for field in fields(policy)}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for option in filter(None, options.split(",")):
        key, equals, value = (part.strip() for part in option.partition("="))
        if key not in known or not equals:
            takes = ", ".join(known) or "no options"
            hint = nearest(key, known)
            raise UsageError(
                f"policy {name}: option {option!r} is not known{hint}; it takes {takes}"
            )
        given[key] = _read(value, known[key].type, f"policy {name}: option {key}")
    return policy(**given)


def ask(policy: Policy, problem: Problem) -> Outcome:
    """What `policy` makes of `problem`: its plan, signed, spelled out and priced.

    Under `accounting=paper` the budget is for what the policy's paper counts, here and in the price.
    Raises `NeedError` if `problem` lacks what the policy cannot do without, `PlanError` if the plan
    does not fit the trace.
    """
    require(policy, problem)
    if isinstance(policy, Accounted) and policy.accounting == "paper":
        problem = counted(problem, policy.counts)
    plan = policy(problem)
    if plan.policy == problem.given.policy:
        plan = replace(plan, policy=" + ".join(filter(None, (plan.policy, _name(policy)))))
    return outcome(problem, plan)


def require(policy: Policy, problem: Problem) -> None:
    """Raise `NeedError` if `problem` lacks what `policy` cannot do without."""
    missing = []
    if Need.TIER in policy.needs and not problem.machine.tiers:
        missing.append(Need.TIER)
    if Need.SECONDS in policy.needs and not problem.trace.seconds:
        missing.append(Need.SECONDS)
    if missing:
        raise NeedError(f"policy {type(policy).__name__} needs {' and '.join(missing)}")


def words_of(kind: Any) -> tuple[str, ...]:
    """The words between which an option of type `kind` is a choice; none if it is no such choice."""
    choices = get_args(kind)
    return choices if all(isinstance(choice, str) for choice in choices) else ()


def _name(policy: Policy) -> str:
    """`SwapAll` is called swap-all."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", type(policy).__name__).lower()


def _read(text: str, kind: Any, what: str) -> Any:
    """One option's value as its field's type says."""
    choices = get_args(kind)
    try:
        if words_of(kind):
            if text not in choices:
                raise ValueError
            return text
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if type(None) in choices:
            if text.lower() == "none":
                return None
            kind = next(choice for choice in choices if choice is not type(None))
        read = kind(text)
    except (ValueError, KeyError):
        wanted = " or ".join(map(repr, choices)) if choices else getattr(kind, "__name__", kind)
        raise UsageError(f"{what}: {text!r} is not {wanted}") from None
    if isinstance(read, int | float) and not 0 <= read < math.inf:
        raise UsageError(f"{what}: {text} is out of range; it must be 0 or more, and finite")
    return read
