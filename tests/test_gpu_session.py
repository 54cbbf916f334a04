"""A session's way on a GPU, walked without one: streams and counters are stand-ins, tensors the host's.

What it asks of the device is seen: caps, counters, waits. Real bytes on a real GPU are seen where there
is one, by the tests marked `cuda` and by `make test-gpu`.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from penstock import session as sessions
from penstock.dispatch import storage as storages
from penstock.dispatch.resident import CAllocator, CpuMeter
from penstock.engine import engine as engines
from penstock.engine.lanes import Copy, StreamLane
from penstock.engine.residency import MountedTier
from penstock.engine.tiers.host import HostStore
from penstock.ir.text import parse
from penstock.ir.trace import Trace
from penstock.record.step import Recording
from penstock.session import Session
from penstock.simulate.allocators import CudaSettings, allocations, cuda
from runs import MIB, digest
from streams import pretend

MEMORY = 1 << 40


@dataclass(frozen=True)
class Card:
    """What a session takes for its device."""

    type: str = "cuda"
    index: int = 0


@dataclass
class Gpu:
    """What was asked of `torch.cuda`, and its counters: the process's own memory, above a base."""

    meter: CpuMeter
    base: int
    asked: list[tuple[str, float]] = field(default_factory=list)
    fraction: float = 0.75  # somebody set that before

    def stats(self, _device: object) -> dict[str, dict[str, dict[str, int]]]:
        now, peak = self.meter.resident() - self.base, self.meter.peak() - self.base
        kept = 100 * MIB  # for later
        return {
            "allocated_bytes": {"all": {"current": now, "peak": peak}},
            "reserved_bytes": {"all": {"current": now + kept, "peak": peak + kept}},
        }

    def set_fraction(self, fraction: float, _device: object) -> None:
        self.fraction = fraction
        self.asked.append(("fraction", fraction))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    tight = CAllocator()
    meter = CpuMeter()
    made = Gpu(meter, meter.resident())
    pretend(monkeypatch)
    cpu = torch.device("cpu")
    for name, stand_in in (
        ("memory_stats_as_nested_dict", made.stats),
        ("reset_peak_memory_stats", lambda device: meter.reset_peak()),
        ("empty_cache", lambda: made.asked.append(("empty_cache", 0))),
        ("set_per_process_memory_fraction", made.set_fraction),
        ("get_per_process_memory_fraction", lambda device: made.fraction),
        (
            "get_device_properties",
            lambda device: SimpleNamespace(name="Card", total_memory=MEMORY),
        ),
        ("default_generators", [torch.default_generator]),
    ):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(sessions, "device_of", lambda given: Card())
    for module in (engines, storages):  # its tensors are the host's
        monkeypatch.setattr(module, "lies_on", lambda one, device: one.device.type == "cpu")
    take = Copy.take_memory
    monkeypatch.setattr(Copy, "take_memory", lambda copy, device: take(copy, cpu))

    def mount(*_: object) -> tuple[MountedTier, ...]:
        store = HostStore(cpu, 400 * MIB)
        monkeypatch.setattr(store, "footprint", lambda: 0)
        store.release(store.reserve(200 * MIB))
        made.base = meter.resident()
        lanes = (StreamLane(f"host {way}", store, cpu) for way in ("out", "back"))
        return (MountedTier(store, *lanes),)

    monkeypatch.setattr(sessions, "mount", mount)
    yield made
    tight.loosen()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Linear(256, 256), nn.Dropout(0.1), nn.GELU()) for _ in range(8))
        )

    def forward(self, x):
        return self.blocks(x).square().mean()


def train(count: int) -> list[str]:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(1)
    losses = []
    for number in range(count):
        loss = model(torch.full((8192, 256), 0.1 * (number + 1)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return digest([*losses, *model.parameters()])


@pytest.mark.parametrize("budget", ["60%", "75MiB"])
def test_a_session_trains_the_same_bits_under_a_cap_and_gives_the_gpu_back(
    gpu: Gpu, budget
) -> None:
    expected = train(6)
    with Session(budget, tier="host", policy="swap-all") as session:
        found = train(6)
        capped = gpu.fraction
    assert found == expected
    assert "planned" in {report.mode for report in session.reports}
    assert not [
        event for report in session.reports for event in report.events if "fallback" in event
    ]
    assert session.engine.manager.statistics.prefetches > 0
    # The hard cap is the budget, and what the allocator had kept was given back under it.
    assert capped == pytest.approx(session.budget / MEMORY)
    assert ("empty_cache", 0) in gpu.asked
    assert gpu.fraction == 0.75
    assert not session.engine.manager.absent


def test_what_the_allocator_keeps_for_later_is_no_slack(gpu: Gpu) -> None:
    """Else every plan would leave room for all that the recorded step had freed."""
    recorded: list[Trace] = []
    with Session("80%", tier="host", policy="keep", on_recorded=recorded.append) as session:
        train(3)
    assert recorded[0].slack < 100 * MIB  # so many are kept, see `Gpu.stats`, beside the true slack
    planned = [report for report in session.reports if report.mode == "planned"]
    assert planned and all(report.peak >= 100 * MIB for report in planned)  # and count as held


def test_the_links_are_timed_by_events(gpu: Gpu) -> None:
    with Session("60%", tier="host", policy="swap-all") as session:
        train(6)
    (tier,) = session.machine.tiers
    # Each copy takes the millisecond between two events, whatever the host took to ask for it.
    assert tier.write.bandwidth == pytest.approx(8192 * 256 * 4 / 1e-3, rel=0.5)


def test_a_recorded_step_has_the_fragmentation_that_it_must_have() -> None:
    trace = parse("""
        f a x:I11M -> h:A11M
        f b h      -> y:A13M
        b c y h    -> g:T11M
    """)
    recording = sessions._with_fragmentation(Recording(trace, (), {}))
    held = recording.trace.peak + recording.trace.slack
    requests = list(allocations(trace))
    assert cuda(requests, CudaSettings(limit=held)).failed is None
    assert cuda(requests, CudaSettings(limit=trace.peak)).failed is not None


def test_a_storage_of_another_card_is_none_of_the_sessions(gpu: Gpu, monkeypatch) -> None:
    for module in (engines, storages):
        monkeypatch.setattr(module, "lies_on", lambda one, device: False)
    with Session("1GiB", tier="host", policy="swap-all") as session:
        train(3)
    assert session.trace is not None
    assert not session.trace.values
    assert any("nothing ran on" in event for event in session.reports[0].events)


def test_the_gpu_is_the_one_that_the_script_has_chosen(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    found = [sessions.device_of(given) for given in (None, "cuda", "cuda:0", "cpu")]
    assert [str(one) for one in found] == ["cuda:1", "cuda:1", "cuda:0", "cpu"]
