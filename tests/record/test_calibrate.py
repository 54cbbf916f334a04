"""Calibration: what it measures, under which names, and that it leaves no trace in random numbers."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.optim import AdamW

from penstock.dispatch.resident import meter_for
from penstock.errors import InternalError
from penstock.ir.machine import Machine, Sample
from penstock.ir.trace import Trace
from penstock.record import calibrate, yardsticks
from penstock.record.calibrate import calibrated
from penstock.record.machine import describe
from penstock.record.overhead import overheads
from penstock.record.yardsticks import Loop
from runs import apart, calibrated_calmly

CPU = torch.device("cpu")
HOSTS = {"host forward", "host backward", "host optimizer"}


def tiny() -> Loop:
    make = partial(yardsticks._Transformer, 64, 1, 16, gated=False)
    return Loop("tiny", make, partial(AdamW, foreach=False))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(calibrate, "loops", lambda: [tiny()])
    return calibrated(describe(CPU, ()), CPU, meter_for(CPU))


def test_ops_have_rates_and_the_host_has_its_pace(machine: Machine) -> None:
    costs = machine.device.costs
    assert {"matmul float32", "pointwise", "norm", "lookup", *HOSTS} <= set(costs)
    assert "aten.embedding" not in costs  # one size says nothing of a rate
    assert all(costs[host].launch > 0 for host in HOSTS)
    assert machine.device.flops["float32"] > 0
    assert not machine.device.costs_are_calm


def test_of_two_passes_the_faster_counts_op_by_op(monkeypatch) -> None:
    passes = iter([(3.0, 1.0), (2.0, 5.0)])
    monkeypatch.setattr(calibrate, "loops", lambda: [tiny()])

    def measured(*_: object) -> tuple[list[Trace], list[calibrate.Keyed]]:
        sizes = zip((10, 1000), next(passes), strict=True)
        return [], [("matmul", Sample(0, moved, seconds)) for moved, seconds in sizes]

    monkeypatch.setattr(calibrate, "_measured", measured)
    monkeypatch.setattr(calibrate, "overheads", lambda *_: {"matmul": 0})
    found = calibrated(describe(CPU, ()), CPU, meter_for(CPU)).device.costs["matmul"]
    assert sorted(found.seen) == [Sample(0, 10, 2.0), Sample(0, 1000, 1.0)]


def test_where_freed_memory_may_stay_ops_are_timed_without_faults() -> None:
    device, workspaces = apart(calibrated_calmly)
    assert device.costs_are_calm
    assert device.faults.small > 0 or device.faults.large > 0
    assert all(device.costs[host].launch > 0 for host in HOSTS)
    assert workspaces["convolution"] > 0  # seen where all goes back: what is kept hides it


@pytest.mark.parametrize("loop", yardsticks.loops(), ids=lambda loop: loop.label)
def test_every_loop_can_be_trained_without_a_device(loop: Loop) -> None:
    with FakeTensorMode():
        loss = loop.make()()
        loss.backward()
    assert loss.shape == ()


def test_what_a_process_takes_beside_its_tensors_is_told_by_kind_of_ops() -> None:
    """Each model trains in a process that has not trained before: else the second would add nothing."""
    loops = [replace(tiny(), kind=kind) for kind in ("matmul", "norm")]
    found = overheads([*loops, replace(tiny(), is_mixed=True, kind="other")], CPU, meter_for(CPU))
    assert set(found) == {"matmul", "norm"}
    assert all(2**16 < nbytes < 64 * 2**20 for nbytes in found.values())
    assert found["norm"] == pytest.approx(found["matmul"], rel=0.2)


def test_why_a_measurement_in_another_process_failed_is_told() -> None:
    broken = replace(tiny(), make=partial(yardsticks._Transformer, 64, 1, 16, gated=False, huge=1))
    with pytest.raises(InternalError, match=r"beside tensors could not be measured: tiny: .*huge"):
        overheads([broken], CPU, meter_for(CPU))


def test_the_next_random_number_is_the_one_that_would_have_been(monkeypatch) -> None:
    monkeypatch.setattr(calibrate, "loops", lambda: [tiny()])
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    calibrated(describe(CPU, ()), CPU, meter_for(CPU))
    assert torch.equal(torch.rand(3), expected)


def test_a_queue_is_filled_at_the_pace_of_plain_steps_phase_by_phase(monkeypatch) -> None:
    """As on a GPU, but for the queue: here each request runs at once."""
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    loop = tiny()
    trace = calibrate._steps(loop, CPU, meter_for(CPU))[0]
    found = dict(calibrate._queued(loop, CPU, trace))
    assert set(found) == HOSTS
    assert all(0 < one.seconds < 0.1 and (one.flops, one.moved) == (0, 0) for one in found.values())
    assert waited == [CPU] * 3 * (calibrate._WARM_UP + calibrate._REPEATS)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_a_gpu_is_calibrated(monkeypatch) -> None:
    monkeypatch.setattr(calibrate, "loops", lambda: [tiny()])
    monkeypatch.setattr(calibrate, "large_loops", list)
    device = torch.device("cuda", 0)
    machine = calibrated(describe(device, ()), device, meter_for(device))
    assert set(machine.device.costs) >= HOSTS
    assert machine.device.overhead > 0  # what cuBLAS works in
