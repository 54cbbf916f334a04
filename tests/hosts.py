"""A machine with one tier below the device."""

from penstock.ir.machine import Device, Link, Machine, Tier

__all__ = ["host"]


def host(bandwidth: float) -> Machine:
    """More room than any step fills, on either side of a link of `bandwidth` each way."""
    link = Link(bandwidth)
    return Machine(Device("cpu", 2**40), (Tier("host", 2**40, link, link),))
