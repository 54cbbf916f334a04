"""Plans that nobody would choose, carried out: every gradient is still the one of plain PyTorch."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (its name everywhere)

from penstock.dispatch.clock import Clock
from penstock.dispatch.resident import meter_for
from penstock.engine.engine import Engine
from penstock.engine.lanes import Lane, StreamLane, ThreadLane
from penstock.engine.program import compile_program
from penstock.engine.residency import MountedTier
from penstock.engine.tiers import TierStore
from penstock.engine.tiers.disk import DiskStore
from penstock.engine.tiers.host import HostStore
from penstock.ir.machine import Device, Link, Machine, Tier
from penstock.ir.plan import Plan, Swap
from penstock.ir.policy import Problem
from penstock.ir.timeline import lane_of
from penstock.ir.trace import OpIndex
from penstock.record.measure import stopwatch_for
from penstock.record.step import Recorder, Recording
from penstock.simulate.least import least_budget
from penstock.solve.best import outcome
from runs import DEVICES, digest, settle
from strategies import plans

EXAMPLES = 200
STEPS = 3
SMALLEST = 8 * 1024
"""Bytes of the smallest values that the plans move: far below what a policy would."""
ROOMY = 1 << 40

Step = Callable[[int], list[Tensor]]


# -- the models ---------------------------------------------------------------------------------


class Residual(nn.Module):
    """Convolution, batch norm with running statistics, in-place ReLU, a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.first(x)), inplace=True)
        h = h + self.second(h)
        return self.head(F.max_pool2d(h, 2).mean((2, 3)))


class Block(nn.Module):
    """Attention and its surroundings: views of one storage, dropout, layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.mix = nn.Linear(32, 96)
        self.out = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.mix(self.norm(x)).view(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + F.dropout(self.out(mixed.transpose(1, 2).reshape(b, n, c)), 0.2)


class Editor(nn.Module):
    """Writes in place to what was saved before, to parts of it, and through views."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(48, 48), nn.Linear(48, 48)

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        kept = torch.sigmoid(h)
        h = h.add_(1.0).mul(kept)
        left, right = h.chunk(2, dim=1)
        right = right.clone().tanh_()
        h = torch.cat([left.exp(), right], dim=1)
        h[:, :8] += 2.0
        return self.two(h).masked_fill(h > 2.5, 0.0)


class Cell(nn.Module):
    """A recurrence: one weight read at every time step."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(32, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], 64)
        for t in range(x.shape[1]):
            gate, new = torch.sigmoid(self.outer(state)), torch.tanh(self.inner(x[:, t]))
            state = gate * state + (1 - gate) * new
        return state


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Linear(48, 64),
        nn.GELU(),
        nn.Dropout(0.3),
        nn.Linear(64, 64),
        nn.Dropout(0.3, inplace=True),
        nn.ReLU(inplace=True),
        nn.Linear(64, 16),
    )


def simple(make: Callable[[], nn.Module], *shape: int) -> Callable[[str], tuple[nn.Module, Step]]:
    """One forward and one backward of a model on random data."""

    def maker(device: str) -> tuple[nn.Module, Step]:
        torch.manual_seed(0)
        model = make().to(device)
        batches = [torch.randn(shape).to(device) for _ in range(STEPS)]

        def backward(number: int) -> list[Tensor]:
            loss = model(batches[number]).square().mean()
            loss.backward()
            return [loss.detach()]

        return model, trained(model, backward)

    return maker


def twice(device: str) -> tuple[nn.Module, Step]:
    """Two backwards through one graph, and the gradient of a gradient, accumulated."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 64), nn.Tanh(), nn.Linear(64, 32), nn.Softplus()).to(device)
    batches = [torch.randn(64, 48).to(device) for _ in range(STEPS)]

    def backward(number: int) -> list[Tensor]:
        x = batches[number].clone().requires_grad_()
        out = model(x)
        out.mean().backward(retain_graph=True)
        (slope,) = torch.autograd.grad(out.square().mean(), x, create_graph=True)
        penalty = slope.square().sum()
        penalty.backward()
        return [penalty.detach(), x.grad]

    return model, trained(model, backward)


def trained(model: nn.Module, backward: Step) -> Step:
    """`backward`, then an optimizer whose rate of 0 leaves the parameters as they are: so every
    plan starts from the same ones, and one plain run is the reference of all."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, foreach=False)

    def step(number: int) -> list[Tensor]:
        torch.manual_seed(100 + number)
        losses = backward(number)
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        optimizer.step()
        optimizer.zero_grad()
        return losses + gradients

    return step


MODELS = {
    "perceptron": simple(perceptron, 96, 48),
    "residual": simple(Residual, 4, 3, 16, 16),
    "attention": simple(lambda: nn.Sequential(Block(), Block()), 4, 32, 32),
    "in-place": simple(Editor, 96, 48),
    "recurrent": simple(Cell, 48, 3, 32),
    "twice": twice,
}


# -- the bench ----------------------------------------------------------------------------------


class Hesitant:
    """A tier whose copies take their time, at random: mixed into a real one."""

    chance = random.Random(0)
    longest = 0.0

    def hesitate(self) -> None:
        if self.longest and self.chance.random() < 0.3:
            seconds = self.chance.random() * self.longest
            if torch.cuda.is_available():
                torch.cuda._sleep(int(seconds * 1e9))  # cycles, on the lane's stream
            else:
                time.sleep(seconds)

    def write(self, *args: Any) -> None:
        self.hesitate()
        super().write(*args)
        self.hesitate()

    def read(self, *args: Any) -> None:
        self.hesitate()
        super().read(*args)
        self.hesitate()


class HesitantDisk(Hesitant, DiskStore):
    pass


class HesitantHost(Hesitant, HostStore):
    pass


def mounted(store: TierStore, device: torch.device) -> MountedTier:
    def lane(*, inward: bool) -> Lane:
        streams = store.name == "host" and device.type == "cuda"
        kind = StreamLane if streams else ThreadLane
        return kind(lane_of(store.name, inward=inward), store, device)

    return MountedTier(store, lane(inward=False), lane(inward=True))


class Bench:
    """One model, recorded once, to carry out any plan on."""

    def __init__(self, name: str, device: str, directory: Path) -> None:
        settle()
        self.device = torch.device(device)
        self.model, self.step = MODELS[name](device)
        self.buffers = [buffer.clone() for buffer in self.model.buffers()]
        self.stores = (HesitantHost(self.device), HesitantDisk(str(directory)))
        self.tiers = [mounted(store, self.device) for store in self.stores]
        link = Link(2.0**30)
        facts = tuple(Tier(store.name, ROOMY, link, link) for store in self.stores)
        self.machine = Machine(Device(device, ROOMY), facts)
        self.meter = meter_for(self.device)
        self.expected = self.plain()
        self.recording = self.record()
        assert self.plain() == self.expected  # recording changed nothing

    def reset(self) -> None:
        for buffer, initial in zip(self.model.buffers(), self.buffers, strict=True):
            buffer.copy_(initial)

    def seen(self, results: list[list[Tensor]]) -> list[list[str]]:
        return [*map(digest, results), digest(self.model.buffers())]

    def plain(self) -> list[list[str]]:
        self.reset()
        return self.seen([self.step(number) for number in range(STEPS)])

    def record(self) -> Recording:
        recorder = Recorder(self.device, stopwatch_for(self.device, self.meter))
        recorder.open()
        with Clock(recorder.run):
            self.step(0)  # the first meets what exists
            recorder.begin()
            kept = self.step(1)
            recording = recorder.end()
        recorder.close()
        del kept
        return recording

    def carry_out(self, plan: Plan, budget: int) -> tuple[list[list[str]], Engine]:
        """The results of the steps under `plan`, waits for room as for `budget`."""
        found = outcome(Problem(self.recording.trace, self.machine, budget), plan)
        program = compile_program(
            self.recording.funcs, plan, found.schedule, found.timeline, self.recording.initial
        )
        self.reset()
        engine = Engine(self.device, self.tiers, ROOMY, self.meter, 0, verify=True)
        engine.follow_program(program)
        results, happened = [], []
        try:
            for number in range(STEPS):
                engine.begin_step()
                with Clock(lambda *call: engine.handler(*call)):  # noqa: PLW0108  (the handler changes)
                    results.append(self.step(number))
                engine.end_step()
                happened += engine.happened.events
        finally:
            engine.restore()
        assert not [event for event in happened if event.startswith("fallback")]
        return self.seen(results), engine

    def close(self) -> None:
        for tier in self.tiers:
            tier.close()


@contextmanager
def bench_of(name: str, device: str, directory: Path) -> Iterator[Bench]:
    bench = Bench(name, device, directory)
    try:
        yield bench
    finally:
        bench.close()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MODELS)
def test_every_gradient_is_that_of_plain_pytorch_whatever_the_plan(
    name: str, device: str, tmp_path: Path
) -> None:
    moved = 0
    with bench_of(name, device, tmp_path) as bench:
        trace = bench.recording.trace
        least = least_budget(trace).nbytes

        @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
        @given(
            plan=plans(trace, bench.machine, SMALLEST),
            budget=st.sampled_from([ROOMY, trace.peak, (trace.peak + least) // 2, least]),
            delays=st.none() | st.integers(0, 1000),
        )
        def carried_out(plan: Plan, budget: int, delays: int | None) -> None:
            nonlocal moved
            Hesitant.longest = 0.0 if delays is None else 0.002
            Hesitant.chance = random.Random(delays)
            found, engine = bench.carry_out(plan, budget)
            assert found == bench.expected
            moved += engine.manager.statistics.evictions + engine.manager.statistics.drops

        carried_out()
    assert moved > 10 * EXAMPLES  # the plans did something


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_copied_out_while_it_is_read_has_left_when_it_was_read(
    device: str, tmp_path: Path
) -> None:
    with bench_of("residual", device, tmp_path) as bench:
        trace = bench.recording.trace
        swaps = []
        for gap in trace.saved_gaps(SMALLEST):
            made = trace.values[gap.value].producer
            if made is not None and made < gap.start and gap.stop > gap.start + 1:
                waits = OpIndex(gap.start + 1)
                swaps.append(Swap(gap, "host", OpIndex(made + 1), gap.stop, fence=waits))
        assert swaps
        found, engine = bench.carry_out(Plan(tuple(swaps)), ROOMY)
        assert found == bench.expected
    done = engine.manager.statistics
    assert done.evictions == done.prefetches == STEPS * len(swaps)
    assert done.recalled == done.fetches == 0
