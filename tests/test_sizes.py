"""Sizes and budgets as people type them."""

import pytest

from penstock.errors import UsageError
from penstock.sizes import Share, parse_budget, parse_size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("1024", 1024),
        ("1b", 1),
        ("1.5GiB", 3 * 2**29),
        ("800MB", 800 * 10**6),
        ("800 mb", 800 * 10**6),
        ("  2G ", 2**31),  # one letter is binary
        ("64k", 2**16),
        ("3TB", 3 * 10**12),
        ("+1KiB", 1024),
    ],
)
def test_a_size_is_a_number_and_a_unit(text, nbytes):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["12 bananas", "", "GiB", "1,5GiB", "1.GiB", "0x10", "nan", "inf"])
def test_what_is_no_size_is_refused_by_name_with_an_example(text):
    with pytest.raises(UsageError) as caught:
        parse_size(text, "--host-budget")
    assert f"--host-budget {text!r} is no size" in str(caught.value)
    assert "1.5GiB" in str(caught.value)


@pytest.mark.parametrize("text", ["0", "0GiB", "-1", "-3GiB", "0.5b"])
def test_a_size_must_be_more_than_nothing(text):
    with pytest.raises(UsageError, match=r"must be more than 0 bytes"):
        parse_size(text)


@pytest.mark.parametrize(
    ("given", "budget"),
    [
        ("60%", Share(0.6)),
        (" 12.5 %", Share(0.125)),
        ("150%", Share(1.5)),
        (Share(0.5), Share(0.5)),
        (4096, 4096),
        ("4KiB", 4096),
    ],
)
def test_a_budget_is_a_size_or_a_share(given, budget):
    assert parse_budget(given) == budget


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (0, "more than 0 bytes"),
        (-1, "more than 0 bytes"),
        ("12 bananas", "budget '12 bananas' is no size"),
        ("bananas%", "budget 'bananas%' is no share"),
        ("0%", "more than 0 %"),
        ("-5%", "more than 0 %"),
        ("nan%", "more than 0 %"),
        ("inf%", "finite"),
    ],
)
def test_what_is_no_budget_is_refused(given, reason):
    with pytest.raises(UsageError, match=reason):
        parse_budget(given)


def test_a_share_is_of_what_the_step_takes():
    assert Share(0.6).of(1000) == 600
