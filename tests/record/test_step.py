"""A recorded step says what happened, names it, keeps nothing alive and changes nothing."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (its name everywhere)
from torch.utils.flop_counter import FlopCounterMode

from penstock.dispatch.clock import Clock
from penstock.dispatch.resident import meter_for
from penstock.ir.trace import Kind, Op, Phase, Trace, Value
from penstock.record import Recorder
from penstock.record.measure import stopwatch_for
from runs import DEVICES, digest

pytestmark = pytest.mark.parametrize("device", DEVICES)


class Model(nn.Module):
    """Convolution with batch norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.conv(x)), inplace=True)
        return self.head(h.mean((2, 3)))


class Run:
    """A model with its optimizer and data; `step` is one training step."""

    def __init__(self, device: str, *, accumulate: int = 1) -> None:
        torch.manual_seed(0)
        self.model = Model().to(device)
        # Not foreach: one call for each parameter is easier to follow.
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.1, foreach=False)
        self.batches = [torch.randn(4, 3, 10, 10).to(device) for _ in range(accumulate)]
        self.losses: list[Tensor] = []

    def step(self, recorder: Recorder | None = None) -> None:
        for batch in self.batches:
            loss = self.model(batch).square().mean()
            loss.backward()
            self.losses.append(loss.detach())
        if recorder is not None:
            recorder.optimizer_begins(self.optimizer)
        self.optimizer.step()
        if recorder is not None:
            recorder.optimizer_ends(self.optimizer)
        self.optimizer.zero_grad()


def recorded(run: Run, device: str, steps: int = 2) -> Trace:
    """The trace of the last of several steps; the first makes the optimizer's state."""

    def train(recorder: Recorder) -> Trace:
        for _ in range(steps):
            recorder.begin()
            run.step(recorder)
            trace = recorder.end().trace
        return trace

    return recording(train, device)


def recording(use: Callable[[Recorder], Trace], device: str) -> Trace:
    place = torch.device(device)
    recorder = Recorder(place, stopwatch_for(place, meter_for(place)))
    recorder.open()
    try:
        with Clock(recorder.run):
            return use(recorder)
    finally:
        recorder.close()


def once(step: Callable[[], object], device: str) -> Trace:
    """The trace of a single call of `step`."""

    def use(recorder: Recorder) -> Trace:
        recorder.begin()
        step()
        return recorder.end().trace

    return recording(use, device)


def ops(trace: Trace, name: str) -> list[Op]:
    return [op for op in trace.ops if op.name.startswith(f"aten.{name}")]


def named(trace: Trace, kind: Kind) -> set[str]:
    return {value.name for value in trace.values if value.kind is kind and value.name}


def values(trace: Trace, kind: Kind) -> list[Value]:
    return [value for value in trace.values if value.kind is kind]


def test_the_phases_follow_each_other(device: str) -> None:
    trace = recorded(Run(device), device)
    phases = [op.phase for op in trace.ops]
    assert phases[0] is Phase.FORWARD
    backward, optimizer = phases.index(Phase.BACKWARD), phases.index(Phase.OPTIMIZER)
    assert set(phases[:backward]) == {Phase.FORWARD}
    assert set(phases[backward:optimizer]) == {Phase.BACKWARD}
    assert {op.phase for op in ops(trace, "addmm")} == {Phase.FORWARD}
    assert {op.phase for op in ops(trace, "convolution_backward")} == {Phase.BACKWARD}
    assert {op.phase for op in ops(trace, "addcdiv_")} == {Phase.OPTIMIZER}


def test_ops_that_only_make_views_are_left_out(device: str) -> None:
    a = torch.randn(4, 6, device=device)
    trace = once(lambda: a.view(6, 4).t()[1:].detach().add(1).unsqueeze(0), device)
    assert [op.name for op in trace.ops] == ["aten.add"]


def test_values_get_the_kinds_and_names_that_the_user_knows(device: str) -> None:
    run = Run(device)
    trace = recorded(run, device)
    parameters = {name for name, _ in run.model.named_parameters()}
    assert named(trace, Kind.PARAMETER) == parameters
    assert named(trace, Kind.BUFFER) == {name for name, _ in run.model.named_buffers()}
    assert named(trace, Kind.GRADIENT) == {f"gradient of {name}" for name in parameters}
    moments = {f"{it} of {name}" for name in parameters for it in ("exp_avg", "exp_avg_sq")}
    assert moments <= named(trace, Kind.OPTIMIZER_STATE)
    batch = run.batches[0]
    assert [v.nbytes for v in values(trace, Kind.INPUT) if v.nbytes == batch.nbytes] == [
        batch.nbytes
    ]
    made_in_forward = {v for op in trace.ops if op.phase is Phase.FORWARD for v in op.writes}
    made_here = {v.id for v in values(trace, Kind.ACTIVATION) if v.producer is not None}
    assert made_here <= made_in_forward  # the first step's loss is still there, too


def test_bytes_are_those_of_the_storages(device: str) -> None:
    run = Run(device)
    trace = recorded(run, device)
    sizes = {v.name: v.nbytes for v in trace.values if v.producer is None}
    for name, parameter in run.model.named_parameters():
        assert sizes[name] == parameter.nbytes
        assert sizes[f"exp_avg of {name}"] == parameter.nbytes


def test_a_module_owns_its_forward_and_its_backward(device: str) -> None:
    trace = recorded(Run(device), device)
    owners = {op.name.removeprefix("aten."): op.module for op in trace.ops}
    # The norm counts its batches, without autograd, between the convolution and itself.
    assert owners["convolution"] == owners["convolution_backward"] == "conv"
    assert owners["relu_"] == "Model"  # called by the model itself
    assert owners["threshold_backward"] == "Model"
    assert [op.module for op in ops(trace, "addmm")] == ["head.0", "head.2"]
    assert owners["gelu"] == owners["gelu_backward"] == "head.1"
    assert owners["native_batch_norm_backward"] == "norm"


def test_flops_are_those_of_torchs_counter(device: str) -> None:
    run = Run(device)
    trace = recorded(run, device)
    with FlopCounterMode(display=False) as counter:
        run.step()
    assert sum(op.flops for op in trace.ops) == counter.get_total_flops() > 0


def test_an_in_place_op_makes_the_next_version(device: str) -> None:
    trace = recorded(Run(device), device)
    (relu,) = ops(trace, "relu_")
    (before,), (after,) = relu.reads, relu.writes
    assert trace.values[before].storage == trace.values[after].storage
    assert trace.values[before].freed == trace.values[after].producer == relu.index
    assert trace.previous_version[after] == before


def test_what_backward_reads_is_saved_and_nothing_else(device: str) -> None:
    w = torch.randn(100, device=device, requires_grad=True)

    def step() -> None:
        a = w * 2  # read by no backward: the factor is a number
        b = a.sin()  # saves a, after all
        c = b + 1  # saves nothing
        c.exp().sum().backward()  # saves its own result

    trace = once(step, device)
    saved = {op.name: trace.values[op.writes[0]].saved for op in trace.ops[:4]}
    assert saved == {"aten.mul": True, "aten.sin": False, "aten.add": False, "aten.exp": True}
    assert not any(v.saved for v in trace.values if v.producer is None)  # nobody made w here


def test_values_die_in_the_trace_when_they_die(device: str) -> None:
    def step() -> None:
        a = torch.ones(100, device=device)
        b = a + 1
        del a
        c = b * 2
        del b
        c.sum()

    trace = once(step, device)
    ones, add, mul, total = trace.ops
    died = [trace.values[op.writes[0]].freed for op in (ones, add, mul, total)]
    assert died == [add.index, mul.index, total.index, total.index]


def test_random_ops_are_known(device: str) -> None:
    x = torch.ones(1000, device=device)
    trace = once(lambda: F.dropout(x, 0.5).add(1), device)
    assert any(op.random for op in trace.ops)
    assert not ops(trace, "add")[0].random


def test_accumulated_gradients_are_one_step(device: str) -> None:
    trace = recorded(Run(device, accumulate=3), device)
    assert len(ops(trace, "convolution_backward")) == 3
    adam = [op for op in trace.ops if op.phase is Phase.OPTIMIZER]
    last_backward = max(op.index for op in trace.ops if op.phase is Phase.BACKWARD)
    assert adam[0].index > last_backward
    gradients = {v.name for v in values(trace, Kind.GRADIENT)}
    assert len([name for name in gradients if name.startswith("gradient of conv")]) == 2


def test_recording_changes_no_bit(device: str) -> None:
    plain, watched = Run(device), Run(device)
    for _ in range(3):
        plain.step()
    recorded(watched, device, steps=3)
    assert digest(watched.losses) == digest(plain.losses)
    assert digest(watched.model.state_dict().values()) == digest(plain.model.state_dict().values())


def test_the_recorder_keeps_nothing_alive(device: str) -> None:
    refs: list[weakref.ref] = []

    def use(recorder: Recorder) -> Trace:
        recorder.begin()
        a = torch.randn(1000, device=device, requires_grad=True)
        b = (a * 2).exp()
        refs.extend(weakref.ref(t.untyped_storage()) for t in (a, b))
        b.sum().backward()
        refs.append(weakref.ref(a.grad.untyped_storage()))
        assert recorder.live_bytes() >= 3 * 4000
        del a, b
        gc.collect()
        assert [ref() for ref in refs] == [None] * 3
        assert recorder.live_bytes() == 0
        return recorder.end().trace

    trace = recording(use, device)
    assert all(value.freed is not None for value in trace.values)


def test_steps_of_one_course_have_the_same_ops(device: str) -> None:
    run = Run(device)

    def use(recorder: Recorder) -> Trace:
        traces = []
        for _ in range(3):
            recorder.begin()
            run.step(recorder)
            run.losses.clear()  # what is kept would be one value more in each step
            traces.append(recorder.end().trace)
        second, third = traces[1:]
        assert [(op.name, op.phase, op.module, op.reads, op.writes) for op in second.ops] == [
            (op.name, op.phase, op.module, op.reads, op.writes) for op in third.ops
        ]
        assert second.peak == third.peak
        return third

    recording(use, device)


def test_times_and_bytes_moved_are_measured(device: str) -> None:
    a = torch.randn(1 << 20, device=device)
    (op,) = once(lambda: a * 2, device).ops
    assert op.seconds > 0
    assert op.host_seconds >= 0
    assert op.moved == 2 * a.nbytes


def test_a_failing_op_is_no_part_of_the_step(device: str) -> None:
    a = torch.randn(4, 4, device=device)

    def step() -> None:
        b = a + 1
        with pytest.raises(RuntimeError):
            b @ a[:3]
        b.mul_(2)

    assert [op.name for op in once(step, device).ops] == ["aten.add", "aten.mul_"]
