"""The table of machines that have a name."""

from collections.abc import Iterable

from rich.table import Table

from penstock.ir.machine import Machine, Tier

__all__ = ["table_of"]


def table_of(machines: Iterable[tuple[str, Machine]]) -> Table:
    """Each machine by name: memory, bandwidth, peak rates and the tiers below."""
    table = Table(caption="rates are data sheets' peaks; tiers say out / back")
    for name in ("name", "device"):
        table.add_column(name, no_wrap=True)
    for name in ("memory", "bandwidth", "float32", "16 bit"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("tiers")
    for name, machine in machines:
        device = machine.device
        flops = device.flops
        table.add_row(
            name,
            device.name,
            f"{device.memory / 2**30:.1f} GiB",
            f"{device.bandwidth / 1e9:,.0f} GB/s",
            _tera(flops.get("float32")),
            _tera(flops.get("bfloat16") or flops.get("float16")),
            ", ".join(_tier(tier) for tier in machine.tiers) or "none",
        )
    return table


def _tera(rate: float | None) -> str:
    return "-" if rate is None else f"{rate / 1e12:,.4g} TFLOPS"


def _tier(tier: Tier) -> str:
    out, back = tier.write.bandwidth / 1e9, tier.read.bandwidth / 1e9
    copies = f"{tier.name} {tier.capacity / 2**30:,.0f} GiB at {out:.3g} / {back:.3g} GB/s"
    if tier.direct is None:
        return copies
    written, read = tier.direct.write / 1e9, tier.direct.read / 1e9
    return f"{copies}, used in place at {written:.3g} / {read:.3g} GB/s"
