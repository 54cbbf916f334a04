"""Networks over sequences: an LSTM tagger, a transformer with a mixture of experts."""

import torch
from torch import Tensor, nn

__all__ = ["LSTMTagger", "MixtureOfExperts"]


class LSTMTagger(nn.Module):
    """Embeds tokens, runs an LSTM over them, predicts each next token."""

    def __init__(self, tokens: int, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.body = nn.LSTM(width, width, layers, dropout=0.1, batch_first=True)
        self.head = nn.Linear(width, tokens)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(self.embed(x))[0])
        return out


class Experts(nn.Module):
    """Each token goes to its two best experts: how many an expert gets depends on the data."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.route = nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen = self.route(flat).softmax(-1).topk(2, -1)
        out = torch.zeros_like(flat)
        for index, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == index)
            if token.numel():
                out.index_add_(0, token, expert(flat[token]) * weights[token, slot, None])
        return out.view_as(x)


class MixtureOfExperts(nn.Module):
    """A transformer whose feed-forward layers are mixtures of experts."""

    def __init__(self, tokens: int, width: int, layers: int, experts: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.attend = nn.ModuleList(
            nn.MultiheadAttention(width, 4, batch_first=True) for _ in range(layers)
        )
        self.experts = nn.ModuleList(Experts(width, experts) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers))
        self.head = nn.Linear(width, tokens)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for index, (attend, experts) in enumerate(zip(self.attend, self.experts, strict=True)):
            y = self.norms[2 * index](x)
            x = x + attend(y, y, y, need_weights=False)[0]
            x = x + experts(self.norms[2 * index + 1](x))
        out: Tensor = self.head(x)
        return out
