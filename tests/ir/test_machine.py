"""Machines that cannot be are refused by name."""

from dataclasses import FrozenInstanceError

import pytest

from penstock.errors import TraceError
from penstock.ir.machine import Device, Direct, Link, Machine, Tier

LINK = Link(2.0**30)


def test_a_link_takes_its_latency_and_then_its_bandwidth():
    assert Link(4.0, latency=0.5).seconds(8) == 2.5


@pytest.mark.parametrize(
    ("bandwidth", "latency"), [(0, 0), (-1, 0), (1, -1), (float("nan"), 0), (1, float("nan"))]
)
def test_an_impossible_link_is_refused(bandwidth, latency):
    with pytest.raises(TraceError, match=f"not {bandwidth:g} bytes/s and {latency:g} s"):
        Link(bandwidth, latency)


@pytest.mark.parametrize(("capacity", "drag"), [(-1, 0), (1, -0.1), (1, 1.0), (1, float("nan"))])
def test_an_impossible_tier_is_refused_by_name(capacity, drag):
    with pytest.raises(TraceError, match="tier nvme0: capacity"):
        Tier("nvme0", capacity, LINK, LINK, drag)


@pytest.mark.parametrize("memory", [0, -1])
def test_a_device_without_memory_is_refused_by_name(memory):
    with pytest.raises(TraceError, match=f"device toaster: memory of {memory} bytes"):
        Device("toaster", memory)


def test_two_tiers_of_one_name_are_refused():
    tier = Tier("disk", 1, LINK, LINK)
    with pytest.raises(TraceError, match=r"two tiers of machine cpu have one name"):
        Machine(Device("cpu", 1), (tier, tier))


def test_an_unknown_tier_is_refused_with_those_that_exist():
    machine = Machine(Device("cpu", 1), (Tier("disk", 1, LINK, LINK), Tier("tape", 1, LINK, LINK)))
    assert machine.tier("tape").name == "tape"
    with pytest.raises(TraceError, match="machine cpu has no tier 'host'; it has: disk, tape"):
        machine.tier("host")
    with pytest.raises(TraceError, match="it has: none"):
        machine.with_tiers().tier("host")


def test_a_machine_is_frozen_and_hashes():
    machine = Machine(Device("cpu", 1, flops={"float32": 1e12}))
    assert hash(machine) == hash(Machine(Device("cpu", 1, flops={"float32": 1e12})))
    with pytest.raises(FrozenInstanceError):
        machine.tiers = ()


@pytest.mark.parametrize(("read", "write"), [(0, 1), (1, 0), (-1, 1), (1, float("nan"))])
def test_impossible_direct_rates_are_refused(read, write):
    with pytest.raises(
        TraceError, match=f"not {read:g} bytes/s read and {write:g} bytes/s written"
    ):
        Direct(read, write)


def test_a_tier_without_direct_rates_is_refused_with_those_that_have_some():
    machine = Machine(
        Device("cpu", 1),
        (Tier("nvm", 1, LINK, LINK, direct=Direct(2, 1)), Tier("disk", 1, LINK, LINK)),
    )
    assert machine.direct("nvm") == Direct(2, 1)
    with pytest.raises(TraceError, match=r"tier 'disk' of machine cpu .* tiers that have: nvm"):
        machine.direct("disk")
