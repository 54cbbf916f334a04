"""This machine as data, as far as a session needs it."""

import os
import platform
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import psutil
import torch

from penstock.ir.machine import Device, Faults, Machine, Tier

__all__ = ["describe"]

_BLOCK, _TRIED = 1 << 20, 15
"""Bytes of a block that comes in small pages; how many are taken."""
_HUGE, _RETURNED = 0.5, 0.25
"""What huge pages cost beside small ones, and giving back beside taking: medians of training steps."""
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def describe(
    device: torch.device, tiers: tuple[Tier, ...], *, may_keep_freed: bool = False
) -> Machine:
    """The device on which a session runs, with the tiers that it has measured.

    `may_keep_freed`: freed memory may stay with the process, though all goes back to the system now.
    """
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return Machine(Device(properties.name, properties.total_memory), tiers)
    name = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    known = Device(name, psutil.virtual_memory().total)
    return Machine(replace(known, faults=_faults()) if may_keep_freed else known, tiers)


def _faults() -> Faults:
    """What memory costs here that comes from the system anew. Takes 10 ms.

    Measured for small pages, of which one costs the same at any time; a huge one costs up to ten times
    as much while the system has to clear room for it, so the usual share is taken.
    """
    small = _filling(_BLOCK) / _BLOCK
    large = small * _HUGE if _has_huge_pages() else small
    return Faults(small, large, small * _RETURNED)


def _filling(nbytes: int) -> float:
    """Seconds more to fill a block that comes from the system than one that is here."""
    more = []
    for _ in range(_TRIED):
        began = time.perf_counter()
        block = torch.empty(nbytes, dtype=torch.uint8).fill_(1)
        taken = time.perf_counter()
        block.fill_(2)
        more.append(2 * taken - began - time.perf_counter())
    return max(0.0, median(more))


def _has_huge_pages() -> bool:
    """Does the system give them out, and does torch ask for them?"""
    try:
        setting = _HUGE_PAGES.read_text()
    except OSError:
        return False
    return "[never]" not in setting and os.environ.get("THP_MEM_ALLOC_ENABLE") == "1"
