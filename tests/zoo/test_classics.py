"""The networks of the literature: their published sizes, what they say, a whole step of each."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from penstock.errors import UsageError
from penstock.ir.trace import Kind, Phase
from penstock.record.fake import record_fake
from penstock.zoo import classics, dense, residual, translate

TORCHVISION = {
    "alexnet": 61_100_840,
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "googlenet": 6_624_904,
    "googlenet_aux": 13_004_888,
    "inception_v3": 23_834_568,
    "inception_v3_aux": 27_161_264,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "mobilenet_v2": 3_504_872,
}
CAFFE = {"alexnet_2012": 60_965_224, "googlenet_2014": 6_998_552}
TIMM = {"senet154": 115_088_984, "inception_v4": 42_679_816}


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def built(name: str, classes: int | None = None) -> nn.Module:
    """The network without memory."""
    with torch.device("meta"):
        return classics.build(name, classes)


@pytest.mark.parametrize(("name", "parameters"), (TORCHVISION | CAFFE | TIMM).items())
def test_it_has_as_many_parameters_as_others_count(name: str, parameters: int) -> None:
    assert size(built(name)) == parameters


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("overfeat", 145),  # table 4 of the paper
        ("overfeat_accurate", 144),  # the same
        ("seq2seq", 384),  # section 3.4 of the paper
    ],
)
def test_it_has_as_many_million_parameters_as_its_paper_says(name: str, millions: int) -> None:
    assert size(built(name)) // 1_000_000 == millions


def test_preresnet_164_has_the_1_7_million_parameters_of_its_paper() -> None:
    assert round(size(built("preresnet164")) / 1e6, 1) == 1.7


def test_the_lstms_have_64_million_recurrent_parameters_as_their_paper_says() -> None:
    model = built("seq2seq")
    assert isinstance(model, translate.Seq2Seq)
    assert (size(model.encode) + size(model.decode)) // 1_000_000 == 64


@pytest.mark.parametrize("name", ["seq2seq", "seq2seq_attention"])
def test_a_word_depends_on_the_whole_source_and_the_words_before_it(name: str) -> None:
    networks = {"seq2seq": translate.Seq2Seq, "seq2seq_attention": translate.AttentiveSeq2Seq}
    model = networks[name](20, 8)
    source, target = torch.randint(0, 20, (2, 3, 5)).unbind()
    there = model(source, target)

    def changed(what: Tensor) -> list[bool]:
        """Which words are others if one token of `what`, the fourth, is another?"""
        what[:, 3] = (what[:, 3] + 1) % 20
        return (model(source, target) != there).any(2).any(0).tolist()

    assert changed(target) == [False, False, False, True, True]
    there = model(source, target)
    assert all(changed(source))


def test_unet_differs_from_its_paper_in_the_input_channels_alone() -> None:
    one_channel = 31_030_658  # of figure 1, counted with biases
    assert size(built("unet")) == one_channel + 2 * 3 * 3 * 64


@pytest.mark.parametrize("depth", [18, 50, 137, 152, 1001])
def test_a_resnet_has_as_many_layers_as_its_name_says(depth: int) -> None:
    model = built(f"resnet{depth}")
    convolutions = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and "shortcut" not in name
    ]
    assert len(convolutions) + 1 == depth  # and the linear layer


@pytest.mark.parametrize("depth", [16, 21, 116])
def test_a_vgg_has_as_many_layers_as_its_name_says(depth: int) -> None:
    layers = [m for m in built(f"vgg{depth}").modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth


def test_a_preresnet_has_as_many_layers_as_its_name_says() -> None:
    convolutions = [
        name
        for name, module in built("preresnet29").named_modules()
        if isinstance(module, nn.Conv2d) and "project" not in name
    ]
    assert len(convolutions) + 1 == 29


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("vgg6", "no vgg has 6 layers; depths are 11, 13, 16, 19, 21, 26 and so on; the nearest is 11"),
        ("vgg17", "the nearest is 16"),
        ("resnet1000", "the nearest is 1001"),
        ("resnet51", "the nearest is 50"),
        ("wide_resnet18_2", "the nearest is 50"),
        ("preresnet1", "the nearest is 11"),
        ("resent50", "did you mean resnet50?"),
        ("VGG16", "did you mean vgg16?"),
        ("inception-v3", "did you mean inception_v3?"),
    ],
)  # fmt: skip
def test_a_wrong_name_is_answered_with_the_nearest_one(name: str, hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        classics.build(name)
    assert hint in str(raised.value)


def test_the_nearest_depth_of_every_wrong_one_exists() -> None:
    for depth in range(250):
        try:
            classics.image_size(f"resnet{depth}")
        except UsageError as error:
            classics.image_size(f"resnet{str(error).rpartition(' ')[2]}")


def test_no_classes_and_images_of_sequences_are_refused() -> None:
    with pytest.raises(UsageError, match="vgg16: 0 classes"):
        classics.build("vgg16", 0)
    with pytest.raises(UsageError, match="transformer reads sequences"):
        classics.image_size("transformer")


@pytest.mark.parametrize("pixels", [188, 189, 190, 256, 572])
def test_the_labels_of_unet_are_as_large_as_its_output(pixels: int) -> None:
    with torch.device("meta"):
        (images,), target = classics.batch("unet", 1, pixels=pixels)
        assert classics.build("unet")(images).shape[2:] == target.shape[1:]


def test_an_image_of_which_unet_leaves_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="unet: nothing is left of images of 139 pixels"):
        classics.batch("unet", 1, pixels=139)


def test_a_network_reads_other_images_than_its_papers() -> None:
    with torch.device("meta"):
        (images,), target = classics.batch("resnet18", 2, pixels=64)
        assert images.shape == (2, 3, 64, 64)
        assert classics.loss(classics.build("resnet18")(images), target).shape == ()


# -- a whole step -------------------------------------------------------------------------------

OUTPUTS = {
    "unet": (2, 10, 388, 388),
    **dict.fromkeys(("seq2seq", "seq2seq_attention", "transformer"), (2, 64, 10)),
}
HEADS = {"googlenet_2014_aux": 3, "inception_v3_aux": 2}

WHOLE = {
    name: partial(classics.build, name)
    for name in (
        *("alexnet", "alexnet_2012", "overfeat", "overfeat_accurate", "vgg16"),
        *("googlenet_2014", "googlenet_2014_aux", "inception_v3_aux", "inception_v4"),
        *("resnet18", "preresnet11", "mobilenet_v2", "unet"),
        *("seq2seq", "seq2seq_attention", "transformer"),
    )
}
SHALLOW = {  # fewer of the same blocks
    "resnet50": partial(residual.resnet, residual.Bottleneck, (1, 1, 1, 1)),
    "wide_resnet50_2": partial(
        residual.resnet, partial(residual.Bottleneck, widen=2), (1, 1, 1, 1)
    ),
    "senet154": partial(residual.senet, (1, 1, 1, 1)),
    "densenet121": partial(dense.densenet, (2, 2, 2, 2), 32),
}


@pytest.mark.parametrize(("name", "make"), (WHOLE | SHALLOW).items())
def test_a_whole_step_is_recorded(name: str, make: Callable[[int], nn.Module]) -> None:
    models: list[nn.Module] = []
    shapes: list[list[tuple[int, ...]]] = []

    def begin() -> Callable[[int], None]:
        model = make(10).train()
        models.append(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def step(_number: int) -> None:
            inputs, target = classics.batch(name, 2, classes=10)
            output: Tensor | tuple[Tensor, ...] = model(*inputs)
            shapes.append(
                [tuple(one.shape) for one in (output if isinstance(output, tuple) else (output,))]
            )
            classics.loss(output, target).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    trace = record_fake(begin, label=name)

    assert shapes[0] == HEADS.get(name, 1) * [OUTPUTS.get(name, (2, 10))]
    assert {op.phase for op in trace.ops} == set(Phase)
    held = dict.fromkeys(Kind, 0)
    for value in trace.initial:
        held[trace.values[value].kind] += trace.values[value].nbytes
    assert held[Kind.PARAMETER] == 4 * size(models[0])
    assert held[Kind.OPTIMIZER_STATE] == 4 * size(models[0])  # one momentum for each


def test_it_learns_a_batch_by_heart() -> None:
    torch.manual_seed(0)
    model = classics.build("preresnet11").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    inputs, target = classics.batch("preresnet11", 4)
    losses: list[float] = []
    for _ in range(6):
        loss = classics.loss(model(*inputs), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
