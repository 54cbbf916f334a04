"""Machines by name: every preset is one that can be, and a misspelt name meets the nearest."""

import pytest

from penstock import machines
from penstock.errors import UsageError
from penstock.ir.machine import DTYPES, Link
from penstock.ir.store import load, save


@pytest.mark.parametrize("name", machines.names())
def test_every_machine_is_described_whole_and_can_be_saved(name, tmp_path):
    machine = machines.machine(name)
    device = machine.device
    assert device.bandwidth > 0
    assert device.flops["float32"] > 0
    assert machine.tiers
    save(tmp_path / "machine", machine)
    assert load(tmp_path / "machine") == machine


@pytest.mark.parametrize("name", machines.names())
def test_a_narrower_float_is_never_slower(name):
    flops = machines.machine(name).device.flops
    rates = [flops[dtype] for dtype in ("float64", "float32", "float16") if dtype in flops]
    assert rates == sorted(rates)
    assert set(flops) <= set(DTYPES)


@pytest.mark.parametrize("name", machines.names())
def test_memory_is_faster_than_any_link_to_a_tier_below(name):
    machine = machines.machine(name)
    for tier in machine.tiers:
        assert max(tier.write.bandwidth, tier.read.bandwidth) < machine.device.bandwidth
        assert 0 < tier.drag < 0.1


def test_every_part_can_stand_below_every_device():
    for name in machines.names():
        for part in machines.parts():
            assert len(machines.machine(f"{name}+{part}").tiers) == 1


def test_named_parts_take_the_place_of_the_default_ones_in_order():
    machine = machines.machine("a100-40+pcie4+ssd:980pro")
    assert machine.device == machines.machine("a100-40").device
    assert [tier.name for tier in machine.tiers] == ["host", "disk"]
    assert machine.tiers[0] == machines.machine("a100-40").tiers[0]
    assert machine.tiers[1].read == Link(bandwidth=7e9, latency=100e-6)


def test_a_link_may_say_how_much_memory_is_behind_it():
    assert machines.machine("v100-16+pcie3:64GiB").tier("host").capacity == 64 * 2**30
    with pytest.raises(UsageError, match="capacity of pcie3 'lots' is no size"):
        machines.machine("v100-16+pcie3:lots")


def test_names_are_read_whatever_their_case():
    assert machines.machine(" H200 + PCIe5 ") == machines.machine("h200")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a100-44", "no machine is called 'a100-44'; did you mean a100-40?; there are: k40, "),
        ("h100", "machine 'h100' has several forms: name one of h100-pcie, h100-sxm"),
        ("", "no machine is called ''; there are: k40, "),
        ("h200+pcie6", "no part is called 'pcie6'; did you mean pcie"),
        ("h200+ssd:980por", "no part is called 'ssd:980por'; did you mean ssd:980pro?"),
        ("h200+", "no part is called ''; there are: pcie3, "),
        ("h200+pcie4+pcie5", "has two tiers of one kind"),
    ],
)
def test_a_name_that_is_none_is_answered_with_the_nearest(name, says):
    with pytest.raises(UsageError) as caught:
        machines.machine(name)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_copy_slows_compute_by_its_share_of_the_memory_bandwidth():
    # vDNN bounds the interference on its TITAN X by 16/336; with what its link reaches, 12/336.5.
    assert machines.machine("titan-x-maxwell").tier("host").drag == pytest.approx(12 / 336.5)


def test_only_processors_with_optane_use_it_where_it_lies():
    able = {
        name for name in machines.names() if any(t.direct for t in machines.machine(name).tiers)
    }
    assert able == {"xeon-optane", "xeon-6252"}
    for part in ("nvm", "nvm-sync"):
        assert machines.machine(f"xeon-optane+{part}").direct("nvm").read == 29e9
        assert machines.machine(f"h200+{part}").tier("nvm").direct is None
