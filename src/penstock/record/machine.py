"""This machine as data, as far as a session needs it."""

import platform

import psutil
import torch

from penstock.ir.machine import Device, Machine, Tier

__all__ = ["describe"]


def describe(device: torch.device, tiers: tuple[Tier, ...]) -> Machine:
    """The device on which a session runs, with the tiers that it has measured."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return Machine(Device(properties.name, properties.total_memory), tiers)
    name = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return Machine(Device(name, psutil.virtual_memory().total), tiers)
