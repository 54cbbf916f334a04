"""Training steps from one line of text: a published model, and how it is trained.

    hf:llama-3-8b?batch=4&seq=2048&dtype=bf16&lora=16     a transformer (`zoo.published`)
    cnn:vgg16?batch=256&optimizer=momentum                a network of the literature (`zoo.classics`)
    zoo:bert?size=full                                    a workload of ours (`zoo.workloads`)
    package.module:function?width=64                      your code; options become its arguments

`function` returns `step(n)`, or `(model, step)`, or an object that has a `step`.

Inputs are random, and made once. Everything is built on the default device, in the mode that is active.
"""

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from penstock.errors import UsageError, nearest
from penstock.zoo import classics, workloads
from penstock.zoo.lora import adapt
from penstock.zoo.published import PUBLISHED, Published

__all__ = ["Architecture", "Step", "parse"]

Step = Callable[[int], Any]
"""Trains on batch `n`."""

Source = Literal["hf", "cnn", "zoo", "code"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model, and how it is trained. Zero and "none" mean: as usual, or not at all."""

    source: Source
    name: str
    batch: int = 8
    seq: int = 0
    """Tokens of a sequence."""
    image: int = 0
    """Pixels along each side."""
    dtype: str = "fp32"
    """Of the weights, hence of gradients and optimizer state."""
    autocast: str = "none"
    """What the forward pass computes in, while the weights stay as they are."""
    optimizer: str = "adamw"
    lora: int = 0
    """Rank of the adapters; only they are trained."""
    checkpoint: bool = False
    """Is each block computed again in backward?"""
    accumulate: int = 1
    """Forward and backward passes, each of one batch, before the optimizer's step."""
    layers: int = 0
    size: str = "small"
    arguments: tuple[tuple[str, Any], ...] = ()
    """What your function is called with."""

    def __str__(self) -> str:
        """The line that `parse` reads as this."""
        plain = Architecture(self.source, self.name)
        told = {name: getattr(self, name) for name in _OPTIONS[self.source]}
        options = {name: value for name, value in told.items() if value != getattr(plain, name)}
        listed = "&".join(
            f"{name}={int(value) if isinstance(value, bool) else value}"
            for name, value in (*options.items(), *self.arguments)
        )
        head = self.name if self.source == "code" else f"{self.source}:{self.name}"
        return f"{head}?{listed}" if listed else head

    def model(self) -> nn.Module:
        """Its model in the dtype asked for, with adapters if asked for. Only for hf and cnn."""
        with _default_dtype(_DTYPES[self.dtype]):
            if self.source == "cnn":
                return classics.build(self.name).train()
            built = _transformer(self)
            if self.lora:
                adapt(built, self.lora)
            return built.train()

    def make(self) -> Step:
        """The training step, on the default device."""
        match self.source:
            case "hf" | "cnn":
                return _training(self)
            case "zoo":
                return _workload(self)
            case "code":
                return _step_of(self, _function(self.name)(**dict(self.arguments)))


def parse(text: str) -> Architecture:
    """The architecture that a line names. Raises `UsageError` that says what is wrong in it."""
    head, _, options = text.partition("?")
    source, colon, name = head.partition(":")
    pairs = [_pair(text, option) for option in filter(None, options.split("&"))]
    doubled = {key for index, (key, _) in enumerate(pairs) if key in dict(pairs[:index])}
    if doubled:
        raise UsageError(f"{text}: option {min(doubled)} is given twice")
    if not colon or not source or not name:
        raise UsageError(
            f"{text!r} names no architecture: write hf:NAME, cnn:NAME, zoo:NAME or "
            "package.module:function, with options after ?, as in hf:gpt2?batch=4&seq=512"
        )
    match source:
        case "hf":
            return _transformer_of(name, dict(pairs))
        case "cnn":
            classics.reads_images(name)  # raises, if there is none of that name
            return _with_options(Architecture("cnn", name), dict(pairs))
        case "zoo":
            _known("workload", name, workloads.names())
            return _with_options(Architecture("zoo", name), dict(pairs))
        case _:
            return _code_of(head, dict(pairs))


# -- text -----------------------------------------------------------------------------------------


def _pair(text: str, option: str) -> tuple[str, str]:
    key, equals, value = (part.strip() for part in option.partition("="))
    if not equals or not key or not value:
        raise UsageError(f"{text}: {option!r} is no option; write NAME=VALUE")
    return key, value


def _known(what: str, name: str, names: Mapping[str, Any] | tuple[str, ...]) -> None:
    if name not in names:
        hint = nearest(name.lower(), names)
        raise UsageError(f"no {what} is called {name!r}{hint}; there are: {', '.join(names)}")


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ValueError("a whole number above 0")
    return int(text)


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("0 or 1")
    return text == "1"


def _one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)}{nearest(text.lower(), choices)}")
        return text

    return read


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], Optimizer] | None] = {
    "adamw": lambda trained: torch.optim.AdamW(trained, lr=1e-4),
    "adam": lambda trained: torch.optim.Adam(trained, lr=1e-4),
    "momentum": lambda trained: torch.optim.SGD(trained, lr=1e-2, momentum=0.9),
    "sgd": lambda trained: torch.optim.SGD(trained, lr=1e-2),
    "none": None,
}
_TRAINING: dict[str, Callable[[str], Any]] = {
    "batch": _count,
    "dtype": _one_of(*_DTYPES),
    "autocast": _one_of("none", "bf16", "fp16"),
    "optimizer": _one_of(*_OPTIMIZERS),
    "accumulate": _count,
}
_SEQUENCES: dict[str, Callable[[str], Any]] = {"seq": _count}
_IMAGES: dict[str, Callable[[str], Any]] = {"image": _count}
_BLOCKS: dict[str, Callable[[str], Any]] = {"lora": _count, "checkpoint": _flag, "layers": _count}
_OPTIONS: dict[Source, dict[str, Callable[[str], Any]]] = {
    "hf": _TRAINING | _SEQUENCES | _IMAGES | _BLOCKS,
    "cnn": _TRAINING | _SEQUENCES | _IMAGES,
    "zoo": {"size": _one_of(*get_args(workloads.Size))},
    "code": {},
}


def _with_options(plain: Architecture, given: Mapping[str, str]) -> Architecture:
    """`plain` with options as they were written."""
    readers = dict(_OPTIONS[plain.source])
    for name in (_SEQUENCES if _reads_images(plain) else _IMAGES) if plain.source != "zoo" else ():
        del readers[name]
    found: dict[str, Any] = {}
    for key, value in given.items():
        if key not in readers:
            raise UsageError(
                f"{plain}: no option is called {key!r}{nearest(key.lower(), readers)}; "
                f"it takes {', '.join(readers)}"
            )
        try:
            found[key] = readers[key](value)
        except ValueError as wanted:
            raise UsageError(f"{plain}: {key}={value} must be {wanted}") from None
    return replace(plain, **found)


def _reads_images(which: Architecture) -> bool:
    if which.source == "cnn":
        return classics.reads_images(which.name)
    return PUBLISHED[which.name].family.task == "image"


# -- models ---------------------------------------------------------------------------------------


def _transformer_of(name: str, given: Mapping[str, str]) -> Architecture:
    _known("transformer", name, tuple(PUBLISHED))
    found = _with_options(Architecture("hf", name), given)
    longest = PUBLISHED[name].family.longest
    if longest is not None and found.seq > longest:
        raise UsageError(f"hf:{name}: seq={found.seq} must be {longest} or less: it has no more")
    patch = PUBLISHED[name].values.get("patch_size", 1)
    if found.image % patch:
        raise UsageError(f"hf:{name}: image={found.image} must be a multiple of {patch}, its patch")
    return found


def _transformer(which: Architecture) -> nn.Module:
    try:
        import transformers
    except ImportError:
        raise UsageError(
            f"hf:{which.name} needs the package transformers: pip install 'penstock[demo]'"
        ) from None
    published = PUBLISHED[which.name]
    family = published.family
    config = getattr(transformers, family.config)(**_configuration(which, published))
    model: nn.Module = getattr(transformers, family.model)(config)
    if family.task == "next token":
        model.loss_type = "ForCausalLM"  # type: ignore[assignment]  # else GPT-2 warns of its default
    if which.checkpoint:
        # Renamed in transformers 5.
        enable: Any = getattr(model, "activation_checkpointing_enable", None)
        enable = enable or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model


def _configuration(which: Architecture, published: Published) -> dict[str, Any]:
    family = published.family
    values = {**family.fixed, **published.values}
    if family.task == "translation":
        values["decoder_start_token_id"] = 0
    if family.task != "image":
        values["use_cache"] = False
    if which.layers:
        values[family.depth] = which.layers
    if which.image:
        values["image_size"] = which.image
    return values


def _inputs(which: Architecture, model: nn.Module) -> dict[str, Tensor]:
    """What a transformer is called with: random, and as many as were asked for."""
    family = PUBLISHED[which.name].family
    config: Any = model.config
    if family.task == "image":
        pictures = torch.randn(which.batch, 3, config.image_size, config.image_size)
        classes = torch.randint(0, config.num_labels, (which.batch,))
        return {"pixel_values": pictures, "labels": classes}
    shape = (which.batch, which.seq or family.usual)
    # Published tables put special tokens, such as padding, first.
    tokens, labels = (torch.randint(4, config.vocab_size, shape) for _ in range(2))
    return {"input_ids": tokens, "labels": tokens if family.task == "next token" else labels}


# -- training -------------------------------------------------------------------------------------


def _training(which: Architecture) -> Step:
    model = which.model()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with _default_dtype(_DTYPES[which.dtype]):
        loss = _loss(which, model)
    maker = _OPTIMIZERS[which.optimizer]
    optimizer = None if maker is None else maker(trained)
    device = trained[0].device.type

    def step(_number: int) -> None:
        for _ in range(which.accumulate):
            lower = _DTYPES.get(which.autocast)
            with nullcontext() if lower is None else torch.autocast(device, lower):
                value = loss()
            (value / which.accumulate if which.accumulate > 1 else value).backward()
        if optimizer is not None:
            optimizer.step()
        for parameter in trained:
            parameter.grad = None

    return step


def _loss(which: Architecture, model: nn.Module) -> Callable[[], Tensor]:
    if which.source == "hf":
        inputs = _inputs(which, model)
        return lambda: model(**inputs).loss
    given, target = classics.batch(
        which.name, which.batch, pixels=which.image or None, length=which.seq or 64
    )

    def loss() -> Tensor:
        try:
            return classics.loss(model(*given), target)
        except (RuntimeError, ValueError) as error:
            if not which.image:
                raise
            raise UsageError(
                f"{which}: it cannot read images of {which.image} pixels ({error}); "
                f"it was made for {classics.image_size(which.name)}"
            ) from None

    return loss


def _workload(which: Architecture) -> Step:
    size = cast("workloads.Size", which.size)
    work = workloads.workload(which.name, size)
    device = next(work.parameters()).device

    def step(number: int) -> list[Tensor]:
        with workloads.batches_on(device):
            return work.step(number)

    return step


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# -- code of others -------------------------------------------------------------------------------


def _code_of(head: str, given: Mapping[str, str]) -> Architecture:
    function = _function(head)
    arguments = {key: _literal(value) for key, value in given.items()}
    signature = inspect.signature(function)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for key in arguments:
        if key not in signature.parameters and not takes_any:
            raise UsageError(
                f"{head} has no argument {key!r}{nearest(key, signature.parameters)}; "
                f"it takes {', '.join(signature.parameters) or 'none'}"
            )
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise UsageError(f"{head}: {error}; write it after ?, as in {head}?NAME=VALUE") from None
    return Architecture("code", head, arguments=tuple(arguments.items()))


def _literal(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _function(head: str) -> Callable[..., Any]:
    """What `package.module:function` names; modules beside the caller are found too."""
    module, _, name = head.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None:
        hint = nearest(module.lower(), ("hf", "cnn", "zoo"))
        raise UsageError(
            f"{head}: no source and no module is called {module!r}{hint}; "
            "write hf:NAME, cnn:NAME, zoo:NAME or package.module:function"
        )
    owner = importlib.import_module(module)
    function = getattr(owner, name, None)
    if not callable(function):
        names = [one for one in vars(owner) if callable(getattr(owner, one))]
        raise UsageError(f"module {module} has no function {name!r}{nearest(name, names)}")
    return function  # type: ignore[no-any-return]


def _step_of(which: Architecture, made: Any) -> Step:
    """The step in what a function returned."""
    match made:
        case (nn.Module(), step) if callable(step):
            return step  # type: ignore[no-any-return]
        case _ if callable(getattr(made, "step", None)) and not isinstance(made, Optimizer):
            return made.step  # type: ignore[no-any-return]
        case _ if callable(made) and not isinstance(made, nn.Module):
            return made  # type: ignore[no-any-return]
    raise UsageError(
        f"{which.name} returned {type(made).__name__}; it must return step(n), or (model, step), "
        "or an object that has a step"
    )
