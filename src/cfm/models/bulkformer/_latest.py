"""The network of bulkformer-latest, the third version (v3) of BulkFormer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfm._arguments import Dropout, check_fields
from cfm.models.bulkformer._module import (
    MISSING,
    V2_SIZES,
    BulkFormerModule,
    BulkFormerSize,
    GraphPerformerBlock,
)
from cfm.nn import PerformerLayer, RotaryExpressionEmbedding
from cfm.nn._genes import neighbours
from cfm.nn._kernels import prepare, prepare_linear
from cfm.nn._performer import chunks

#: Share of visible genes at which the code of expression keeps its size, smallest share that is
#: corrected for, and largest correction.
_REFERENCE_SHARE, _SMALLEST_SHARE, _LARGEST_SCALE = 0.9, 0.05, 2.0


@dataclass(frozen=True)
class BulkFormerLatestSize:
    """Sizes of the network of v3; see :class:`BulkFormerLatestModule`."""

    dim: int = 768
    n_layers: int = 12
    n_heads: int = 12
    ff_mult: int = 4
    n_features: int = 256
    graph_dim: int = 192
    attention_dropout: Dropout = 0.05
    ff_dropout: Dropout = 0.1

    def __post_init__(self) -> None:
        check_fields(self)

    def module_arguments(self) -> dict[str, Any]:
        """Return the constructor arguments of the module."""
        return asdict(self)

    def module(self, n_genes: int, n_gene_features: int = 0) -> BulkFormerLatestModule:
        """Return a network of this size, which takes no gene features."""
        if n_gene_features:
            raise ValueError(
                "gene_features= goes with the sizes of v2; size='latest' learns an embedding per "
                "gene. Choose another size, or leave gene_features= out."
            )
        return BulkFormerLatestModule(n_genes, **self.module_arguments())


class BottleneckGraphConvolution(nn.Module):
    """Graph convolution in a narrow space; each channel of its output has a learned factor.

    Parameters
    ----------
    dim, graph_dim
        Width of the tokens, and of the convolution.
    dropout
        Of the output.
    """

    def __init__(self, dim: int, graph_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.down = nn.Linear(dim, graph_dim, bias=False)
        self.linear = nn.Linear(graph_dim, graph_dim, bias=False)
        self.up = nn.Linear(graph_dim, dim, bias=False)
        self.scale = nn.Parameter(torch.full((dim,), 0.01))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """Map ``(b, n, dim)`` tokens to what is added to them."""
        around = neighbours(self.down(self.norm(x)), adjacency)
        return self.scale * self.dropout(self.up(F.gelu(self.linear(around))))


class GatedGraphPerformerBlock(GraphPerformerBlock):
    """Bottleneck graph convolution, a norm, then Performer layers.

    Parameters
    ----------
    dim, n_layers, n_heads, ff_mult, n_features, graph_dim, attention_dropout, ff_dropout
        As of :class:`BulkFormerLatestModule`.
    """

    def __init__(
        self,
        dim: int,
        n_layers: int,
        n_heads: int,
        *,
        ff_mult: int,
        n_features: int,
        graph_dim: int,
        attention_dropout: float,
        ff_dropout: float,
    ) -> None:
        nn.Module.__init__(self)  # other layers than its parent's
        self.bottleneck = BottleneckGraphConvolution(dim, graph_dim, ff_dropout)
        self.norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(
            PerformerLayer(
                dim,
                n_heads,
                n_features,
                ff_mult=ff_mult,
                attention_dropout=attention_dropout,
                ff_dropout=ff_dropout,
            )
            for _ in range(n_layers)
        )

    def convolve(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """Apply graph convolution and norm, ``(b, n, dim)``, with gradients."""
        return self.norm(x + self.bottleneck(x, adjacency))

    def convolve_in_place(
        self, x: Tensor, adjacency: Tensor, size: int, dtype: torch.dtype
    ) -> None:
        """Apply :meth:`convolve` to ``x`` in place, ``size`` genes at a time."""
        graph = self.bottleneck
        parts = list(chunks(x.shape[1], size))
        down, linear, up = (
            prepare_linear(part.weight, None, dtype)
            for part in (graph.down, graph.linear, graph.up)
        )
        narrow = x.new_empty(*x.shape[:2], graph.down.out_features)
        for rows in parts:
            narrow[:, rows] = down(graph.norm(x[:, rows])).float()
        around = neighbours(narrow, adjacency)
        for rows in parts:
            update = up(F.gelu(linear(around[:, rows]))).float()
            x[:, rows] = self.norm(x[:, rows] + graph.scale * update)


class BulkFormerLatestModule(BulkFormerModule):
    """Network of bulkformer-latest (v3): like :class:`BulkFormerModule`, with other inputs.

    A token is a normalised embedding of the gene plus the code of its expression, which is scaled
    by a learned number and by the share of genes that are visible. There is no embedding of the
    whole sample, and no summary of the sample beside the result. Random features are fixed.

    Parameters
    ----------
    n_genes
        Size of the vocabulary.
    dim, n_layers, n_heads, ff_mult, attention_dropout, ff_dropout
        As of :class:`BulkFormerModule`, with one block.
    n_features
        Random features of each attention head.
    graph_dim
        Width of the graph convolution.

    References
    ----------
    ``utils/latest`` of the BulkFormer repository (October 2026), whose numbers it reproduces.
    """

    n_summary = 0
    pools_observed = True

    def __init__(
        self,
        n_genes: int,
        *,
        dim: int = 768,
        n_layers: int = 12,
        n_heads: int = 12,
        ff_mult: int = 4,
        n_features: int = 256,
        graph_dim: int = 192,
        attention_dropout: float = 0.05,
        ff_dropout: float = 0.1,
    ) -> None:
        nn.Module.__init__(self)  # other layers than its parent's
        self.n_genes, self.dim, self.centred = n_genes, dim, False
        self.gene_embedding = nn.Embedding(n_genes, dim)
        if not self.gene_embedding.weight.is_meta:
            nn.init.normal_(self.gene_embedding.weight, std=dim**-0.5)
        self.gene_projection = nn.RMSNorm(dim, eps=1e-8, elementwise_affine=False)
        self.expression_embedding = RotaryExpressionEmbedding(dim)
        frequencies = self.expression_embedding.frequencies.detach()
        del self.expression_embedding.frequencies  # not a parameter in v3
        self.expression_embedding.register_buffer("frequencies", frequencies)
        self.expression_scale = nn.Parameter(torch.tensor(1.0))
        self.input_projection = nn.LayerNorm(dim)
        block = GatedGraphPerformerBlock(
            dim,
            n_layers,
            n_heads,
            ff_mult=ff_mult,
            n_features=n_features,
            graph_dim=graph_dim,
            attention_dropout=attention_dropout,
            ff_dropout=ff_dropout,
        )
        self.blocks = nn.ModuleList([block])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Sequential(
            nn.Linear(dim, dim), nn.GELU(), nn.Dropout(ff_dropout), nn.Linear(dim, 1)
        )
        self._register(n_genes)

    def redraw_features(self, generator: torch.Generator | None = None) -> None:
        """Do nothing: the random features are fixed."""

    def decode(self, embedded: Tensor, expression: Tensor) -> Tensor:
        """Turn gene embeddings ``(n, n_genes, dim)`` into expression ``(n, n_genes)``."""
        return self._head_outputs(embedded) + self.gene_offset

    def summary(self, expression: Tensor, missing_rate: float | Tensor | None) -> Tensor:
        """Return no numbers, ``(n, 0)``."""
        return expression.new_empty(len(expression), 0)

    def _sample_terms(self, expression: Tensor) -> Tensor:
        """Return the factor of the code of expression in each sample, ``(b, 1, 1)``."""
        visible = (expression != MISSING).float().mean(1).clamp(min=_SMALLEST_SHARE)
        scale = (_REFERENCE_SHARE / visible).clamp(max=_LARGEST_SCALE)
        return (math.sqrt(2.0) * self.expression_scale * scale).view(-1, 1, 1)

    def _sums(self, expression: Tensor, genes: Tensor, sample: Tensor) -> Tensor:
        return genes + sample * self.expression_embedding(expression, expression == MISSING)

    def _prepared_input(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        return self.input_projection

    def _prepared_head(self) -> Callable[[Tensor], Tensor]:
        first, last = (prepare(self.head[i], torch.float32) for i in (0, 3))
        return lambda x: last(F.gelu(first(x)))


#: Sizes by name; ``latest`` is bulkformer-latest (v3), which has 101,323,778 parameters with its
#: 19,973 genes.
SIZES: dict[str, BulkFormerSize | BulkFormerLatestSize] = V2_SIZES | {
    "latest": BulkFormerLatestSize()
}
