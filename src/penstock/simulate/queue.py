"""A GPU works off a queue that the host fills: how long it waits for the host before each op.

The host asks for an op and goes on; the device begins it when it has been asked for and the op before
has ended. So the host's time counts only where the device has nothing left to do.
"""

from collections.abc import Sequence

__all__ = ["AWAITED", "idle_before"]

AWAITED = frozenset({"aten._local_scalar_dense", "aten.nonzero"})
"""Ops whose result the host needs before it can go on."""


def idle_before(
    names: Sequence[str], asking: Sequence[float], running: Sequence[float]
) -> list[float]:
    """By op, the seconds that the device is idle before it.

    `asking`: what the host takes from one request to the next; `running`: what the device takes for
    each. Host and device begin together.
    """
    host = device = 0.0
    found = []
    for name, asked, taken in zip(names, asking, running, strict=True):
        host += asked
        found.append(max(0.0, host - device))
        device = max(device, host) + taken
        if name in AWAITED:
            host = device
    return found
