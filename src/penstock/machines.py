"""Machines by name: the cards, links and drives that people have and that papers used, as data.

A name is a card, `a100-80`, or a card and what is below it, fastest first: `a100-40+pcie4+ssd:980pro`,
`v100-16+ssd:2xpm1725b` (straight to disk), `h200+pcie5:1TiB` (so much host memory). Named parts take
the place of the host memory that a card has by default.

How the numbers are to be read:

- `memory` is what CUDA reports as total (what torch prints in "total capacity of"), not what is
  printed on the box: firmware and error correction keep a part.
- `flops` are the data sheets' peaks, dense. float32 is plain float32, not TF32: so torch multiplies
  unless told otherwise. 16-bit rates are those of the tensor cores accumulating in float32, as torch
  does; where a card has no fast 16-bit unit that can, the rate is float32's.
- Links are what copies reach, not what the lanes could carry.
- `direct` rates are those at which an op uses non-volatile memory that stands beside its own. Only the
  processors with Optane have any: a card reaches host memory by copies.
- `drag` of a tier is the share of the device's memory bandwidth that its faster link takes (vDNN bounds
  the interference of a copy with compute in the same way).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from penstock.errors import UsageError, nearest
from penstock.ir.machine import Device, Direct, Link, Machine, Tier
from penstock.ir.store import load
from penstock.sizes import parse_size

__all__ = ["find", "machine", "names", "parts"]

_GB = 10**9
_TB = 10**12
_GIB = 2**30


def names() -> tuple[str, ...]:
    """Every machine that `machine` knows, oldest first."""
    return tuple(_MACHINES)


def parts() -> tuple[str, ...]:
    """What may be put below a device, as it is written after a `+`."""
    return (*_LINKS, *(f"ssd:{name}" for name in _DRIVES))


def machine(name: str) -> Machine:
    """The machine called `name`, as in `h200` or `a100-40+pcie4+ssd:980pro`.

    Raises `UsageError`, with the nearest valid name, if there is none.
    """
    base, *below = (part.strip() for part in name.lower().split("+"))
    if forms := [name for name in names() if name.startswith(f"{base}-")]:
        raise UsageError(f"machine {base!r} has several forms: name one of {', '.join(forms)}")
    if base not in _MACHINES:
        raise UsageError(
            f"no machine is called {base!r}{nearest(base, names())}; there are: {', '.join(names())}"
        )
    preset = _MACHINES[base]
    tiers = tuple(_part(text) for text in below) if below else preset.tiers
    if len({tier.name for tier in tiers}) < len(tiers):
        raise UsageError(f"machine {name!r} has two tiers of one kind: name each once")
    return Machine(preset.device, tuple(_fitted(tier, preset) for tier in tiers))


def find(named: str) -> Machine:
    """The machine in the file `named`, or, if there is no such file, the machine of that name.

    Raises `UsageError` if there is neither, `TraceError` if the file holds no machine that can be.
    """
    path = Path(named)
    if not path.is_file():
        try:
            return machine(named)
        except UsageError as error:
            raise UsageError(f"{error}. Nor is there a file {named!r}.") from None
    found = load(path)
    if not isinstance(found, Machine):
        raise UsageError(f"{named} holds a {type(found).__name__.lower()}, not a machine")
    return found


def _part(text: str) -> Tier:
    """A tier from `pcie4`, `pcie4:512GiB` or `ssd:980pro`."""
    kind, _, detail = text.partition(":")
    if kind == "ssd" and detail in _DRIVES:
        return _DRIVES[detail]
    if kind in _LINKS:
        tier = _LINKS[kind]
        return replace(tier, capacity=parse_size(detail, f"capacity of {kind}")) if detail else tier
    raise UsageError(
        f"no part is called {text!r}{nearest(text, parts())}; there are: {', '.join(parts())}"
    )


def _fitted(tier: Tier, preset: "_Preset") -> Tier:
    """The tier as it is below this device."""
    fastest = max(tier.write.bandwidth, tier.read.bandwidth)
    drag = min(fastest / preset.device.bandwidth, 0.99)
    return replace(tier, drag=drag, direct=preset.nvm if tier.name == "nvm" else None)


# -- links to host memory -------------------------------------------------------------------------


def _host(write: float, read: float, latency: float, capacity: int = 128 * _GIB) -> Tier:
    return Tier(
        name="host",
        capacity=capacity,
        write=Link(bandwidth=write * _GB, latency=latency),
        read=Link(bandwidth=read * _GB, latency=latency),
    )


_LINKS: Mapping[str, Tier] = {
    # 15.75 GB/s of lanes. Measured by papers: vDNN 12.8, FlashNeuron 13.0, AutoSwap's fit 13.2 out and
    # 12.2 in with 47 us and 9.7 us; Capuchin, SwapAdvisor, AutoTM and ZeRO-Infinity plan with 12.
    "pcie3": _host(12, 12, 10e-6),
    # G10's simulated link: all of 16 lanes of PCIe 3, and 5 us, from its configuration (GiB, not GB).
    "g10": _host(15.754 * _GIB / _GB, 15.754 * _GIB / _GB, 5e-6),
    # 31.5 GB/s of lanes; a pinned copy to an A100 reaches 24 to 26, the same share as above.
    "pcie4": _host(25, 25, 10e-6),
    # 63 GB/s of lanes; NVIDIA's page on nvbandwidth shows 55.6 from host to an H100.
    "pcie5": _host(55, 55, 10e-6),
    # 450 GB/s each way on paper; 375 to the device and 297 back measured by Schieffer et al.,
    # "Harnessing Integrated CPU-GPU System Memory for HPC: a first look into Grace Hopper" (ICPP 2024).
    "nvlink-c2c": _host(297, 375, 2e-6, 480 * _GB),
    # Optane memory beside DRAM, copied by threads of its own while kernels run: AutoTM's constants
    # for asynchronous moves (DRAM to Optane 2.5, back 2.0) ...
    "nvm": Tier(
        name="nvm",
        capacity=768 * _GB,
        write=Link(bandwidth=2.5 * _GB),
        read=Link(bandwidth=2.0 * _GB),
    ),
    # ... and for synchronous ones, where all cores copy and no kernel runs beside them.
    "nvm-sync": Tier(
        name="nvm",
        capacity=768 * _GB,
        write=Link(bandwidth=12 * _GB),
        read=Link(bandwidth=29 * _GB),
    ),
}


# -- drives ---------------------------------------------------------------------------------------


def _drive(capacity: int, write: float, read: float, latency: float) -> Tier:
    return Tier(
        name="disk",
        capacity=capacity,
        write=Link(bandwidth=write * _GB, latency=latency),
        read=Link(bandwidth=read * _GB, latency=latency),
    )


# Rates of the makers' sheets for large sequential transfers; latency is that of one such request.
_DRIVES: Mapping[str, Tier] = {
    # Samsung 970 PRO 1 TB (2018, PCIe 3 x4): two bits a cell, so it writes at this rate until full.
    "970pro": _drive(_TB, 2.7, 3.5, 100e-6),
    # Samsung 980 PRO 1 TB (2020, PCIe 4 x4). Beyond about 114 GB at a stretch it writes at 2.0.
    "980pro": _drive(_TB, 5.0, 7.0, 100e-6),
    # Samsung 990 PRO 2 TB (2022, PCIe 4 x4). Beyond about 226 GB at a stretch it writes at 1.4.
    "990pro": _drive(2 * _TB, 6.9, 7.45, 100e-6),
    # Intel Optane P5800X 1.6 TB (2020, PCIe 4 x4).
    "p5800x": _drive(16 * _TB // 10, 6.2, 7.2, 10e-6),
    # Samsung PM1725b (2018, PCIe 3 x8), as FlashNeuron gives it.
    "pm1725b": _drive(32 * _TB // 10, 3.3, 6.3, 100e-6),
    # FlashNeuron's machine: two of them striped; it measured 3.0 written on each.
    "2xpm1725b": _drive(64 * _TB // 10, 6.0, 12.6, 100e-6),
    # G10's simulated drive (a Samsung Z-SSD): 3.2 GiB/s each way and 20 us, from its configuration.
    "zssd": _drive(32 * _TB // 10, 3.2 * _GIB / _GB, 3.2 * _GIB / _GB, 20e-6),
}


# -- devices --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Preset:
    device: Device
    tiers: tuple[Tier, ...]
    nvm: Direct | None = None  # non-volatile memory beside its own, if ops reach it


def _card(
    name: str,
    gib: float,
    gb_per_second: float,
    tflops: Mapping[str, float],
    link: str,
    nvm: Direct | None = None,
) -> _Preset:
    device = Device(
        name=name,
        memory=int(gib * _GIB),
        bandwidth=gb_per_second * _GB,
        flops={dtype: rate * 1e12 for dtype, rate in tflops.items()},
    )
    return _Preset(device, (_LINKS[link],), nvm)


# What all cores reach on six modules of Optane is what AutoTM's constants for synchronous moves say: 29
# read, 12 written. A kernel keeps all cores at it as well; its whole table of kernels is not public.
_OPTANE = Direct(read=29 * _GB, write=12 * _GB)

# In each comment: the source of bandwidth and rates.
_MACHINES: Mapping[str, _Preset] = {
    # Tesla K40 data sheet, 288 GB/s, base clock. Memory as Meng et al. give it (11,580 MB usable).
    "k40": _card(
        "Tesla K40m", 11.31, 288, {"float16": 4.29, "float32": 4.29, "float64": 1.43}, "pcie3"
    ),
    # GeForce GTX TITAN X (Maxwell, 2015) data sheet; vDNN's card, which rounds to 7 TFLOPS.
    # float64 runs at 1/32.
    "titan-x-maxwell": _card(
        "GeForce GTX TITAN X",
        11.92,
        336.5,
        {"float16": 6.69, "float32": 6.69, "float64": 0.209},
        "pcie3",
    ),
    # NVIDIA TITAN X (Pascal, 2016) data sheet: 3,584 cores at 1,531 MHz, int8 by dp4a, float64 at 1/32.
    "titan-x-pascal": _card(
        "NVIDIA TITAN X (Pascal)",
        11.9,
        480,
        {"float16": 10.97, "float32": 10.97, "float64": 0.343, "int8": 43.9},
        "pcie3",
    ),
    # GeForce GTX 1080 Ti data sheet: 3,584 cores at 1,582 MHz. Second machine of TSPLIT.
    "gtx-1080ti": _card(
        "GeForce GTX 1080 Ti",
        10.92,
        484,
        {"float16": 11.34, "float32": 11.34, "float64": 0.354, "int8": 45.4},
        "pcie3",
    ),
    # Tesla P100 PCIe data sheet. Its 18.7 TFLOPS in float16 accumulate in float16; torch does not.
    "p100": _card(
        "Tesla P100-PCIE-16GB",
        15.9,
        732,
        {"float16": 9.3, "float32": 9.3, "float64": 4.7},
        "pcie3",
    ),
    # Tesla V100 PCIe data sheet (the SXM2 form has 125, 15.7 and 7.8 TFLOPS). No bfloat16.
    "v100-16": _card(
        "Tesla V100-PCIE-16GB",
        15.78,
        900,
        {"float16": 112, "float32": 14, "float64": 7, "int8": 56},
        "pcie3",
    ),
    "v100-32": _card(
        "Tesla V100-PCIE-32GB",
        31.74,
        900,
        {"float16": 112, "float32": 14, "float64": 7, "int8": 56},
        "pcie3",
    ),
    # Turing white paper, appendix A: founders edition; tensor rate with float32 accumulation is
    # half on the GeForce. Card of HOME and of AutoTM's GPU part.
    "rtx-2080ti": _card(
        "GeForce RTX 2080 Ti",
        10.76,
        616,
        {"float16": 56.9, "float32": 14.2, "float64": 0.44, "int8": 227.7},
        "pcie3",
    ),
    # TITAN RTX data sheet: full tensor rate. TSPLIT's card.
    "titan-rtx": _card(
        "TITAN RTX",
        23.65,
        672,
        {"float16": 130.5, "float32": 16.3, "float64": 0.51, "int8": 261},
        "pcie3",
    ),
    # GA102 white paper, table 2: float16 and bfloat16 with float32 accumulation; float64 at 1/64.
    "rtx-3090": _card(
        "GeForce RTX 3090",
        23.69,
        936,
        {"float16": 71, "bfloat16": 71, "float32": 35.6, "float64": 0.556, "int8": 284},
        "pcie4",
    ),
    # RTX A6000 data sheet and GA102 white paper. InfiniGen's card.
    "rtx-a6000": _card(
        "RTX A6000",
        47.54,
        768,
        {"float16": 154.8, "bfloat16": 154.8, "float32": 38.7, "float64": 0.605, "int8": 309.7},
        "pcie4",
    ),
    # A100 data sheet. float64 is the tensor cores' rate, which cuBLAS uses without being asked.
    "a100-40": _card(
        "A100 40GB",
        39.39,
        1555,
        {"float16": 312, "bfloat16": 312, "float32": 19.5, "float64": 19.5, "int8": 624},
        "pcie4",
    ),
    # The SXM form; as a PCIe card its memory gives 1,935 GB/s.
    "a100-80": _card(
        "A100 80GB",
        79.15,
        2039,
        {"float16": 312, "bfloat16": 312, "float32": 19.5, "float64": 19.5, "int8": 624},
        "pcie4",
    ),
    # Ada white paper, appendix A: float16 and bfloat16 with float32 accumulation; float64 at 1/64.
    "rtx-4090": _card(
        "GeForce RTX 4090",
        23.64,
        1008,
        {"float16": 165.2, "bfloat16": 165.2, "float32": 82.6, "float64": 1.29, "int8": 660.6},
        "pcie4",
    ),
    # H100 data sheet, without sparsity; float64 on tensor cores.
    "h100-pcie": _card(
        "H100 PCIe",
        79.1,
        2000,
        {"float16": 756, "bfloat16": 756, "float32": 51, "float64": 51, "int8": 1513},
        "pcie5",
    ),
    "h100-sxm": _card(
        "H100 SXM",
        79.1,
        3350,
        {"float16": 989, "bfloat16": 989, "float32": 67, "float64": 67, "int8": 1979},
        "pcie5",
    ),
    # GH200 data sheet, form with 96 GB of HBM3; the GPU is an H100 SXM.
    "gh200": _card(
        "GH200 96GB",
        94.5,
        4000,
        {"float16": 989, "bfloat16": 989, "float32": 67, "float64": 67, "int8": 1979},
        "nvlink-c2c",
    ),
    # H200 data sheet: an H100 SXM with more and faster memory.
    "h200": _card(
        "H200",
        139.8,
        4800,
        {"float16": 989, "bfloat16": 989, "float32": 67, "float64": 67, "int8": 1979},
        "pcie5",
    ),
    # RTX Blackwell white paper: float16 and bfloat16 with float32 accumulation; float64 at 1/64.
    "rtx-5090": _card(
        "GeForce RTX 5090",
        31.37,
        1792,
        {"float16": 209.5, "bfloat16": 209.5, "float32": 104.8, "float64": 1.64, "int8": 838},
        "pcie5",
    ),
    # HGX B200 data sheet (per GPU, 1,000 W), sparse rates halved.
    "b200": _card(
        "B200",
        178.35,
        7700,
        {"float16": 2250, "bfloat16": 2250, "float32": 75, "float64": 37, "int8": 4500},
        "pcie5",
    ),
    # One socket of AutoTM's machine: 24 cores of Cascade Lake, 6 x 32 GB of DDR4-2666 (128 GB/s
    # on paper), 6 x 128 GB of Optane. float32: 24 cores x 64 operations a cycle (two AVX-512 units) at
    # an assumed 2.0 GHz. bfloat16 has no unit there. Sentinel's CPU machine has half the DRAM.
    "xeon-optane": _card(
        "Xeon CPU, 24 cores, Optane",
        192e9 / _GIB,
        128,
        {"float32": 3.07, "float64": 1.54, "int8": 12.3},
        "nvm",
        _OPTANE,
    ),
    # Xeon Gold 6252: 24 cores, 96 GB of DRAM, 756 GB of Optane (its rates as AutoTM measured them).
    "xeon-6252": _card(
        "Xeon Gold 6252 CPU, Optane",
        96e9 / _GIB,
        128,
        {"float32": 3.07, "float64": 1.54, "int8": 12.3},
        "nvm",
        _OPTANE,
    ),
}
