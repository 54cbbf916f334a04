"""LoRA: the weights stay, and each linear layer learns a correction of low rank.

From: Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen, "LoRA: Low-Rank Adaptation of Large Language
Models", ICLR 2022, arXiv:2106.09685. Adapted is every linear layer of the repeated blocks, attention
and MLP; embeddings and heads are not. Adapters have the dtype of their layer.
"""

import torch
from torch import Tensor, nn

__all__ = ["Adapted", "adapt"]


class Adapted(nn.Module):
    """A frozen linear layer, and its correction: `base(x) + scale * up(down(x))`."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        like: Tensor = base.weight  # type: ignore[assignment]
        self.base = base
        self.down = nn.Linear(inputs, rank, bias=False, dtype=like.dtype, device=like.device)
        self.up = nn.Linear(rank, outputs, bias=False, dtype=like.dtype, device=like.device)
        self.scale = 2.0  # alpha over rank; the paper's alpha is tuned, its ratio is usual
        nn.init.zeros_(self.up.weight)  # so that training starts from the model as it is

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.scale * self.up(self.down(x))
        return out


def adapt(model: nn.Module, rank: int) -> None:
    """Freeze `model`, and give the linear layers of its repeated blocks adapters of this rank."""
    model.requires_grad_(requires_grad=False)
    for path, module in list(model.named_modules()):
        if not any(part.isdecimal() for part in path.split(".")):
            continue  # not of a repeated block
        if (widths := _widths(module)) is not None:
            owner, _, name = path.rpartition(".")
            setattr(model.get_submodule(owner), name, Adapted(module, *widths, rank))


def _widths(module: nn.Module) -> tuple[int, int] | None:
    """Inputs and outputs of a linear layer; None for anything else."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight = getattr(module, "weight", None)
    # GPT-2's linear layer, which keeps its weight transposed.
    if type(module).__name__ == "Conv1D" and isinstance(weight, torch.Tensor):
        return weight.shape[0], weight.shape[1]
    return None
