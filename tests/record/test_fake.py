"""A step recorded on fake tensors has the trace of the real one.

Two of our workloads are left out. U-Net: the real loss lives in the buffer that its kernel reduced
in. LSTM: the kernel's gradients have other strides than torch says, so real ones are copied less.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn

from penstock.errors import TraceError
from penstock.ir.trace import Phase, Trace
from penstock.record.fake import record_fake
from penstock.session import Session
from penstock.zoo.workloads import workload

ALIKE = (
    "gpt2",
    "llama",
    "t5",
    "vit",
    "checkpointed",
    "autocast",
    "resnet",
    "vgg-inplace",
    "unet",
    "gan",
    "retained",
    "adamw-fused",
    "adamw-foreach",
    "adamw-loop",
)


def recorded(name: str) -> Trace:
    """The trace of a real step."""
    found: list[Trace] = []
    work = workload(name)
    with Session("100%", policy="keep", tier="none", device="cpu", on_recorded=found.append):
        number = 0
        while not found:
            work.step(number)
            number += 1
    return found[0]


def faked(name: str) -> Trace:
    return record_fake(lambda: workload(name).step, label=name)


def unmeasured(trace: Trace) -> Trace:
    """All of a trace but what only a measurement tells."""
    ops = tuple(replace(op, seconds=0.0, host_seconds=0.0, workspace=0) for op in trace.ops)
    values = tuple(replace(v, nbytes=v.allocated, unwritten=0) for v in trace.values)
    return replace(trace, ops=ops, values=values, slack=0, label="")


@pytest.mark.parametrize("name", ALIKE)
def test_the_trace_is_that_of_the_real_step(name: str) -> None:
    real, fake = unmeasured(recorded(name)), unmeasured(faked(name))
    assert [op.name for op in fake.ops] == [op.name for op in real.ops]
    assert fake.values == real.values
    assert fake.ops == real.ops


def test_a_step_takes_no_memory_and_no_time() -> None:
    width = 1 << 20  # its weights alone would be 4 TiB

    def make():
        model = nn.Linear(width, width)
        optimizer = torch.optim.Adam(model.parameters())

        def step(_number: int) -> None:
            model(torch.randn(8, width)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    trace = record_fake(make)
    assert trace.peak > 4 * 4 << 40
    assert {op.phase for op in trace.ops} == set(Phase)


def test_a_step_without_an_optimizer_is_its_second_call() -> None:
    def make():
        weight = torch.ones(300, 300, requires_grad=True)
        return lambda number: (weight @ torch.ones(300, 10 * (number + 1))).sum().backward()

    trace = record_fake(make)
    assert sum(op.name == "aten.mm" for op in trace.ops) == 2
    assert any(value.nbytes == 300 * 20 * 4 for value in trace.values)


def test_small_constants_are_known() -> None:
    seen = []

    def make():
        rates = [rate.item() for rate in torch.linspace(0, 1, 3)]
        ids = torch.arange(10)

        def step(_number: int) -> None:
            seen.extend(rates)
            if (ids[:, None] >= ids[None, :]).all():
                raise AssertionError("a causal mask is not full")
            seen.append(int(ids.diff().sum()))

        return step

    record_fake(make)
    assert seen[:4] == [0.0, 0.5, 1.0, 9]


def test_the_positions_of_a_large_batch_are_known() -> None:
    """transformers looks there for several samples packed into one."""
    seen = []

    def make():
        def step(_number: int) -> None:
            positions = torch.arange(1024)[None].expand(100, -1)
            seen.append(bool((positions.diff() == 1).all()))

        return step

    record_fake(make)
    assert seen == [True, True]


@pytest.mark.parametrize("name", ["moe"])
def test_a_step_that_depends_on_its_values_is_refused(name: str) -> None:
    with pytest.raises(TraceError, match="moe: what it does depends on the values of its tensors"):
        faked(name)
