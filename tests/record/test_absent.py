"""Fake tensors of a GPU take its paths, also where there is none.

Expected choices are those of `select_sdp_backend` in torch's aten/src/ATen/native/transformers/cuda.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from penstock.errors import TraceError
from penstock.ir.trace import Kind, Trace
from penstock.record import fake
from penstock.record.fake import record_fake
from penstock.session import Session
from penstock.zoo.architectures import parse


def on_gpu(forward, *shapes, dtype=torch.float32) -> Trace:
    """The trace of one function's forward and backward."""

    def make():
        inputs = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]

        def step(_number: int) -> None:
            forward(*inputs).sum().backward()
            for one in inputs:
                one.grad = None

        return step

    return record_fake(make, "cuda")


def names(trace: Trace) -> list[str]:
    return [op.name.removeprefix("aten.") for op in trace.ops]


def attention(**options):
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options)


FLASH = "_scaled_dot_product_flash_attention"
EFFICIENT = "_scaled_dot_product_efficient_attention"
SHAPE = (2, 4, 32, 16)


@pytest.mark.parametrize(
    ("kernel", "dtype", "shapes", "options"),
    [
        (FLASH, torch.bfloat16, [SHAPE] * 3, {"is_causal": True}),
        (FLASH, torch.float16, [(2, 4, 32, 20)] * 3, {}),  # padded to heads of 24
        (FLASH, torch.bfloat16, [SHAPE, (2, 2, 32, 16), (2, 2, 32, 16)], {"enable_gqa": True}),
        (EFFICIENT, torch.float32, [SHAPE] * 3, {"is_causal": True}),
        (EFFICIENT, torch.bfloat16, [(2, 4, 32, 512)] * 3, {}),  # too wide for flash
    ],
)
def test_attention_is_that_of_a_gpu(kernel, dtype, shapes, options) -> None:
    ran = names(on_gpu(attention(**options), *shapes, dtype=dtype))
    assert kernel in ran and f"{kernel}_backward" in ran


def test_attention_with_a_mask_is_memory_efficient() -> None:
    def masked(q, k, v):
        mask = torch.ones(32, 32, dtype=torch.bool, device=q.device).tril()
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    ran = names(on_gpu(masked, SHAPE, SHAPE, SHAPE, dtype=torch.bfloat16))
    assert EFFICIENT in ran and FLASH not in ran


def test_attention_that_no_kernel_can_do_is_plain() -> None:
    grouped = [SHAPE, (2, 2, 32, 16), (2, 2, 32, 16)]
    ran = names(on_gpu(attention(enable_gqa=True, is_causal=True), *grouped))
    assert "bmm" in ran and not {FLASH, EFFICIENT} & set(ran)


def test_the_mask_of_dropout_is_one_byte_an_element() -> None:
    trace = on_gpu(lambda x: F.dropout(x, 0.1), (64, 64))
    assert "native_dropout" in names(trace)
    assert 64 * 64 in {value.nbytes for value in trace.values if value.saved}


def test_activations_have_kernels_of_their_own_in_backward() -> None:
    assert "silu_backward" in names(on_gpu(F.silu, (8, 8)))
    assert "mish_backward" in names(on_gpu(F.mish, (8, 8)))


def autocasted(function, *shapes) -> dict[str, str]:
    """The dtype in which each op of a function ran under autocast in float16."""

    def lower(*inputs):
        with torch.autocast("cuda", torch.float16):
            return function(*inputs)

    return {op.name.removeprefix("aten."): op.dtype for op in on_gpu(lower, *shapes).ops}


def test_autocast_is_that_of_a_gpu() -> None:
    ran = autocasted(lambda x, w: F.layer_norm(x @ w, (8,)).softmax(-1), (16, 8), (8, 8))
    assert ran["mm"] == "float16"
    assert ran["native_layer_norm"] == ran["_softmax"] == "float32"  # on a CPU they are not cast


def test_autocast_casts_a_weight_once() -> None:
    trace = on_gpu(_twice_under_autocast, (8, 8), (8, 8))
    forward = [op for op in trace.ops if op.phase == "forward" and op.name == "aten._to_copy"]
    assert len(forward) == 2  # the input, and the weight that is read twice


def _twice_under_autocast(x, weight):
    with torch.autocast("cuda", torch.float16):
        return x @ weight @ weight


def test_autocast_can_be_switched_off_inside() -> None:
    def inside(x, weight):
        with torch.autocast("cuda", enabled=False):
            return x @ weight

    assert autocasted(inside, (8, 8), (8, 8))["mm"] == "float32"


def test_tensors_move_between_devices_as_python_sees_them() -> None:
    seen = []

    def moved(x):
        assert x.is_cuda and not x.is_cpu
        outside = torch.randn(4)
        back = x.cpu()
        seen.extend([x.to("cuda"), outside.cuda(), back.to(x), x.half(), outside.type_as(x)])
        seen.append(back)
        return x * 2

    on_gpu(moved, (4,))
    devices = [one.device.type for one in seen[:6]]
    assert devices == ["cuda", "cuda", "cuda", "cuda", "cuda", "cpu"]


def test_a_batch_that_was_loaded_outside_moves_to_the_gpu() -> None:
    batch, labels = torch.randn(2, 8), torch.zeros(2, dtype=torch.int64)
    seen = []

    def make():
        net = nn.Linear(8, 3)

        def step(_: int) -> None:
            there = batch.to("cuda"), labels.cuda(), batch.to(torch.float64), batch.to("cpu")
            seen[:] = [(one.device.type, one.dtype) for one in there]
            F.cross_entropy(net(there[0]), there[1]).backward()

        return step

    trace = record_fake(make, "cuda")
    assert seen[:3] == [
        ("cuda", torch.float32),
        ("cuda", torch.int64),
        ("cpu", torch.float64),
    ]
    assert there_is_one(trace, "_to_copy", batch.nbytes)
    assert batch.to(torch.float64).device.type == "cpu"  # afterwards as before
    assert "to" not in vars(torch.Tensor)


def there_is_one(trace: Trace, name: str, nbytes: int) -> bool:
    made = [
        trace.values[v].nbytes for op in trace.ops if op.name == f"aten.{name}" for v in op.writes
    ]
    return made.count(nbytes) == 1


def test_batch_norm_updates_its_statistics() -> None:
    norm = []

    def make():
        norm[:] = [nn.BatchNorm2d(64)]
        x = torch.randn(2, 64, 8, 8)
        return lambda _: norm[0](x).sum().backward()

    trace = record_fake(make, "cuda")
    assert {v.kind for v in trace.values} >= {Kind.PARAMETER, Kind.BUFFER, Kind.ACTIVATION}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_module_can_be_moved_and_cast(device: str) -> None:
    moved = []

    def make():
        with torch.device("cpu"):
            moved[:] = [nn.Linear(300, 300, bias=False).to(device).bfloat16()]
        x = torch.randn(4, 300, dtype=torch.bfloat16)
        return lambda _: moved[0](x).sum().backward()

    trace = record_fake(make, device)
    weight = moved[0].weight
    assert (weight.device.type, weight.dtype) == (device, torch.bfloat16)
    sizes = [value.nbytes for value in trace.values if value.kind is Kind.PARAMETER]
    assert sizes == [2 * 300 * 300]


def test_what_compiled_code_makes_of_a_tensor_is_where_the_tensor_is() -> None:
    def looked_up(table):
        which = torch.randint(0, 16, (64,), device="cuda")
        hot = F.one_hot(which, 16).float()
        return F.cross_entropy(hot @ table, which, label_smoothing=0.1)

    ran = names(on_gpu(looked_up, (16, 16)))
    assert "mm" in ran and "nll_loss_forward" in ran


def test_an_lstm_is_one_op() -> None:
    def make():
        model = nn.LSTM(8, 8, num_layers=2)
        x = torch.randn(50, 2, 8)
        return lambda _: model(x)[0].sum().backward()

    forward = [op for op in record_fake(make, "cuda").ops if op.phase == "forward"]
    assert len(forward) < 20  # not fifty times each gate


def test_torch_is_left_as_it_was() -> None:
    def watched():
        return (
            F.scaled_dot_product_attention,
            F._VF.dropout,
            torch.cuda.is_bf16_supported,
            torch.clear_autocast_cache,
            torch._C._dispatch_dump("aten::mm"),
        )

    was = watched()
    on_gpu(lambda x: x * 2, (4,))
    assert watched() == was
    faked = torch._subclasses.fake_tensor.FakeTensor
    assert not {"to", "cpu", "cuda", "is_cuda", "copy_"} & set(vars(faked))


def test_a_step_on_another_device_is_refused() -> None:
    def make():
        model = nn.Linear(3, 3, device="cpu")
        return lambda _: model(torch.ones(4, 3, device="cpu")).sum()

    with pytest.raises(TraceError, match="nothing ran on cuda"):
        record_fake(make, "cuda")


@pytest.mark.cuda
@pytest.mark.parametrize("is_hidden", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "vit", "gan", "adamw-fused"])
def test_the_ops_are_those_of_a_real_gpu(
    name: str, is_hidden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: list[Trace] = []
    with Session("100%", policy="keep", tier="none", device="cuda", on_recorded=real.append):
        with torch.device("cuda"):
            step = parse(f"zoo:{name}").make()
        number = 0
        while not real:
            step(number)
            number += 1
    if is_hidden:  # as on a machine without it
        monkeypatch.setattr(fake, "is_absent", lambda device: device.type == "cuda")
    assert names(record_fake(parse(f"zoo:{name}").make, "cuda")) == names(real[0])
