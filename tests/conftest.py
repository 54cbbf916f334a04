"""What all tests share: a reproducible hypothesis, and a machine with round numbers."""

import pytest
from hypothesis import HealthCheck, settings

from penstock.ir.machine import Device, Link, Machine, Tier

# Derandomized, so that a failure here is a failure everywhere; `nightly` looks further.
settings.register_profile("default", deadline=None, derandomize=True)
settings.register_profile(
    "nightly", deadline=None, max_examples=5_000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("default")

LONG = (
    "engine/test_random_plans.py",
    "test_session.py",
    "test_faults.py",
    "cli/",
    "engine/test_fallback.py",
)
"""Where tests take many seconds each, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: workers that share them out then end together."""

    def rank(item: pytest.Item) -> int:
        name = item.nodeid.removeprefix("tests/")
        return next((n for n, part in enumerate(LONG) if name.startswith(part)), len(LONG))

    items.sort(key=rank)


@pytest.fixture
def machine() -> Machine:
    """One tier, 4 MiB/s down and 2 MiB/s up, so that hand-computed times are exact."""
    disk = Tier("disk", 2**40, Link(4 * 2**20), Link(2 * 2**20))
    return Machine(Device("cpu", 2**40), (disk,))
