"""What all tests share: a reproducible hypothesis, and a machine with round numbers."""

import gc

import pytest
from hypothesis import HealthCheck, settings

from penstock.dispatch.storage import CAN_SWAP
from penstock.ir.machine import Device, Link, Machine, Tier
from runs import users_of_exchange

# Derandomized, so that a failure here is a failure everywhere; `nightly` looks further.
settings.register_profile("default", deadline=None, derandomize=True)
settings.register_profile(
    "nightly", deadline=None, max_examples=5_000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("default")


def pytest_collection_finish() -> None:
    """What is loaded stays: the collections that sessions ask for need not look through it."""
    gc.freeze()


@pytest.fixture
def machine() -> Machine:
    """One tier, 4 MiB/s down and 2 MiB/s up, so that hand-computed times are exact."""
    disk = Tier("disk", 2**40, Link(4 * 2**20), Link(2 * 2**20))
    return Machine(Device("cpu", 2**40), (disk,))


@pytest.fixture(params=["swaps", "copies"])
def exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By exchange of bytes, and by copies as before torch 2.13."""
    if request.param == "swaps" and not CAN_SWAP:
        pytest.skip("this torch cannot exchange the bytes of storages")
    if request.param == "copies":
        for module in users_of_exchange():
            monkeypatch.setattr(module, "CAN_SWAP", False)
    return request.param
