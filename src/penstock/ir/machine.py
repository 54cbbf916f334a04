"""The hardware as data: a device, the tiers below it, and the links between."""

import math
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from typing import NamedTuple, Self

from penstock.errors import TraceError, mib, nearest

__all__ = ["DTYPES", "Device", "Direct", "Faults", "Link", "Machine", "Rate", "Sample", "Tier"]

DTYPES = (
    *("float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"),
    *("complex128", "complex64", "int64", "int32", "int16", "int8", "uint8", "bool"),
)
"""The dtypes for which a device may have a rate, as torch prints them without its prefix."""


@dataclass(frozen=True, slots=True)
class Link:
    """One direction between the device and a tier."""

    bandwidth: float  # bytes per second
    latency: float = 0.0  # seconds before the first byte moves

    def __post_init__(self) -> None:
        if not self.bandwidth > 0 or not self.latency >= 0:
            raise TraceError(
                f"a link needs a bandwidth above 0 and a latency of 0 or more, "
                f"not {self.bandwidth:g} bytes/s and {self.latency:g} s"
            )

    def seconds(self, nbytes: int) -> float:
        return self.latency + nbytes / self.bandwidth


@dataclass(frozen=True, slots=True)
class Direct:
    """How fast an op reads and writes a tier where it lies, without a copy to the device."""

    read: float  # bytes per second
    write: float  # bytes per second

    def __post_init__(self) -> None:
        if not (0 < self.read < math.inf and 0 < self.write < math.inf):
            raise TraceError(
                f"direct access needs rates above 0, not {self.read:g} bytes/s read and "
                f"{self.write:g} bytes/s written"
            )


@dataclass(frozen=True, slots=True)
class Tier:
    """A place below the device. `write` leads down to it, `read` back up.

    `drag` is the share of its speed that compute loses while one direction is busy: the copy takes
    memory bandwidth, and on a CPU also a bit of a core. `direct`: ops can use the tier's bytes where
    they lie, at these rates; None: only copies reach it.
    """

    name: str
    capacity: int  # bytes
    write: Link
    read: Link
    drag: float = 0.0
    direct: Direct | None = None

    def __post_init__(self) -> None:
        if self.capacity < 0 or not 0 <= self.drag < 1:
            raise TraceError(
                f"tier {self.name}: capacity {mib(self.capacity)}, drag {self.drag:g}; the one "
                "must be 0 or more, the other from 0 to below 1"
            )


class Sample(NamedTuple):
    """An op that ran, or those of one size: what it had to do, and what it took."""

    flops: float
    moved: float  # bytes
    seconds: float
    workspace: float = 0  # bytes
    unwritten: float = 0  # share of what it gave out


@dataclass(frozen=True, slots=True)
class Rate:
    """What an op costs: `launch`, and then the longer of its arithmetic and its traffic (a roofline).

    A rate of 0 says that this part costs nothing. `seen` is what the roofline was fitted to, by which
    `simulate.roofline` puts it right for sizes near those.
    """

    launch: float = 0.0  # seconds
    flops: float = 0.0  # per second
    bandwidth: float = 0.0  # bytes per second
    workspace: float = 0.0  # bytes, for each byte that it moves
    unwritten: float = 0.0  # share of the bytes that it gives out, where no other op writes either
    library: float = 0.0  # bytes that its kernels keep for themselves, once one ran
    seen: tuple[Sample, ...] = ()

    def __post_init__(self) -> None:
        *rates, seen = (getattr(self, one.name) for one in fields(self))
        if not all(0 <= one < math.inf for one in chain(rates, *seen)):
            raise TraceError(f"an op's rates must be 0 or more and finite, not {self}")
        if self.unwritten > 1:
            raise TraceError(
                f"an op leaves {self.unwritten:g} of its bytes unwritten; 1 is all of them"
            )

    def seconds(self, flops: float, moved: float) -> float:
        arithmetic = flops / self.flops if self.flops else 0.0
        traffic = moved / self.bandwidth if self.bandwidth else 0.0
        return self.launch + max(arithmetic, traffic)


@dataclass(frozen=True, slots=True)
class Faults:
    """What memory costs that comes from the system anew, on a CPU: seconds for each byte.

    The seconds of a trace's op include it, for what it gives out and for its workspace: steps are measured
    while what is freed goes back. Where that stays with the process, `simulate.run` takes off what is
    spared. All 0: it never stays.
    """

    small: float = 0.0  # blocks that come in small pages
    large: float = 0.0  # blocks that come in huge ones
    returned: float = 0.0  # to give them back

    def __post_init__(self) -> None:
        for one in fields(self):
            if not 0 <= (rate := getattr(self, one.name)) < math.inf:
                raise TraceError(
                    f"faults: {one.name} of {rate:g} seconds a byte; it must be 0 or more"
                )

    def __bool__(self) -> bool:
        return self != _NO_FAULTS

    def scaled(self, factor: float) -> "Faults":
        return Faults(self.small * factor, self.large * factor, self.returned * factor)


_NO_FAULTS = Faults()


@dataclass(frozen=True, slots=True)
class Device:
    """Where ops run.

    `costs` is what calibration found: rates by op (`aten.mm`), by op and dtype (`aten.mm bfloat16`),
    or by class of ops (see `simulate.roofline`), the most special first.
    """

    name: str
    memory: int  # bytes
    bandwidth: float = 0.0  # bytes per second; 0: not known
    flops: dict[str, float] = field(default_factory=dict, hash=False)  # by dtype, per second
    costs: dict[str, Rate] = field(default_factory=dict, hash=False)
    overhead: int = 0  # bytes that a process takes beside its tensors, once it trains
    faults: Faults = _NO_FAULTS
    costs_are_calm: bool = False  # are `costs` those where what is freed stays, without any faults?

    def __post_init__(self) -> None:
        if self.memory <= 0:
            raise TraceError(f"device {self.name}: memory of {self.memory} bytes")
        if self.overhead < 0:
            raise TraceError(f"device {self.name}: overhead of {self.overhead} bytes")
        if not 0 <= self.bandwidth < math.inf:
            raise TraceError(
                f"device {self.name}: bandwidth of {self.bandwidth:g} bytes/s; it must be 0 (not "
                "known) or more"
            )
        for dtype, rate in self.flops.items():
            if dtype not in DTYPES:
                raise TraceError(
                    f"device {self.name}: flops of unknown dtype {dtype!r}{nearest(dtype, DTYPES)}; "
                    f"known are {', '.join(DTYPES)}"
                )
            if not 0 < rate < math.inf:
                raise TraceError(
                    f"device {self.name}: {rate:g} flops of {dtype}; leave out what is not known"
                )


@dataclass(frozen=True, slots=True)
class Machine:
    """A device and the tiers below it, fastest first."""

    device: Device
    tiers: tuple[Tier, ...] = ()

    def __post_init__(self) -> None:
        names = [tier.name for tier in self.tiers]
        if len(set(names)) < len(names):
            raise TraceError(f"two tiers of machine {self.device.name} have one name: {names}")

    def tier(self, name: str) -> Tier:
        """Raises `TraceError` if there is none of that name."""
        for tier in self.tiers:
            if tier.name == name:
                return tier
        known = ", ".join(tier.name for tier in self.tiers) or "none"
        raise TraceError(f"machine {self.device.name} has no tier {name!r}; it has: {known}")

    def direct(self, name: str) -> Direct:
        """How ops use the tier `name` where it lies. Raises `TraceError` if they cannot."""
        rates = self.tier(name).direct
        if rates is None:
            able = ", ".join(tier.name for tier in self.tiers if tier.direct) or "none"
            raise TraceError(
                f"tier {name!r} of machine {self.device.name} has no direct rates: ops cannot use "
                f"what is placed there; tiers that have: {able}"
            )
        return rates

    def with_tiers(self, *tiers: Tier) -> Self:
        return replace(self, tiers=tiers)
