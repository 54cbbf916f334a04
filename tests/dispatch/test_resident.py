"""Meters tell the truth: large tensors are seen when they come, and when they go."""

import subprocess
import sys

import pytest
import torch

from penstock.dispatch.resident import live_tensor_bytes, meter_for
from runs import DEVICES, MIB

LARGE = 64 * MIB
NEARLY = 63 * MIB
"""Other threads of the process may give a little back meanwhile."""

on_devices = pytest.mark.parametrize("device", DEVICES)


def large(device: str) -> torch.Tensor:
    return torch.ones(LARGE, dtype=torch.uint8, device=device)


@on_devices
def test_a_large_tensor_is_seen_while_it_lives(device: str) -> None:
    meter = meter_for(torch.device(device))
    before = meter.used()
    tensor = large(device)
    during = meter.used()
    assert during - before >= NEARLY
    del tensor
    assert during - meter.used() >= NEARLY


@on_devices
def test_the_peak_is_remembered_until_it_is_reset(device: str) -> None:
    meter = meter_for(torch.device(device))
    meter.reset_peak()
    before = meter.used()
    large(device)  # dies at once
    assert meter.peak() - before >= NEARLY
    if device == "cuda":
        torch.cuda.empty_cache()
    meter.reset_peak()
    assert meter.peak() - meter.resident() < MIB


def test_a_shorter_measurement_does_not_forget_the_longer_ones_peak() -> None:
    meter = meter_for(torch.device("cpu"))
    meter.reset_peak()
    before = meter.resident()
    large("cpu")
    meter.restart()
    assert meter.recent_peak() - before < LARGE // 2
    assert meter.peak() - before >= NEARLY


TIGHT = """
import sys, torch
from penstock.dispatch.resident import CpuMeter, TightAllocator
MIB = 1 << 20
meter = CpuMeter()
torch.ones(1)
old = [torch.ones(MIB // 8, dtype=torch.uint8) for _ in range(400)]  # 50 MiB in the heap ...
keep = old[1::2]
del old                                                              # ... with holes
allocator = TightAllocator()
start = meter.resident()
new = [torch.ones(MIB // 8, dtype=torch.uint8) for _ in range(400)]
grown = meter.resident() - start
del new[::2]
given_back = start + grown - meter.resident()
allocator.close()
allocator.close()
print(grown / MIB, given_back / MIB)
"""


def test_a_tight_allocator_gives_back_every_second_block() -> None:
    done = subprocess.run([sys.executable, "-c", TIGHT], capture_output=True, text=True, check=True)
    grown, given_back = map(float, done.stdout.split())
    assert 49 < grown < 54  # 50 MiB, and a page for each block's header
    assert 24 < given_back < 27


@on_devices
def test_living_tensors_are_counted_by_storage(device: str) -> None:
    before = live_tensor_bytes(torch.device(device))
    a = torch.zeros(1000, device=device)
    views = [a[5:], a.view(10, 100)]
    assert live_tensor_bytes(torch.device(device)) - before == 4000
    del a, views
    assert live_tensor_bytes(torch.device(device)) == before
