"""What the CPU's kernels keep for backward counts in a step that never ran, too."""

import pytest
import torch
from torch import nn

from penstock.ir.trace import Trace
from penstock.record.fake import Step, record_fake
from penstock.session import Session

LAYER = "aten.mkldnn_rnn_layer"


def tagger(length: int) -> Step:
    """Trains an LSTM on sequences of `length`."""
    torch.manual_seed(0)
    model = nn.LSTM(24, 32, num_layers=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sequence = torch.randn(length, 4, 24)

    def step(_: int) -> None:
        model(sequence)[0].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def scratch(trace: Trace) -> list[int]:
    """Bytes of the last output of each layer."""
    return [trace.values[op.writes[-1]].nbytes for op in trace.ops if op.name == LAYER]


def real(length: int) -> Trace:
    found: list[Trace] = []
    step = tagger(length)
    with Session("1GiB", policy="keep", tier="none", device="cpu", on_recorded=found.append):
        while not found:
            step(0)
    return found[0]


@pytest.mark.parametrize("length", [3, 64, 200])
def test_the_scratch_of_an_lstm_has_the_size_of_a_real_one(length: int) -> None:
    fake, true = record_fake(lambda: tagger(length)), real(length)
    assert len(scratch(true)) == 2
    assert scratch(fake) == pytest.approx(scratch(true), rel=0.01)
    assert min(scratch(true)) > length * 4 * 32 * 4  # more than the output itself


def test_the_products_of_an_lstm_count() -> None:
    weights = [4 * 32 * (24 + 32), 4 * 32 * (32 + 32)]  # of its two layers
    fake = record_fake(lambda: tagger(10))
    forward = [op.flops for op in fake.ops if op.name == LAYER]
    backward = [op.flops for op in fake.ops if op.name == f"{LAYER}_backward"]
    assert forward == [2 * 10 * 4 * n for n in weights]
    assert sorted(backward) == [4 * 10 * 4 * n for n in weights]
