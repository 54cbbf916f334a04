"""What errors say, and that they survive a worker process."""

import pickle

import pytest

from penstock import errors
from penstock.errors import BudgetError, PenstockError, PlanError, StepChanged, mib

MIB = 2**20


def test_every_error_is_a_penstock_error():
    raised = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]
    assert len(raised) == 9
    assert all(issubclass(error, PenstockError) for error in raised)
    assert issubclass(StepChanged, UserWarning)


def test_the_docstring_draws_the_whole_tree():
    drawn = errors.__doc__ or ""
    assert [name for name in errors.__all__ if name[0].isupper() and name not in drawn] == []


@pytest.mark.parametrize(
    "error",
    [
        BudgetError(100 * MIB, 150 * MIB, "op 3 (aten.mm)", (("its activations", 90 * MIB),)),
        PlanError(["value 1 is wrong", "value 2 is wrong"]),
        errors.TraceError("a trace"),
        errors.TierError("a tier"),
    ],
)
def test_an_error_survives_pickling_with_its_facts(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.__dict__ == error.__dict__


def test_budget_error_says_the_least_that_fits_and_what_fills_it():
    error = BudgetError(100 * MIB, 150 * MIB + 1, "op 3 (aten.mm)", [("its activations", 90 * MIB)])
    assert (error.budget, error.least, error.op) == (100 * MIB, 150 * MIB + 1, "op 3 (aten.mm)")
    assert error.holders == (("its activations", 90 * MIB),)
    assert str(error) == (
        "budget 100 MiB is too small: op 3 (aten.mm) needs 150 MiB at once "
        "(its activations 90 MiB). Raise the budget to 151 MiB or more (50 MiB are missing), "
        "or make the step smaller."
    )


def test_the_budget_that_is_advised_is_never_rounded_down_below_the_least():
    assert "Raise the budget to 1 MiB" in str(BudgetError(1, 2, "op 0 (a)"))


def test_plan_error_shows_twenty_faults_and_counts_the_rest():
    faults = [f"fault {i}" for i in range(23)]
    error = PlanError(faults)
    assert error.faults == tuple(faults)
    assert str(error).splitlines() == [*faults[:20], "and 3 more"]


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0.00 MiB"), (MIB // 2, "0.50 MiB"), (10 * MIB, "10 MiB"), (1234 * MIB, "1,234 MiB")],
)
def test_bytes_are_shown_as_people_read_them(nbytes, text):
    assert mib(nbytes) == text
