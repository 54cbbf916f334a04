"""What kernels take for themselves counts in a step that never ran, too."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (its name everywhere)

from penstock.ir.trace import Trace
from penstock.record.fake import Step, record_fake
from penstock.session import Session
from runs import tells_of_pages

LAYER = "aten.mkldnn_rnn_layer"
Loss = Callable[..., Tensor]


def tagger(length: int, batch: int = 4, width: int = 32) -> Step:
    """Trains an LSTM on sequences of `length`."""
    torch.manual_seed(0)
    model = nn.LSTM(24, width, num_layers=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sequence = torch.randn(length, batch, 24)

    def step(_: int) -> None:
        model(sequence)[0].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def scratch(trace: Trace) -> list[int]:
    """Bytes of the last output of each layer, its storage."""
    return [trace.values[op.writes[-1]].allocated for op in trace.ops if op.name == LAYER]


def real(step: Step) -> Trace:
    found: list[Trace] = []
    with Session("1GiB", policy="keep", tier="none", device="cpu", on_recorded=found.append):
        while not found:
            step(0)
    return found[0]


@pytest.mark.parametrize("length", [3, 64, 200])
def test_the_scratch_of_an_lstm_has_the_size_of_a_real_one(length: int) -> None:
    fake, true = record_fake(lambda: tagger(length)), real(tagger(length))
    assert len(scratch(true)) == 2
    assert scratch(fake) == pytest.approx(scratch(true), rel=0.01)
    assert min(scratch(true)) > length * 4 * 32 * 4  # more than the output itself


@tells_of_pages
def test_what_the_backward_of_an_lstm_takes_beside_that_scratch_counts() -> None:
    """A third of that scratch is written in forward, some in backward, and the rest never."""
    true = real(tagger(128, batch=32, width=192))
    kept = min(scratch(true))
    held = [true.values[op.writes[-1]].nbytes for op in true.ops if op.name == LAYER]
    assert all(kept / 3 < one < kept / 2 for one in held)  # its pages may be huge ones
    taken = [op.workspace for op in true.ops if op.name == f"{LAYER}_backward"]
    assert len(taken) == 2
    assert all(0.1 * kept < one < kept for one in taken)


def test_the_products_of_an_lstm_count() -> None:
    weights = [4 * 32 * (24 + 32), 4 * 32 * (32 + 32)]  # of its two layers
    fake = record_fake(lambda: tagger(10))
    forward = [op.flops for op in fake.ops if op.name == LAYER]
    backward = [op.flops for op in fake.ops if op.name == f"{LAYER}_backward"]
    assert forward == [2 * 10 * 4 * n for n in weights]
    assert sorted(backward) == [4 * 10 * 4 * n for n in weights]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    "loss",
    [
        F.mse_loss,
        F.smooth_l1_loss,
        F.soft_margin_loss,
        F.binary_cross_entropy,
        F.huber_loss,
        F.l1_loss,
    ],
)
def test_a_loss_has_the_storage_that_a_real_one_has(loss: Loss, reduction: str) -> None:
    def make() -> Step:
        torch.manual_seed(0)
        weight = torch.rand(100, 40, requires_grad=True)
        target = torch.rand(100, 40)
        optimizer = torch.optim.SGD([weight], lr=0.1)

        def step(_: int) -> None:
            loss(weight.sigmoid(), target, reduction=reduction).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    fake, true = record_fake(make), real(make())
    assert [op.name for op in fake.ops] == [op.name for op in true.ops]
    assert [v.allocated for v in fake.values] == [v.allocated for v in true.values]


def workspaces(
    forward: Callable[[Tensor], Tensor], device: str, dtype: torch.dtype = torch.float32
) -> dict[str, int]:
    """By op, the bytes that a step through `forward` of 64 x 100 numbers takes while it runs."""

    def make() -> Step:
        scores = torch.randn(64, 100, dtype=dtype, requires_grad=True)

        def step(_: int) -> None:
            forward(scores).sum().backward()
            scores.grad = None

        return step

    trace = record_fake(make, device)
    return {op.name.removeprefix("aten."): op.workspace for op in trace.ops if op.workspace}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_the_backward_of_softmax_multiplies_into_a_tensor_of_its_own(
    dtype: torch.dtype,
) -> None:
    taken = workspaces(lambda x: x.softmax(1).square(), "cuda", dtype)
    assert taken == {"_softmax_backward_data": 64 * 100 * dtype.itemsize}
    assert workspaces(lambda x: x.softmax(1).square(), "cpu", dtype) == {}


def test_on_a_gpu_the_backward_of_softmax_copies_what_is_not_contiguous() -> None:
    whole = 64 * 100 * 4
    # The gradient of a sum is one number seen at every place.
    assert workspaces(lambda x: x.log_softmax(1), "cuda") == {"_log_softmax_backward_data": whole}
    assert workspaces(lambda x: x.log_softmax(1).square(), "cuda") == {}
    # Its product with the output is whole, so there is nothing to copy.
    assert workspaces(lambda x: x.softmax(1), "cuda") == {"_softmax_backward_data": whole}


def test_what_a_gpu_takes_for_itself_counts_in_the_peak() -> None:
    def make() -> Step:
        scores = torch.randn(512, 1024, requires_grad=True)
        return lambda _: scores.softmax(1).square().sum().backward()

    trace = record_fake(make, "cuda")
    (op,) = [op for op in trace.ops if op.name == "aten._softmax_backward_data"]
    assert trace.live[op.index] >= 4 * 512 * 1024 * 4  # weight, output, gradient, and their product


def test_products_with_vectors_have_their_operations() -> None:
    def make() -> Step:
        matrix, vector = torch.randn(30, 20, requires_grad=True), torch.randn(20)
        return lambda _: matrix.mv(vector).dot(torch.ones(30)).backward()

    flops = {op.name: op.flops for op in record_fake(make).ops}
    assert (flops["aten.mv"], flops["aten.dot"]) == (2 * 30 * 20, 2 * 30)
