"""The network of UCE and its sizes: sentences of gene and chromosome tokens in, cells out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfm._arguments import Dropout, check_fields, check_whole
from cfm.nn import TransformerEncoderLayer
from cfm.nn._kernels import WeightCache
from cfm.nn._transformers import PreparedStack

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Tokens that are neither genes nor chromosomes.
PADDING, CHROMOSOME_END, CELL = 0, 2, 3


@dataclass(frozen=True)
class UCESize:
    """Sizes of the network; the defaults are those of the published 33-layer model."""

    n_tokens: int = 145_469
    max_length: int = 1536
    token_dim: int = 5120
    dim: int = 1280
    n_heads: int = 20
    n_layers: int = 33
    ff_dim: int = 5120
    output_dim: int = 1280
    head_dim: int = 1024
    expression_dims: tuple[int, ...] = (2048, 512, 128)
    dropout: Dropout = 0.05

    def __post_init__(self) -> None:
        object.__setattr__(self, "expression_dims", tuple(self.expression_dims))
        check_fields(self)
        for i, width in enumerate(self.expression_dims):
            check_whole(f"expression_dims[{i}]", width)
        if not self.expression_dims:
            raise ValueError("expression_dims is empty; expected the widths of the hidden layers.")
        if self.dim % self.n_heads:
            raise ValueError(
                f"The model is {self.dim} wide, which {self.n_heads} heads do not divide; pass "
                "the number it was trained with as n_heads=."
            )


class UCEModule(nn.Module):
    """Transformer over the genes of a cell, each given by an embedding of its protein.

    Parameters
    ----------
    size
        Sizes of the network.

    References
    ----------
    Rosen et al., Universal Cell Embeddings, bioRxiv 2023.11.28.568918, and the released code,
    whose numbers it gives for small files with random weights. Two things that published weights
    were trained with are kept: token embeddings are scaled to length 1 before the encoder, and in
    :meth:`forward` padding adds +1 to the attention logits instead of being hidden.
    """

    positions: Tensor

    def __init__(self, size: UCESize) -> None:
        super().__init__()
        self.size = size
        dim, out = size.dim, size.output_dim
        self.token_embedding = nn.Embedding(size.n_tokens, size.token_dim)
        self.token_embedding.weight.requires_grad_(False)
        self.token_projection = _projection(size.token_dim, dim)
        self.register_buffer("positions", _waves(size.max_length, dim))
        self.layers = nn.ModuleList(
            TransformerEncoderLayer(
                dim, size.n_heads, size.ff_dim, activation="relu", dropout=size.dropout
            )
            for _ in range(size.n_layers)
        )
        self.head = _blocks([dim, size.head_dim, out, out], size.dropout)
        self.head.append(nn.Linear(out, out))
        self.gene_projection = _projection(size.token_dim, dim)
        self.expression_head = _blocks([out + dim, *size.expression_dims], size.dropout)
        self.expression_head.append(nn.Linear(size.expression_dims[-1], 1))
        self._cache = WeightCache()

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Embed sentences as the published code does, padding included.

        Parameters
        ----------
        tokens
            ``(b, n)`` int64 token numbers; the first is the cell's.
        mask
            ``(b, n)``, 1 for a token, 0 for padding, which adds +1 to its attention logits: the
            embedding depends on how far a sentence is padded. :meth:`embed` does not pad.

        Returns
        -------
        gene_output
            ``(n, b, output_dim)``, an output per token, sentences in the second place.
        cell_embedding
            ``(b, output_dim)``, of length 1.
        """
        self._check(tokens, mask)
        self._check_length(tokens.shape[1])
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        bias = 1.0 - mask.to(x.dtype)
        for layer in self.layers:
            x = layer(x, bias)
        gene_output = self.head(x)
        return gene_output.transpose(0, 1), F.normalize(gene_output[:, 0], dim=-1)

    def tokens(self, tokens: Tensor) -> Tensor:
        """Project token embeddings of length 1, ``(…)`` int64 to ``(…, dim)``."""
        embedded = F.normalize(self.token_embedding(tokens), dim=-1)
        return self.token_projection(embedded) * math.sqrt(self.size.dim)

    def predict(self, cell_embedding: Tensor, tokens: Tensor) -> Tensor:
        """Predict whether cells express genes.

        Parameters
        ----------
        cell_embedding
            ``(b, output_dim)``.
        tokens
            ``(b,)`` int64, a gene for each cell.

        Returns
        -------
        ``(b, 1)`` logits of the gene being expressed.
        """
        genes = self.gene_projection(F.normalize(self.token_embedding(tokens), dim=-1))
        return self.expression_head(torch.cat([cell_embedding, genes], dim=-1))

    @torch.no_grad()
    def embed(
        self,
        sentences: Sequence[Tensor],
        *,
        dtype: torch.dtype = torch.float32,
        stack: PreparedStack | None = None,
    ) -> Tensor:
        """Embed cells, each as if it were alone: nothing is padded.

        Parameters
        ----------
        sentences
            For each cell ``(n,)`` int64 tokens, the first of them the cell's.
        dtype
            Of the matrix products.
        stack
            What :meth:`prepared` returned, if made before.

        Returns
        -------
        ``(len(sentences), output_dim)`` float32, of length 1.
        """
        stack = self.prepared(dtype) if stack is None else stack
        # A gene that several cells share is projected once.
        every, place = torch.unique(torch.cat(list(sentences)), return_inverse=True)
        every, place = every.to(self.positions.device), place.to(self.positions.device)
        table = torch.cat([self.tokens(part) for part in every.split(4096)])
        lengths = [len(s) for s in sentences]
        self._check_length(max(lengths))
        x = table[place] + torch.cat([self.positions[:n] for n in lengths])
        return F.normalize(self.head(stack(x, lengths)).float(), dim=-1)

    def prepared(self, dtype: torch.dtype) -> PreparedStack:
        """Prepare the layers for :meth:`embed`."""
        with torch.no_grad():
            return PreparedStack(self.layers, dtype, first_only=True)

    def bfloat16_agreement(self) -> float:
        """Return how alike cell embeddings are in bfloat16 and float32, a cosine similarity.

        Tried once per weights, on two made-up sentences of up to 256 genes.
        """
        return float(self._cache.get("agreement", self.layers.parameters(), self._try_bfloat16))

    def _try_bfloat16(self) -> Tensor:
        n = 2 * min(256, self.size.max_length - 1)
        places = torch.linspace(CELL + 1, self.size.n_tokens - 1, n).long()
        cell = torch.tensor([CELL])
        sentences = [torch.cat([cell, places[i::2]]) for i in (0, 1)]
        exact = self.embed(sentences, dtype=torch.float32)
        rough = self.embed(sentences, dtype=torch.bfloat16)
        return F.cosine_similarity(exact, rough).mean()

    def _check_length(self, length: int) -> None:
        if length > self.size.max_length:
            raise ValueError(
                f"A sentence has {length} tokens; the model has positions for "
                f"{self.size.max_length}: draw fewer genes (sample_size=)."
            )

    def _check(self, tokens: Tensor, mask: Tensor) -> None:
        if tokens.ndim != 2 or mask.shape != tokens.shape:
            raise ValueError(
                f"Tokens are {tuple(tokens.shape)} and the mask {tuple(mask.shape)}; expected "
                "both as (sentences, length)."
            )
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.size.n_tokens:
            raise ValueError(
                f"Tokens go from {int(tokens.min())} to {int(tokens.max())}; the model has tokens "
                f"0 to {self.size.n_tokens - 1}."
            )


def _waves(length: int, dim: int) -> Tensor:
    """Return sines and cosines of positions in turn, ``(length, dim)``."""
    rate = torch.exp(torch.arange(0, dim, 2) * (-math.log(10_000.0) / dim))
    angle = torch.arange(length).unsqueeze(1) * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :dim]


def _projection(n_in: int, n_out: int) -> nn.Sequential:
    """Linear layer, GELU, layer norm."""
    return nn.Sequential(nn.Linear(n_in, n_out), nn.GELU(), nn.LayerNorm(n_out))


def _blocks(widths: Sequence[int], dropout: float) -> nn.Sequential:
    """Blocks of a linear layer, layer norm, GELU and dropout."""
    blocks = [
        nn.Sequential(nn.Linear(a, b), nn.LayerNorm(b), nn.GELU(), nn.Dropout(dropout))
        for a, b in pairwise(widths)
    ]
    return nn.Sequential(*cast("list[nn.Module]", blocks))
