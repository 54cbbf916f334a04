"""What memory costs that comes anew: to which ops it is added, and how its rates are found."""

from dataclasses import replace

import numpy as np
import pytest

from penstock.ir.machine import Device, Faults, Machine, Rate
from penstock.ir.plan import Plan
from penstock.ir.text import parse
from penstock.simulate.faults import Taken, fitted_faults, in_ops, while_freeing
from penstock.simulate.lower import lower
from penstock.simulate.roofline import priced
from penstock.simulate.run import price, unbounded

STEP = """
    f a x:I1M   -> h:A2M!  {a} +8M
    f b h       -> y:A32K! {b}
    b c y h     -> g:T16M  {c}
    b d g y     -> e:T1M   {d}
"""
UNTIMED = parse(STEP.format(a="0s", b="0s", c="0s", d="0s"))
RATES = Faults(small=2.0**-20, large=2.0**-22, returned=2.0**-23)


def machine(*, calm: bool) -> Machine:
    costs = {"pointwise": Rate(30.0), "host forward": Rate(1.0), "host backward": Rate(1.0)}
    device = Device("d", 1 << 30, costs=costs, faults=RATES, costs_are_calm=calm)
    return Machine(device)


def test_an_op_pays_for_what_it_gives_out_and_for_its_workspace() -> None:
    """2 MiB in small pages, 8 in huge ones that it gives back; tiny blocks come from the heap."""
    assert in_ops(UNTIMED, RATES).tolist() == [2.0 + 2.0 + 1.0, 0.0, 4.0, 1.0]


def test_the_host_pays_for_what_it_gives_back() -> None:
    freed = UNTIMED.columns.freed_before
    assert freed.sum() > 0
    assert np.array_equal(while_freeing(UNTIMED, RATES), freed * 2.0**-23)


def test_costs_without_faults_come_back_where_all_that_is_freed_stays() -> None:
    calm = priced(UNTIMED, machine(calm=True))
    added = in_ops(UNTIMED, RATES).sum() + while_freeing(UNTIMED, RATES).sum()
    assert calm.seconds == pytest.approx(4 * 31.0 + added)
    assert unbounded(calm, machine(calm=True)).seconds == pytest.approx(4 * 31.0)
    assert priced(UNTIMED, machine(calm=False)).seconds == pytest.approx(4 * 31.0)


def test_a_plain_step_keeps_also_what_nobody_writes() -> None:
    """A session does not: there it would take memory that the budget does not count."""
    calm = priced(UNTIMED, machine(calm=True))
    values = tuple(replace(value, unwritten=value.nbytes) for value in calm.values)
    holey = replace(calm, values=values)
    assert unbounded(holey, machine(calm=True)).seconds == pytest.approx(4 * 31.0)
    followed = price(lower(holey, Plan()), machine(calm=True))
    assert followed.seconds == pytest.approx(holey.seconds)


def test_the_rates_that_steps_paid_are_found() -> None:
    """Each of another mix of blocks."""
    steps = [
        parse(
            f"f a x:I1M -> h:A{small}M! 0s +{scratch}M\nb c h -> g:T{large}M 0s\nb d g -> e:T1K 0s"
        )
        for small, large, scratch in ((1, 8, 0), (3, 5, 8), (2, 64, 16), (3, 4, 0), (1, 128, 5))
    ]
    paid = [float(in_ops(one, RATES).sum() + while_freeing(one, RATES).sum()) for one in steps]
    found = fitted_faults(
        [Taken(one, 99.0 + more, 99.0) for one, more in zip(steps, paid, strict=True)]
    )
    assert (found.small, found.large, found.returned) == pytest.approx(
        (RATES.small, RATES.large, RATES.returned)
    )


def test_a_step_that_seems_faster_where_all_goes_back_makes_no_memory_free_of_charge() -> None:
    """It was disturbed: what the others took counts."""
    paid = float(in_ops(UNTIMED, RATES).sum())
    steps = [Taken(UNTIMED, 99.0 + paid, 99.0)] * 3 + [Taken(UNTIMED, 99.0, 99.5)]
    found = fitted_faults(steps)
    assert 0.6 * paid < in_ops(UNTIMED, found).sum() <= paid
