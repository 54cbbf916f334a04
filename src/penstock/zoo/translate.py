"""Networks from a sequence to a sequence: LSTM encoder-decoders, the Transformer.

Both are called with the source and the target so far, (batch, length) each, and give the logits of
the next target token at each place, (batch, length, tokens).
"""

import math

import torch
from torch import Tensor, nn

__all__ = ["AttentiveSeq2Seq", "Seq2Seq", "Transformer"]


class Seq2Seq(nn.Module):
    """Two LSTMs, the second going on where the first ended: Sutskever, Vinyals, Le, "Sequence to
    sequence learning with neural networks", NIPS 2014, arXiv:1409.3215, section 3.4.

    The source has twice as many tokens as the target, as there: 160,000 and 80,000.
    """

    def __init__(self, tokens: int, width: int = 1000, layers: int = 4) -> None:
        super().__init__()
        self.source = nn.Embedding(2 * tokens, width)
        self.target = nn.Embedding(tokens, width)
        self.encode = nn.LSTM(width, width, layers, batch_first=True)
        self.decode = nn.LSTM(width, width, layers, batch_first=True)
        self.head = nn.Linear(width, tokens)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        # Read backwards: the first words of both sentences are then near each other.
        _, state = self.encode(self.source(source.flip(1)))
        out: Tensor = self.head(self.decode(self.target(target), state)[0])
        return out


class AttentiveSeq2Seq(nn.Module):
    """An encoder read both ways, and a decoder that looks at all of it before each word: Bahdanau, Cho,
    Bengio, "Neural machine translation by jointly learning to align and translate", ICLR 2015,
    arXiv:1409.0473, appendix A, with LSTM cells in place of gated units, and no maxout.
    """

    def __init__(self, tokens: int, width: int = 1000, embedded: int = 620) -> None:
        super().__init__()
        self.source = nn.Embedding(tokens, embedded)
        self.target = nn.Embedding(tokens, embedded)
        self.encode = nn.LSTM(embedded, width, batch_first=True, bidirectional=True)
        self.begin = nn.Linear(width, width)
        self.key = nn.Linear(2 * width, width)
        self.query = nn.Linear(width, width, bias=False)
        self.score = nn.Linear(width, 1, bias=False)
        self.decode = nn.LSTMCell(embedded + 2 * width, width)
        self.head = nn.Linear(width, tokens)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        read, (last, _) = self.encode(self.source(source))
        keys = self.key(read)
        hidden = self.begin(last[1]).tanh()
        cell = torch.zeros_like(hidden)
        said: list[Tensor] = []
        for word in self.target(target).unbind(1):
            match = (self.query(hidden)[:, None] + keys).tanh()  # (batch, length of source, width)
            context = self.score(match).softmax(1).transpose(1, 2) @ read
            hidden, cell = self.decode(torch.cat([word, context[:, 0]], 1), (hidden, cell))
            said.append(hidden)
        out: Tensor = self.head(torch.stack(said, 1))
        return out


class Transformer(nn.Module):
    """The Transformer, base size: Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser,
    Polosukhin, "Attention is all you need", NIPS 2017, arXiv:1706.03762, table 3.

    Source, target and output share their 37,000 tokens' weights.
    """

    def __init__(
        self, tokens: int, width: int = 512, layers: int = 6, heads: int = 8, dropout: float = 0.1
    ) -> None:
        super().__init__()
        sizes = (width, heads, 4 * width, dropout)
        self.embed = nn.Embedding(tokens, width)
        # It is also the output layer: as wide as usual, its first logits would be in the hundreds.
        nn.init.normal_(self.embed.weight, std=width**-0.5)
        self.drop = nn.Dropout(dropout)
        self.encode = nn.ModuleList(
            nn.TransformerEncoderLayer(*sizes, batch_first=True) for _ in range(layers)
        )
        self.decode = nn.ModuleList(
            nn.TransformerDecoderLayer(*sizes, batch_first=True) for _ in range(layers)
        )

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        x, y = self._embedded(source), self._embedded(target)
        for encode in self.encode:
            x = encode(x)
        ahead = nn.Transformer.generate_square_subsequent_mask(
            target.shape[1], device=y.device, dtype=y.dtype
        )
        for decode in self.decode:
            y = decode(y, x, tgt_mask=ahead, tgt_is_causal=True)
        return nn.functional.linear(y, self.embed.weight)

    def _embedded(self, tokens: Tensor) -> Tensor:
        width = self.embed.embedding_dim
        out: Tensor = self.drop(
            self.embed(tokens) * math.sqrt(width) + _positions(tokens.shape[1], width, tokens)
        )
        return out


def _positions(length: int, width: int, like: Tensor) -> Tensor:
    """Sines and cosines of growing wavelength, (length, width): section 3.5."""
    place = torch.arange(length, device=like.device)[:, None]
    rate = 10_000 ** (-torch.arange(0, width, 2, device=like.device) / width)
    return torch.stack([(place * rate).sin(), (place * rate).cos()], -1).flatten(1)
