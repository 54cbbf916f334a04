"""The command line as tests meet it: a small script, and what came of a command."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

__all__ = ["SCRIPT", "Ended", "Penstock"]

SCRIPT = """
import sys
from pathlib import Path
import torch
from torch import nn

out, steps = Path(sys.argv[1]), int(sys.argv[2])
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(256, 1024), nn.Tanh(), nn.Linear(1024, 1024), nn.Tanh())
optimizer = torch.optim.AdamW(model.parameters())
losses = []
for step in range(steps):
    loss = model(torch.randn(2048, 256)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item().hex())
out.write_text(" ".join(losses))
"""


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Penstock: TypeAlias = Callable[..., Ended]
