"""Makes tiers ready from what a person asked for."""

import torch

from penstock.engine.lanes import Lane, StreamLane, ThreadLane
from penstock.engine.residency import MountedTier
from penstock.engine.tiers import TierStore
from penstock.engine.tiers.disk import DiskStore
from penstock.engine.tiers.host import HostStore
from penstock.errors import UsageError
from penstock.ir.timeline import lane_of

__all__ = ["mount"]


def mount(
    tier: str | None,
    device: torch.device,
    host_budget: int | None = None,
    disk_budget: int | None = None,
) -> tuple[MountedTier, ...]:
    """The tiers named by `tier`: `host`, `disk`, `disk:DIRECTORY`, `none`, or several with commas.

    None: host memory for a CUDA device, disk for the CPU. Raises `UsageError` for anything else,
    and if a directory cannot be used.
    """
    if tier is None:
        tier = "host" if device.type == "cuda" else "disk"
    mounted: list[MountedTier] = []
    try:
        for name in filter(None, (part.strip() for part in tier.split(","))):
            kind, _, where = name.partition(":")
            match kind:
                case "disk":
                    mounted.append(_with_lanes(DiskStore(where or None, disk_budget), device))
                case "host" if not where:
                    mounted.append(_with_lanes(HostStore(device, host_budget), device))
                case "none":
                    pass
                case _:
                    raise UsageError(
                        f"tier {name!r} is unknown; use host, disk, disk:DIRECTORY or none"
                    )
    except BaseException:
        for one in mounted:
            one.close()
        raise
    return tuple(mounted)


def _with_lanes(store: TierStore, device: torch.device) -> MountedTier:
    def lane(*, inward: bool) -> Lane:
        name = lane_of(store.name, inward=inward)
        if store.name == "host" and device.type == "cuda":
            return StreamLane(name, store, device)
        return ThreadLane(name, store, device)

    return MountedTier(store, lane(inward=False), lane(inward=True))
