"""Training steps from one line of text."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from penstock.errors import UsageError
from penstock.ir.trace import Kind, Phase, Trace
from penstock.record.fake import record_fake
from penstock.zoo.architectures import Architecture, parse

# One of each family. Two layers and two short sequences: quick to record.
FAMILIES = (
    "hf:gpt2?batch=2&seq=16&layers=2",
    "hf:llama-3.2-1b?batch=2&seq=16&layers=2",
    "hf:mistral-7b?batch=2&seq=16&layers=2",
    "hf:qwen2.5-0.5b?batch=2&seq=16&layers=2",
    "hf:opt-1.3b?batch=2&seq=16&layers=2",
    "hf:bert-base?batch=2&seq=16&layers=2",
    "hf:roberta-base?batch=2&seq=16&layers=2",
    "hf:t5-small?batch=2&seq=16&layers=2",
    "hf:vit-base?batch=2&image=32&layers=2",
)


def recorded(text: str, device: str = "cpu") -> Trace:
    return record_fake(parse(text).make, device, text)


def nbytes(trace: Trace, kind: Kind) -> int:
    """Bytes of all storages of a kind."""
    return sum({v.storage: v.nbytes for v in trace.values if v.kind is kind}.values())


def flops(trace: Trace) -> int:
    return sum(op.flops for op in trace.ops)


def trainable(text: str) -> int:
    with FakeTensorMode():
        model = parse(text).model()
    return sum(one.numel() for one in model.parameters() if one.requires_grad)


# -- every family --------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("text", FAMILIES)
def test_a_published_transformer_is_recorded(text: str, device: str) -> None:
    trace = recorded(text, device)
    assert trace.device == device
    assert {op.phase for op in trace.ops} == set(Phase)
    weights = nbytes(trace, Kind.PARAMETER)
    assert (
        2 * weights <= nbytes(trace, Kind.OPTIMIZER_STATE) < 2.01 * weights
    )  # AdamW's two moments
    assert nbytes(trace, Kind.GRADIENT) == weights
    # On a GPU the optimizer takes many tensors at once.
    assert ("aten._foreach_addcdiv_" in {op.name for op in trace.ops}) == (device == "cuda")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", ["resnet18", "seq2seq"])
def test_a_network_of_the_literature_is_recorded(name: str, device: str) -> None:
    trace = recorded(f"cnn:{name}?batch=2&optimizer=momentum", device)
    assert nbytes(trace, Kind.OPTIMIZER_STATE) == nbytes(trace, Kind.PARAMETER)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_workload_of_ours_is_recorded(device: str) -> None:
    trace = recorded("zoo:gan", device)
    assert trace.device == device and flops(trace)


# -- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # what the hub says of the published weights
        ("gpt2-xl", 1_557_611_200),
        ("llama-2-7b", 6_738_415_616),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3-70b", 70_553_706_496),
        ("llama-3.2-1b", 1_235_814_400),
        ("mistral-7b", 7_241_732_096),
        ("qwen2.5-7b", 7_615_616_512),
        ("opt-6.7b", 6_658_473_984),
        ("bert-large", 335_174_458),
        ("roberta-base", 124_697_433),
        ("t5-large", 737_668_096),
    ],
)
def test_it_has_as_many_parameters_as_published(name: str, parameters: int) -> None:
    assert trainable(f"hf:{name}") == parameters


def test_vit_has_as_many_parameters_as_published() -> None:
    # Its initialisation looks at values, so that only `record_fake` can build it without any.
    trace = recorded("hf:vit-base?batch=1&optimizer=none")
    assert nbytes(trace, Kind.PARAMETER) == 4 * 86_567_656


def test_the_dtype_halves_weights_gradients_and_state() -> None:
    plain, half = (recorded(f"hf:gpt2?layers=1&seq=8&dtype={one}") for one in ("fp32", "bf16"))
    for kind in (Kind.PARAMETER, Kind.GRADIENT):
        assert nbytes(half, kind) * 2 == nbytes(plain, kind)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_autocast_keeps_the_weights_and_multiplies_in_less(device: str) -> None:
    spec = "hf:bert-base?batch=2&seq=16&layers=2"
    plain, lower = (recorded(f"{spec}&autocast={one}", device) for one in ("none", "bf16"))
    assert nbytes(lower, Kind.PARAMETER) == nbytes(plain, Kind.PARAMETER)
    assert {op.dtype for op in plain.ops if op.name == "aten.addmm"} == {"float32"}
    assert {op.dtype for op in lower.ops if op.name == "aten.addmm"} == {"bfloat16"}


def test_lora_trains_adapters_of_every_linear_layer_of_the_blocks() -> None:
    # Rank x (inputs + outputs), of the seven linear layers of each of 32 blocks.
    widths = [(4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096)]
    widths += [(4096, 14336), (4096, 14336), (14336, 4096)]
    assert trainable("hf:llama-3-8b?lora=16") == 32 * 16 * sum(map(sum, widths)) == 41_943_040


def test_lora_has_gradients_and_state_of_its_adapters_only() -> None:
    spec = "hf:gpt2?batch=2&seq=16&layers=2&lora=4"
    trace = recorded(spec)
    adapters = 4 * trainable(spec)
    assert nbytes(trace, Kind.GRADIENT) == adapters
    assert 2 * adapters <= nbytes(trace, Kind.OPTIMIZER_STATE) < 2.01 * adapters


def test_checkpointing_keeps_less_and_computes_more() -> None:
    spec = "hf:gpt2?batch=4&seq=64&layers=3"
    plain, again = recorded(spec), recorded(f"{spec}&checkpoint=1")
    assert flops(again) > flops(plain)
    assert sum(v.nbytes for v in again.values if v.saved) < sum(
        v.nbytes for v in plain.values if v.saved
    )


def test_accumulation_repeats_forward_and_backward() -> None:
    once, thrice = (recorded(f"hf:gpt2?layers=1&seq=8&accumulate={n}") for n in (1, 3))
    assert flops(thrice) == 3 * flops(once)


@pytest.mark.parametrize(
    ("optimizer", "copies"), [("none", 0), ("sgd", 0), ("momentum", 1), ("adam", 2), ("adamw", 2)]
)
def test_an_optimizer_has_its_state(optimizer: str, copies: int) -> None:
    trace = recorded(f"cnn:resnet18?batch=1&image=64&optimizer={optimizer}")
    weights = nbytes(trace, Kind.PARAMETER)
    assert round(nbytes(trace, Kind.OPTIMIZER_STATE) / weights, 2) == copies
    assert (Phase.OPTIMIZER in {op.phase for op in trace.ops}) == (optimizer != "none")


def test_a_step_of_real_tensors_trains() -> None:
    step = parse("cnn:resnet18?batch=2&image=32&optimizer=sgd").make()
    step(0)
    with pytest.raises(UsageError, match="it cannot read images of 96 pixels"):
        parse("cnn:vgg11?batch=1&image=96").make()(0)


# -- text ----------------------------------------------------------------------------------------


def test_a_line_is_read() -> None:
    found = parse("hf:gpt2-xl?batch=4&seq=512&dtype=bf16&optimizer=adam&lora=16&checkpoint=1")
    wanted = Architecture(
        "hf", "gpt2-xl", 4, 512, dtype="bf16", optimizer="adam", lora=16, checkpoint=True
    )
    assert found == wanted
    assert parse(str(found)) == found
    assert str(parse("hf:gpt2?batch=8")) == "hf:gpt2"  # 8 is usual


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gpt2", "'gpt2' names no architecture: write hf:NAME"),
        ("hf:", "'hf:' names no architecture"),
        ("hff:gpt2", "no source and no module is called 'hff'; did you mean hf?"),
        ("hf:gpt2-xxl", "no transformer is called 'gpt2-xxl'; did you mean gpt2-xl?"),
        ("cnn:vgg-16", "no network is called 'vgg-16'; did you mean vgg16?"),
        ("zoo:brt", "no workload is called 'brt'; did you mean bert?"),
        ("hf:gpt2?bach=3", "no option is called 'bach'; did you mean batch?"),
        ("cnn:vgg16?lora=3", "no option is called 'lora'"),
        ("hf:gpt2?image=224", "no option is called 'image'"),
        ("hf:vit-base?seq=224", "no option is called 'seq'"),
        ("zoo:bert?batch=8", "no option is called 'batch'"),
        ("hf:gpt2?dtype=bf61", "dtype=bf61 must be one of fp32, bf16, fp16; did you mean bf16?"),
        ("hf:gpt2?optimizer=adanw", "did you mean adamw?"),
        ("hf:gpt2?batch=-1", "batch=-1 must be a whole number above 0"),
        ("hf:gpt2?batch=0", "batch=0 must be a whole number above 0"),
        ("hf:gpt2?batch=many", "batch=many must be a whole number above 0"),
        ("hf:gpt2?checkpoint=yes", "checkpoint=yes must be 0 or 1"),
        ("hf:gpt2?batch", "'batch' is no option; write NAME=VALUE"),
        ("hf:gpt2?batch=1&batch=2", "option batch is given twice"),
        ("hf:gpt2?seq=1025", "seq=1025 must be 1024 or less"),
        ("hf:vit-base?image=100", "image=100 must be a multiple of 16"),
    ],
)
def test_what_makes_no_sense_is_answered_in_one_line(text: str, says: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(text)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


# -- code of others ------------------------------------------------------------------------------

CODE = """
import torch
from torch import nn

def _model(width):
    return nn.Linear(width, width)

def _step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(4, model.in_features)
    def step(number):
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return step

def alone(width=8):
    return _step(_model(width))

def pair(width=8):
    model = _model(width)
    return model, _step(model)

class Loop:
    def __init__(self, width=8):
        self.step = _step(_model(width))

def nothing():
    return 3

def needy(width):
    return alone(width)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the directory where the command runs."""
    (tmp_path / "others_steps.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "others_steps", raising=False)
    return "others_steps"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("function", ["alone", "pair", "Loop", "needy"])
def test_code_of_others_is_recorded(module: str, function: str, device: str) -> None:
    trace = recorded(f"{module}:{function}?width=300", device)
    assert nbytes(trace, Kind.PARAMETER) == 4 * (300 * 300 + 300)


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        (":alonee", "module others_steps has no function 'alonee'; did you mean alone?"),
        (":alone?widht=3", "has no argument 'widht'; did you mean width?"),
        (":needy", "missing a required argument: 'width'"),
    ],
)
def test_code_that_cannot_be_called_is_refused(module: str, rest: str, says: str) -> None:
    with pytest.raises(UsageError, match=says.replace("?", r"\?")):
        parse(module + rest)


def test_a_function_that_returns_no_step_is_refused(module: str) -> None:
    with pytest.raises(UsageError, match="nothing returned int; it must return step"):
        parse(f"{module}:nothing").make()


def test_lora_leaves_the_weights_as_they_are() -> None:
    from penstock.zoo.lora import Adapted, adapt

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(3, 6)
    before = model(x)
    weights = [one.detach().clone() for one in model.parameters()]
    adapt(model, 2)
    assert torch.equal(model(x), before)  # adapters begin as nothing
    adapted = [one for one in model.modules() if isinstance(one, Adapted)]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        model(x).square().sum().backward()
        optimizer.step()
    bases = [p for one in adapted for p in one.base.parameters()]
    assert all(map(torch.equal, bases, weights))
    assert all(one.down.weight.grad.any() and one.up.weight.grad.any() for one in adapted)
    assert not torch.equal(model(x), before)
