"""`penstock curve` and `penstock largest`, as a person calls them."""

import re

from command import Penstock

SMALL = "hf:gpt2?seq=64&layers=2"


def test_the_largest_batch_is_larger_with_a_plan(penstock: Penstock) -> None:
    ended = penstock("largest", SMALL, "-b", "2GiB", "-m", "a100-40", "--vary", "batch")
    assert ended.code == 0, ended.err
    found = {name: int(size) for name, size in re.findall(r"(\w+): batch=(\d+)", ended.out)}
    assert found["auto"] > found["keep"] > 0


def test_a_budget_for_which_nothing_fits_is_told(penstock: Penstock) -> None:
    ended = penstock("largest", SMALL, "-b", "1MiB", "-m", "a100-40", "-p", "keep")
    assert ended.code == 0
    assert "keep: not even batch=1 fits" in ended.out


def test_an_option_that_the_architecture_has_not_is_refused(penstock: Penstock) -> None:
    ended = penstock("largest", SMALL, "-b", "1GiB", "-m", "a100-40", "--vary", "bach")
    assert ended.code == 2
    assert "bach" in ended.err and "batch" in ended.err
    ended = penstock("largest", "step.trace", "-b", "1GiB", "-m", "a100-40")
    assert ended.code == 2 and "name an architecture" in ended.err


def test_the_curve_has_a_row_for_each_budget_and_a_column_for_each_policy(
    penstock: Penstock,
) -> None:
    options = ("-m", "a100-40", "-p", "keep", "-p", "chen", "--points", "3", "--processes", "1")
    ended = penstock("curve", f"{SMALL}&batch=8", *options)
    assert ended.code == 0, ended.err
    assert re.search(r"budget.*keep.*chen", ended.out)
    rows = [line for line in ended.out.splitlines() if "MiB" in line]
    assert len(rows) == 3
    assert "*" in rows[-1]
