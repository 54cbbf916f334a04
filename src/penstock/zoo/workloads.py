"""Training steps by name: a model, an optimizer, data, and what one step does with them.

Three sizes: `small` for tests (a step of some tens of megabytes), `middle` for many runs whose figures
are to mean something (some hundreds), `full` for benchmarks (some gigabytes, seconds long on two
cores).
"""

import functools
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (its name everywhere)
from torch.optim import Optimizer
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from penstock.errors import UsageError
from penstock.zoo.cnn import ResNet, UNet, vgg
from penstock.zoo.sequence import LSTMTagger, MixtureOfExperts

__all__ = ["Size", "Workload", "batches_on", "names", "workload"]

Size = Literal["small", "middle", "full"]


@dataclass
class Workload:
    """A training loop, one step at a time. `step(n)` trains on batch `n` and returns the losses."""

    models: list[nn.Module]
    step: Callable[[int], list[Tensor]]
    optimizers: list[Optimizer] = field(default_factory=list)
    kinds: int = 1  # shapes of its steps that come again and again

    def parameters(self) -> Iterator[nn.Parameter]:
        for model in self.models:
            yield from model.parameters()

    def buffers(self) -> Iterator[Tensor]:
        for model in self.models:
            yield from model.buffers()


_MAKERS: dict[str, Callable[[Size], Workload]] = {}


def names() -> tuple[str, ...]:
    return tuple(_MAKERS)


def workload(name: str, size: Size = "small", *, seed: int = 0) -> Workload:
    """Build a workload; the same seed gives the same weights. Raises `UsageError` if unknown."""
    if name not in _MAKERS:
        raise UsageError(f"no workload is called {name!r}; there are: {', '.join(_MAKERS)}")
    torch.manual_seed(seed)
    return _MAKERS[name](size)


def _named(maker: Callable[[Size], Workload]) -> Callable[[Size], Workload]:
    _MAKERS[maker.__name__.replace("_", "-")] = maker
    return maker


# -- data ---------------------------------------------------------------------------------------


@functools.cache
def _text() -> Tensor:
    """Bytes of the standard library's own sources."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    raw = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py"))[:40])
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)


_place: ContextVar[torch.device | None] = ContextVar("_place", default=None)


@contextmanager
def batches_on(device: torch.device) -> Iterator[None]:
    """While it lasts, batches are copied to `device`; else they stay on the CPU."""
    token = _place.set(None if device.type == "cpu" else device)
    try:
        yield
    finally:
        _place.reset(token)


def _outside(load: Callable[..., Any]) -> Callable[..., Any]:
    """Loading a batch is no part of the step: no dispatch mode sees it."""

    @functools.wraps(load)
    def loaded(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            batch = load(*args, **kwargs)
        place = _place.get()
        return batch if place is None else tree_map_only(Tensor, lambda one: one.to(place), batch)

    return loaded


@_outside
def tokens(step: int, batch: int, length: int) -> Tensor:
    """A batch of byte-level tokens, (batch, length), the same for the same step."""
    generator = torch.Generator().manual_seed(1000 + step)
    starts = torch.randint(0, len(_text()) - length, (batch,), generator=generator)
    return _text().unfold(0, length, 1)[starts].long()


@_outside
def images(step: int, batch: int, pixels: int, classes: int) -> tuple[Tensor, Tensor]:
    """A batch of random images, (batch, 3, pixels, pixels), and their classes."""
    generator = torch.Generator().manual_seed(1000 + step)
    pictures = torch.randn(batch, 3, pixels, pixels, generator=generator)
    return pictures, torch.randint(0, classes, (batch,), generator=generator)


@_outside
def _noise(step: int, batch: int) -> Tensor:
    return torch.randn(batch, 64, generator=torch.Generator().manual_seed(step))


def _pick(size: Size, small: Any, middle: Any, full: Any) -> Any:
    return {"small": small, "middle": middle, "full": full}[size]


def _adamw(model: nn.Module, **options: Any) -> Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-3, **options)


def _simple(
    model: nn.Module, loss: Callable[[int], Tensor], optimizer: Optimizer | None = None
) -> Workload:
    """One model, one optimizer, one forward, one backward."""
    used = optimizer or _adamw(model)

    def step(number: int) -> list[Tensor]:
        value = loss(number)
        value.backward()
        used.step()
        used.zero_grad()
        return [value.detach()]

    return Workload([model.train()], step, [used])


def _next_token(logits: Tensor, x: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten())


# -- transformers -------------------------------------------------------------------------------


def _gpt2_model(size: Size, length: int) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    layers, width = _pick(size, (4, 128), (4, 256), (8, 512))
    config = GPT2Config(
        vocab_size=256,
        n_positions=length,
        n_embd=width,
        n_layer=layers,
        n_head=width // 64,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )
    model: nn.Module = GPT2LMHeadModel(config)
    return model


@_named
def gpt2(size: Size) -> Workload:
    """GPT-2 with dropout on byte-level text."""
    batch, length = _pick(size, (8, 256), (6, 256), (8, 512))
    model = _gpt2_model(size, length)

    def loss(number: int) -> Tensor:
        x = tokens(number, batch, length)
        out: Tensor = model(input_ids=x, labels=x).loss
        return out

    return _simple(model, loss)


@_named
def bert(size: Size) -> Workload:
    from transformers import BertConfig, BertForMaskedLM

    layers, width, batch, length = _pick(size, (3, 128, 8, 256), (4, 256, 8, 256), (6, 512, 8, 384))
    config = BertConfig(
        vocab_size=256,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * width,
        max_position_embeddings=length,
    )
    model = BertForMaskedLM(config)

    def loss(number: int) -> Tensor:
        x = tokens(number, batch, length)
        out: Tensor = model(input_ids=x, labels=x).loss
        return out

    return _simple(model, loss)


@_named
def llama(size: Size) -> Workload:
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, width, batch, length = _pick(size, (4, 128, 8, 256), (4, 256, 8, 256), (6, 512, 8, 512))
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=3 * width,
        max_position_embeddings=length,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)

    def loss(number: int) -> Tensor:
        x = tokens(number, batch, length)
        out: Tensor = model(input_ids=x, labels=x).loss
        return out

    return _simple(model, loss)


@_named
def t5(size: Size) -> Workload:
    from transformers import T5Config, T5ForConditionalGeneration

    layers, width, batch, length = _pick(size, (2, 128, 8, 128), (3, 256, 8, 128), (4, 512, 8, 256))
    config = T5Config(
        vocab_size=256,
        d_model=width,
        d_kv=width // 4,
        d_ff=4 * width,
        num_layers=layers,
        num_heads=4,
        decoder_start_token_id=0,
        use_cache=False,
    )
    model = T5ForConditionalGeneration(config)

    def loss(number: int) -> Tensor:
        x = tokens(number, batch, length)
        out: Tensor = model(input_ids=x, labels=x.flip(1)).loss
        return out

    return _simple(model, loss)


@_named
def vit(size: Size) -> Workload:
    from transformers import ViTConfig, ViTForImageClassification

    layers, width, batch, pixels = _pick(
        size, (4, 128, 16, 64), (6, 192, 16, 96), (6, 384, 16, 128)
    )
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * width,
        image_size=pixels,
        patch_size=8,
        num_labels=10,
    )
    model = ViTForImageClassification(config)

    def loss(number: int) -> Tensor:
        x, y = images(number, batch, pixels, 10)
        out: Tensor = model(pixel_values=x, labels=y).loss
        return out

    return _simple(model, loss)


@_named
def checkpointed(size: Size) -> Workload:
    """GPT-2 with activation checkpointing already switched on by the user."""
    batch, length = _pick(size, (8, 256), (6, 256), (8, 512))
    model = _gpt2_model(size, length)
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)()  # type: ignore[operator]

    def loss(number: int) -> Tensor:
        x = tokens(number, batch, length)
        out: Tensor = model(input_ids=x, labels=x).loss
        return out

    return _simple(model, loss)


@_named
def varying(size: Size) -> Workload:
    """GPT-2 on sequences whose length changes from step to step."""
    batch, longest = _pick(size, (8, 256), (6, 256), (8, 512))
    model = _gpt2_model(size, longest)

    def loss(number: int) -> Tensor:
        x = tokens(number, batch, longest if number % 3 else longest * 3 // 4)
        out: Tensor = model(input_ids=x, labels=x).loss
        return out

    return replace(_simple(model, loss), kinds=2)


@_named
def autocast(size: Size) -> Workload:
    """GPT-2 under bf16 autocast."""
    batch, length = _pick(size, (8, 256), (6, 256), (8, 512))
    model = _gpt2_model(size, length)

    def loss(number: int) -> Tensor:
        x = tokens(number, batch, length)
        with torch.autocast("cpu", torch.bfloat16):
            out: Tensor = model(input_ids=x, labels=x).loss
        return out

    return _simple(model, loss)


@_named
def accumulated(size: Size) -> Workload:
    """GPT-2 with gradients accumulated over four forwards and backwards."""
    batch, length = _pick(size, (8, 192), (6, 192), (4, 512))
    model = _gpt2_model(size, length)
    optimizer = _adamw(model)

    def step(number: int) -> list[Tensor]:
        losses = []
        for part in range(4):
            x = tokens(4 * number + part, batch, length)
            loss = model(input_ids=x, labels=x).loss / 4
            loss.backward()
            losses.append(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
        return losses

    return Workload([model.train()], step, [optimizer])


@_named
def frozen(size: Size) -> Workload:
    """GPT-2 of which only the last block and the norms are trained."""
    batch, length = _pick(size, (8, 256), (6, 256), (8, 512))
    model = _gpt2_model(size, length)
    last = _pick(size, ".h.3.", ".h.3.", ".h.7.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(last in name or "ln_" in name)

    def loss(number: int) -> Tensor:
        x = tokens(number, batch, length)
        out: Tensor = model(input_ids=x, labels=x).loss
        return out

    return _simple(model, loss)


# -- others -------------------------------------------------------------------------------------


def _classified(model: nn.Module, batch: int, pixels: int, **optimizer: Any) -> Workload:
    def loss(number: int) -> Tensor:
        x, y = images(number, batch, pixels, 10)
        return F.cross_entropy(model(x), y)

    return _simple(model, loss, _adamw(model, **optimizer))


@_named
def resnet(size: Size) -> Workload:
    """ResNet: batch norm, whose running statistics change in place."""
    depths, width, batch, pixels = _pick(
        size, ((1, 2, 1), 32, 16, 96), ((2, 2, 2), 32, 16, 160), ((3, 4, 6, 3), 64, 16, 160)
    )
    return _classified(ResNet(depths, width, 10), batch, pixels)


@_named
def vgg_inplace(size: Size) -> Workload:
    """VGG: in-place ReLU and dropout."""
    widths, hidden, batch, pixels = _pick(
        size,
        (((32, 32), (64, 64), (64, 64)), 256, 16, 64),
        (((32, 32), (64, 64), (64, 64)), 256, 16, 112),
        (((64, 64), (128, 128), (256, 256, 256), (512, 512, 512)), 1024, 16, 96),
    )
    return _classified(vgg(widths, 10, hidden, pixels), batch, pixels)


@_named
def unet(size: Size) -> Workload:
    """U-Net: every level of the encoder is read again by the decoder."""
    width, levels, batch, pixels = _pick(size, (16, 3, 4, 96), (24, 3, 4, 160), (32, 4, 4, 192))
    model = UNet(width, levels, 3)

    def loss(number: int) -> Tensor:
        x, _ = images(number, batch, pixels, 10)
        return F.mse_loss(model(x), x)

    return _simple(model, loss)


@_named
def lstm(size: Size) -> Workload:
    width, layers, batch, length = _pick(
        size, (192, 2, 32, 128), (256, 2, 32, 192), (512, 3, 32, 256)
    )
    model = LSTMTagger(256, width, layers)

    def loss(number: int) -> Tensor:
        x = tokens(number, batch, length)
        return _next_token(model(x), x)

    return _simple(model, loss)


@_named
def moe(size: Size) -> Workload:
    """A mixture of experts: shapes, and even which ops run, depend on the data."""
    width, layers, experts, batch, length = _pick(
        size, (128, 2, 4, 8, 256), (256, 2, 4, 8, 256), (384, 4, 8, 8, 384)
    )
    model = MixtureOfExperts(256, width, layers, experts)

    def loss(number: int) -> Tensor:
        x = tokens(number, batch, length)
        return _next_token(model(x), x)

    return _simple(model, loss)


@_named
def gan(size: Size) -> Workload:
    """A generator and a discriminator, each with its optimizer, in turn."""
    width, batch = _pick(size, (512, 2048), (768, 4096), (2048, 4096))

    def net(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Linear(inputs, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, outputs),
        )

    make, judge = net(64, 256), net(256, 1)
    make_optimizer, judge_optimizer = _adamw(make), _adamw(judge)

    def step(number: int) -> list[Tensor]:
        noise = _noise(number, batch)
        real = tokens(number, batch, 256).float() / 255
        fake = make(noise)
        judged = F.softplus(-judge(real)).mean() + F.softplus(judge(fake.detach())).mean()
        judged.backward()
        judge_optimizer.step()
        judge_optimizer.zero_grad()
        made = F.softplus(-judge(fake)).mean()
        made.backward()
        make_optimizer.step()
        make_optimizer.zero_grad()
        judge_optimizer.zero_grad()
        return [judged.detach(), made.detach()]

    return Workload([make.train(), judge.train()], step, [judge_optimizer, make_optimizer])


@_named
def retained(size: Size) -> Workload:
    """Two backwards through one graph, and a gradient of a gradient."""
    width, hidden, batch = _pick(size, (512, 1, 2048), (768, 1, 4096), (1024, 16, 1024))
    between = [each for _ in range(hidden) for each in (nn.Linear(width, width), nn.Tanh())]
    model = nn.Sequential(nn.Linear(128, width), nn.Tanh(), *between, nn.Linear(width, 1))
    optimizer = _adamw(model)

    def step(number: int) -> list[Tensor]:
        x = (tokens(number, batch, 128).float() / 255).requires_grad_()
        out = model(x)
        # Both bounded from below: what grew without end would saturate the tanh, and denormals are slow.
        first, second = out.square().mean(), out.mean()
        first.backward(retain_graph=True)
        (slope,) = torch.autograd.grad(second, x, create_graph=True)
        penalty = slope.square().sum()
        penalty.backward()
        optimizer.step()
        optimizer.zero_grad()
        return [first.detach(), second.detach(), penalty.detach()]

    return Workload([model.train()], step, [optimizer])


def _optimized(name: str, **options: Any) -> Callable[[Size], Workload]:
    def maker(size: Size) -> Workload:
        width, batch = _pick(size, (512, 4096), (1024, 6144), (2048, 8192))
        model = nn.Sequential(
            nn.Linear(256, width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, 10),
        )

        def loss(number: int) -> Tensor:
            x = tokens(number, batch, 256)
            return F.cross_entropy(model(x.float() / 255), x[:, 0] % 10)

        return _simple(model, loss, _adamw(model, **options))

    maker.__name__ = name
    return maker


_named(_optimized("adamw_fused", fused=True))
_named(_optimized("adamw_foreach", foreach=True))
_named(_optimized("adamw_loop", foreach=False, fused=False))
