"""BulkFormer, the network: log TPM of every gene in, gene embeddings and expression out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cfm._arguments import Dropout, check_fields
from cfm.nn import (
    GraphConvolution,
    PerformerLayer,
    RotaryExpressionEmbedding,
    normalised_adjacency,
)
from cfm.nn._distributed import means_over_processes
from cfm.nn._genes import check_graph, neighbours
from cfm.nn._kernels import WeightCache, prepare, prepare_linear
from cfm.nn._performer import chunks, run_layers

#: Expression of a gene that is not measured, or hidden.
MISSING = -10.0
#: Numbers appended to every gene's embedding: share of missing genes, mean of the observed
#: values, share of values that are not zero.
N_SUMMARY = 3


@dataclass(frozen=True)
class BulkFormerSize:
    """Sizes of the network; see :class:`BulkFormerModule`."""

    dim: int
    n_layers: int
    n_heads: int = 8
    n_blocks: int = 1
    ff_mult: int = 4
    attention_dropout: Dropout = 0.05
    ff_dropout: Dropout = 0.1
    centred: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def module_arguments(self) -> dict[str, Any]:
        """Return the constructor arguments of the module."""
        return asdict(self)

    def module(self, n_genes: int, n_gene_features: int = 0) -> BulkFormerModule:
        """Return a network of this size."""
        return BulkFormerModule(n_genes, **self.module_arguments(), n_gene_features=n_gene_features)


#: The five published sizes of v2 by the names of their checkpoints, which are nominal: with 20,010
#: genes they have 13.4, 28.6, 75.9, 112.4 and 132.1 million parameters. ``mini`` is for small
#: cohorts.
V2_SIZES = {
    "mini": BulkFormerSize(dim=64, n_layers=2, n_heads=4, centred=True),
    "37M": BulkFormerSize(dim=128, n_layers=1),
    "50M": BulkFormerSize(dim=256, n_layers=2),
    "93M": BulkFormerSize(dim=512, n_layers=6),
    "127M": BulkFormerSize(dim=640, n_layers=8),
    "147M": BulkFormerSize(dim=640, n_layers=12),
}


def _mlp(n_in: int, n_hidden: int, n_out: int) -> nn.Sequential:
    """Return two linear layers with a ReLU between them."""
    return nn.Sequential(nn.Linear(n_in, n_hidden), nn.ReLU(), nn.Linear(n_hidden, n_out))


def pool_genes(embedded: Tensor, pooling: str) -> Tensor:
    """Pool gene embeddings ``(n, n_genes, d)`` to ``(n, d)``: their mean, max or median.

    ``"all"`` is the three one after the other, ``(n, 3 d)``.
    """
    if pooling == "all":
        return torch.cat([pool_genes(embedded, one) for one in ("mean", "max", "median")], dim=1)
    if pooling == "mean":
        return embedded.mean(1)
    return (embedded.max(1) if pooling == "max" else embedded.median(1)).values


def lower_genes(expression: Tensor, genes: Tensor, remaining: float) -> Tensor:
    """Return log TPM with the TPM of some genes multiplied; missing values stay missing.

    Parameters
    ----------
    expression
        ``(n, n_genes)`` log TPM; −10 = missing.
    genes
        ``(k,)`` positions of the genes.
    remaining
        Factor.
    """
    value = expression[:, genes]
    changed = torch.log1p(torch.expm1(value) * remaining)
    out = expression.clone()
    out[:, genes] = torch.where(value == MISSING, value, changed)
    return out


class GraphPerformerBlock(nn.Module):
    """Graph convolution over the normalised tokens, then Performer layers.

    Parameters
    ----------
    dim, n_layers, n_heads, ff_mult, attention_dropout, ff_dropout
        As of :class:`BulkFormerModule`.
    """

    def __init__(
        self,
        dim: int,
        n_layers: int,
        n_heads: int,
        ff_mult: int = 4,
        attention_dropout: float = 0.0,
        ff_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.graph = GraphConvolution(dim)
        self.layers = nn.ModuleList(
            PerformerLayer(
                dim,
                n_heads,
                ff_mult=ff_mult,
                attention_dropout=attention_dropout,
                ff_dropout=ff_dropout,
            )
            for _ in range(n_layers)
        )

    def performer_layers(self) -> list[PerformerLayer]:
        """Return the layers, typed."""
        return [cast("PerformerLayer", layer) for layer in self.layers]

    def convolve(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """Apply norm and graph convolution, ``(b, n, dim)``, with gradients."""
        x = self.norm(x)  # the residual starts here, as in the published model
        return x + self.graph(x, adjacency)

    def convolve_in_place(
        self, x: Tensor, adjacency: Tensor, size: int, dtype: torch.dtype
    ) -> None:
        """Apply :meth:`convolve` to ``x`` in place, ``size`` genes at a time."""
        parts = list(chunks(x.shape[1], size))
        for rows in parts:
            x[:, rows] = self.norm(x[:, rows])
        around = neighbours(x, adjacency)
        linear = prepare_linear(self.graph.linear.weight, self.graph.bias, dtype)
        for rows in parts:
            x[:, rows] += linear(around[:, rows])

    def forward(self, x: Tensor, adjacency: Tensor, *, recompute: bool = False) -> Tensor:
        """Map ``(b, n, dim)`` to ``(b, n, dim)``; ``recompute`` trades time for memory."""
        x = self.convolve(x, adjacency)
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
        return x


class BulkFormerModule(nn.Module):
    """Transformer over all genes of a bulk sample, with a co-expression graph inside.

    A token is a gene: an embedding of the gene, one of its expression and one of the whole sample
    are summed. A graph convolution mixes co-expressed genes, and Performer layers mix all genes.
    Without gradients the layers run on some tokens at a time: faster, in little memory.

    Parameters
    ----------
    n_genes
        Size of the vocabulary.
    dim, n_layers, n_heads, n_blocks, ff_mult, attention_dropout, ff_dropout
        Size: ``n_blocks`` blocks of a graph convolution and ``n_layers`` Performer layers.
    centred
        Embed the sample from its differences to the mean of each gene, with 0 where a gene is
        missing. The published model embeds the values as they are, −10 where missing, and needs
        many samples to learn around it.
    n_gene_features
        Width of a given table of gene features (:meth:`set_gene_features`), such as embeddings
        of proteins; 0 learns an embedding per gene, as the published model does.

    References
    ----------
    The architecture of the BulkFormer repository of December 2025, whose numbers it reproduces.
    """

    edges: Tensor
    edge_weights: Tensor
    gene_offset: Tensor
    gene_features: Tensor
    #: Numbers of the sample after the embedding of each gene.
    n_summary = N_SUMMARY
    #: Whether embeddings are pooled over the observed genes of each sample.
    pools_observed = False

    def __init__(
        self,
        n_genes: int,
        *,
        dim: int = 640,
        n_layers: int = 12,
        n_heads: int = 8,
        n_blocks: int = 1,
        ff_mult: int = 4,
        attention_dropout: float = 0.05,
        ff_dropout: float = 0.1,
        centred: bool = False,
        n_gene_features: int = 0,
    ) -> None:
        super().__init__()
        self.n_genes, self.dim, self.centred = n_genes, dim, centred
        if n_gene_features:
            self.gene_embedding = None
            self.register_buffer("gene_features", torch.zeros(n_genes, n_gene_features))
        else:
            self.gene_embedding = nn.Embedding(n_genes, dim)
            if not self.gene_embedding.weight.is_meta:
                nn.init.xavier_uniform_(self.gene_embedding.weight)
        self.gene_projection: nn.Module = _mlp(n_gene_features or dim, 4 * dim, dim)
        self.expression_embedding = RotaryExpressionEmbedding(dim)
        self.sample_projection = _mlp(n_genes, 4 * dim, dim)
        self.input_projection: nn.Module = _mlp(dim, 4 * dim, dim)
        self.blocks = nn.ModuleList(
            GraphPerformerBlock(dim, n_layers, n_heads, ff_mult, attention_dropout, ff_dropout)
            for _ in range(n_blocks)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Sequential(
            nn.LayerNorm(dim + N_SUMMARY),
            nn.Linear(dim + N_SUMMARY, dim),
            nn.ReLU(),
            nn.Linear(dim, 1),
        )
        self._register(n_genes)

    def _register(self, n_genes: int) -> None:
        """Register what networks of all versions have beside their layers."""
        # Added before the last ReLU: 0 in published weights, else the mean of each gene.
        self.register_buffer("gene_offset", torch.zeros(n_genes))
        self.register_buffer("edges", torch.zeros(2, 0, dtype=torch.int64))
        self.register_buffer("edge_weights", torch.zeros(0))
        #: Whether training recomputes the layers in the backward pass instead of storing them.
        self.recompute = False
        self._cache = WeightCache()

    @property
    def n_outputs(self) -> int:
        """Width of the embedding of a gene, with the numbers of its sample."""
        return self.dim + self.n_summary

    def set_graph(self, edges: Tensor, weights: Tensor) -> None:
        """Set the co-expression graph.

        Parameters
        ----------
        edges
            ``(2, n_edges)`` int64: row 0 the target gene, row 1 the source.
        weights
            ``(n_edges,)`` non-negative, such as absolute correlations.

        Raises
        ------
        ValueError
            If the graph does not fit the genes; see :func:`cfm.nn.normalised_adjacency`.
        """
        check_graph(edges, weights, self.n_genes)
        device = self.norm.weight.device
        self.edges = edges.to(device, copy=True)
        self.edge_weights = weights.to(device, torch.float32, copy=True)
        # The cache compares addresses and versions; a new graph may reuse the freed memory.
        self._cache.clear()

    def set_gene_features(self, table: Tensor) -> None:
        """Set the table of gene features, ``(n_genes, n_gene_features)``."""
        if self.gene_embedding is not None or table.shape != self.gene_features.shape:
            raise ValueError(f"A table of shape {tuple(table.shape)} does not fit this model.")
        self.gene_features.copy_(table)

    def adjacency(self) -> Tensor:
        """Return the normalised graph, ``(n_genes, n_genes)`` sparse CSR; cached."""
        graph = self.edges, self.edge_weights
        return cast(
            "Tensor",
            self._cache.get("adjacency", graph, lambda: normalised_adjacency(*graph, self.n_genes)),
        )

    def gene_terms(self) -> Tensor:
        """Return the projected gene embeddings, ``(n_genes, dim)``; cached without gradients."""
        table = self.gene_features if self.gene_embedding is None else self.gene_embedding.weight
        if torch.is_grad_enabled():
            return self.gene_projection(table)
        weights = table, *self.gene_projection.parameters()
        with torch.autocast(table.device.type, enabled=False):
            found = self._cache.get("genes", weights, lambda: self.gene_projection(table))
        return cast("Tensor", found)

    def redraw_features(self, generator: torch.Generator | None = None) -> None:
        """Draw the random features of every layer anew."""
        for block in self.blocks:
            for layer in cast("GraphPerformerBlock", block).performer_layers():
                layer.attention.redraw(generator)

    def encode(
        self,
        expression: Tensor,
        missing_rate: float | Tensor | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Embed every gene of every sample.

        Parameters
        ----------
        expression
            ``(n, n_genes)`` natural log1p of TPM; −10 = missing.
        missing_rate
            Share of missing genes to append: a number, ``(n,)``, or ``None`` for each sample's
            own share. The default of the published code is 0.
        dtype
            Of the matrix products without gradients; with gradients autocast decides.

        Returns
        -------
        ``(n, n_genes, dim + 3)`` float32: the embedding of each gene, and in the last three
        places the missing rate, the mean of the sample's observed values and its share of values
        that are not zero.
        """
        self._check_input(expression)
        if torch.is_grad_enabled() or self.training:
            return self._encode(expression, missing_rate)
        out = expression.new_empty(*expression.shape, self.n_outputs, dtype=torch.float32)
        for rows in chunks(len(expression), self.samples_at_once()):
            rate = missing_rate[rows] if isinstance(missing_rate, Tensor) else missing_rate
            self._stream(expression[rows], rate, out[rows], dtype)
        return out

    def predict(
        self,
        expression: Tensor,
        missing_rate: float | Tensor | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Predict the expression of every gene.

        The mean error of a sample's observed genes is subtracted from the predictions of its
        missing genes.

        Parameters
        ----------
        expression, missing_rate, dtype
            As for :meth:`encode`.

        Returns
        -------
        ``(n, n_genes)`` float32, natural log1p of TPM.
        """
        if torch.is_grad_enabled() or self.training:
            return self.decode(self.encode(expression, missing_rate), expression)
        self._check_input(expression)
        out = expression.new_empty(expression.shape, dtype=torch.float32)
        for rows in chunks(len(expression), self.samples_at_once()):
            rate = missing_rate[rows] if isinstance(missing_rate, Tensor) else missing_rate
            embedded = self.encode(expression[rows], rate, dtype=dtype)
            out[rows] = self.decode(embedded, expression[rows])
        return out

    def decode(self, embedded: Tensor, expression: Tensor) -> Tensor:
        """Turn gene embeddings ``(n, n_genes, dim + 3)`` into expression ``(n, n_genes)``."""
        out = F.relu(self._head_outputs(embedded) + self.gene_offset)
        observed = expression != MISSING
        excess = torch.where(observed, out - expression, 0.0).sum(1) / observed.sum(1).clamp(min=1)
        return torch.where(observed, out, out - excess.unsqueeze(1))

    def _head_outputs(self, embedded: Tensor) -> Tensor:
        """Return the output of the head, ``(n, n_genes)`` float32."""
        if torch.is_grad_enabled() or self.training:
            return self.head(embedded).squeeze(-1).float()
        out = torch.empty(embedded.shape[:-1], device=embedded.device)
        head = self._prepared_head()
        for rows in list(chunks(self.n_genes, self.tokens_at_once())):
            out[:, rows] = head(embedded[:, rows]).squeeze(-1)
        return out

    @torch.no_grad()
    def start_from(self, mean: Tensor) -> None:
        """Make an untrained model predict the mean of each gene, ``(n_genes,)`` log TPM."""
        self.gene_offset.copy_(mean)
        for parameter in self.head[-1].parameters():
            parameter.zero_()

    @torch.no_grad()
    def bfloat16_agreement(self, n_genes: int = 512) -> float:
        """Return the mean cosine similarity of gene embeddings in bfloat16 and float32.

        Computed once per weights, on a synthetic sample and ``n_genes`` genes spread over the
        vocabulary, without the graph.
        """
        weights = *self.parameters(), *self.buffers()
        return float(self._cache.get("agreement", weights, lambda: self._try_bfloat16(n_genes)))

    def _try_bfloat16(self, n_genes: int) -> Tensor:
        device = self.norm.weight.device
        rows = torch.linspace(0, self.n_genes - 1, min(n_genes, self.n_genes), device=device)
        rows = rows.long()
        # The same on every call: a third of the genes 0, the others distributed as log TPM.
        spread = torch.arange(self.n_genes, device=device) * 0.6180339887 % 1.0
        expression = (-3.0 * torch.log1p(-0.95 * spread) - 1.2).clamp(min=0.0).unsqueeze(0)
        genes, sample = self.gene_terms()[rows], self._sample_terms(expression)
        made = []
        for dtype in (torch.float32, torch.bfloat16):
            x = self._prepared_input(dtype)(self._sums(expression[:, rows], genes, sample)).float()
            for block in self.blocks:
                layers = cast("GraphPerformerBlock", block).performer_layers()
                x = cast("GraphPerformerBlock", block).norm(x)
                x = run_layers(layers, x, chunk=len(rows), dtype=dtype)
            made.append(self.norm(x))
        return F.cosine_similarity(made[0], made[1], dim=-1).mean()

    def losses(self, expression: Tensor, hidden: Tensor) -> dict[str, Tensor]:
        """Return the pretraining loss of a batch.

        Parameters
        ----------
        expression
            ``(n, n_genes)`` log TPM; −10 = missing.
        hidden
            ``(n, n_genes)`` bool, observed entries to hide and predict.

        Returns
        -------
        ``loss``, the mean squared error of the hidden entries, over processes that train together.
        """
        seen = expression.masked_fill(hidden, MISSING)
        error = (self.decode(self.encode(seen), seen) - expression)[hidden].square()
        return {"loss": means_over_processes((error.sum(), error.numel()))[0]}

    def tokens_at_once(self) -> int:
        """Return the number of tokens per chunk of the layers without gradients."""
        if self.norm.weight.device.type != "cpu":
            return 65_536
        # chunks of about this size stay in the caches of the cores
        return min(8192, max(512, 2**16 // self.dim) * torch.get_num_threads())

    def samples_at_once(self) -> int:
        """Return the number of samples per chunk without gradients, at least one."""
        return max(1, self.tokens_at_once() // self.n_genes)

    def _encode(self, expression: Tensor, missing_rate: float | Tensor | None) -> Tensor:
        """Encode in one piece: with gradients, and with dropout in training."""
        x = self._sums(expression, self.gene_terms(), self._sample_terms(expression))
        x = self.input_projection(x)  # (b, n, dim)
        adjacency = self.adjacency()
        for block in self.blocks:
            x = block(x, adjacency, recompute=self.recompute and self.training)
        summary = self.summary(expression, missing_rate).unsqueeze(1)
        summary = summary.expand(-1, self.n_genes, -1)
        return torch.cat([self.norm(x).float(), summary], dim=-1)

    def _stream(
        self,
        expression: Tensor,
        missing_rate: float | Tensor | None,
        out: Tensor,
        dtype: torch.dtype,
    ) -> None:
        """Encode a few samples in chunks of genes, into ``out`` ``(b, n_genes, n_outputs)``."""
        size = self.tokens_at_once()
        parts = list(chunks(self.n_genes, size))
        x = torch.empty(*expression.shape, self.dim, device=expression.device)
        genes, sample = self.gene_terms(), self._sample_terms(expression)
        project = self._prepared_input(dtype)
        for rows in parts:
            x[:, rows] = project(self._sums(expression[:, rows], genes[rows], sample))
        for block in self.blocks:
            block = cast("GraphPerformerBlock", block)
            block.convolve_in_place(x, self.adjacency(), size, dtype)
            run_layers(block.performer_layers(), x, chunk=size, dtype=dtype)
        for rows in parts:
            out[:, rows, : self.dim] = self.norm(x[:, rows])
        out[..., self.dim :] = self.summary(expression, missing_rate).unsqueeze(1)

    def _sample_terms(self, expression: Tensor) -> Tensor:
        """Embed whole samples, ``(b, 1, dim)``."""
        if self.centred:
            missing = expression == MISSING
            expression = (expression - self.gene_offset).masked_fill(missing, 0.0)
        return self.sample_projection(expression).unsqueeze(1)

    def _sums(self, expression: Tensor, genes: Tensor, sample: Tensor) -> Tensor:
        """Sum the embeddings of expression, gene and sample of some genes, ``(b, n, dim)``."""
        return self.expression_embedding(expression, expression == MISSING) + genes + sample

    def _prepared_input(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """Return the input network, prepared for inference."""
        layers = cast("nn.Sequential", self.input_projection)
        first, second = (prepare(layers[i], dtype) for i in (0, 2))
        return lambda x: second(F.relu(first(x)))

    def _prepared_head(self) -> Callable[[Tensor], Tensor]:
        """Return the head, prepared for inference."""
        # Always float32: the precision of the last layer limits that of the result.
        first, last = (prepare(self.head[i], torch.float32) for i in (1, 3))
        return lambda x: last(F.relu(first(self.head[0](x))))

    def summary(self, expression: Tensor, missing_rate: float | Tensor | None) -> Tensor:
        """Return the numbers appended to the embedding of every gene, ``(n, n_summary)``."""
        observed = expression != MISSING
        n_observed = observed.sum(1)
        total = torch.where(observed, expression, 0.0).sum(1)
        if missing_rate is None:
            rate = 1.0 - n_observed / self.n_genes
        else:
            rate = torch.as_tensor(missing_rate, dtype=torch.float32, device=expression.device)
            rate = rate.expand(len(expression))
        # Missing values count as "not zero", as in the training of the published weights.
        filled = (expression != 0).float().mean(1)
        return torch.stack([rate, total / n_observed.clamp(min=1), filled], dim=1)

    def _check_input(self, expression: Tensor) -> None:
        if expression.ndim != 2 or expression.shape[1] != self.n_genes:
            raise ValueError(
                f"Expression is {tuple(expression.shape)}; expected (samples, {self.n_genes}), a "
                "column per gene of the vocabulary."
            )
        if not self.edges.shape[1]:
            raise ValueError("The model has no gene graph; give it one with set_graph.")
