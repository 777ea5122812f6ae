"""BulkFormer, tensor side: log TPM of every gene in, gene embeddings and expression out."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfm.models.bulkformer._block import GraphPerformerBlock, mlp
from cfm.models.bulkformer._constants import MISSING, N_SUMMARY
from cfm.models.bulkformer._linear_term import LocalFactors
from cfm.nn import RotaryExpressionEmbedding, normalised_adjacency
from cfm.nn._distributed import means_over_processes
from cfm.nn._graph import check_graph, neighbours
from cfm.nn._linear import prepare, prepare_linear
from cfm.nn._performer_stream import chunks, run_layers
from cfm.nn._weight_cache import WeightCache


class BulkFormerModule(nn.Module):
    """Transformer over all genes of a bulk sample, with a co-expression graph inside.

    A token is a gene: an embedding of the gene, one of its expression and one of the whole sample
    are summed. A graph convolution lets co-expressed genes speak, and Performer layers all of
    them. Without gradients the layers run on some tokens at a time: faster, in little memory.

    Parameters
    ----------
    n_genes
        Size of the vocabulary.
    dim, n_layers, n_heads, n_blocks, ff_mult, attention_dropout, ff_dropout
        Size: ``n_blocks`` blocks of a graph convolution and ``n_layers`` Performer layers.
    centred
        Embed the sample from what differs from the mean of each gene, with 0 where a gene is
        missing. The published model embeds the values as they are, −10 where missing, and needs
        many samples to learn around it.
    n_gene_features
        Width of a given table that says what each gene is (:meth:`set_gene_features`), such as
        embeddings of its protein; 0 learns an embedding per gene, as the published model does.

    References
    ----------
    The architecture of the BulkFormer repository of December 2025, whose numbers it reproduces.
    """

    edges: Tensor
    edge_weights: Tensor
    gene_offset: Tensor
    gene_features: Tensor

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
        self.gene_projection = mlp(n_gene_features or dim, 4 * dim, dim)
        self.expression_embedding = RotaryExpressionEmbedding(dim)
        self.sample_projection = mlp(n_genes, 4 * dim, dim)
        self.input_projection = mlp(dim, 4 * dim, dim)
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
        # Added before the last ReLU: 0 in published weights, else the mean of each gene.
        self.register_buffer("gene_offset", torch.zeros(n_genes))
        self.register_buffer("edges", torch.zeros(2, 0, dtype=torch.int64))
        self.register_buffer("edge_weights", torch.zeros(0))
        #: Closed-form prediction beside the network's; published models have none.
        self.linear_term: LocalFactors | None = None
        #: Whether training recomputes the layers in the backward pass instead of storing them.
        self.recompute = False
        self._cache = WeightCache()

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
        # Its version is not enough: memory of a graph that is gone may be taken again.
        self._cache.clear()

    def set_gene_features(self, table: Tensor) -> None:
        """Set the table that says what each gene is, ``(n_genes, n_gene_features)``."""
        if self.gene_embedding is not None or table.shape != self.gene_features.shape:
            raise ValueError(f"A table of shape {tuple(table.shape)} does not fit this model.")
        self.gene_features.copy_(table)

    def adjacency(self) -> Tensor:
        """Return the normalised graph, ``(n_genes, n_genes)`` sparse CSR, made once."""
        graph = self.edges, self.edge_weights
        return cast(
            "Tensor",
            self._cache.get("adjacency", graph, lambda: normalised_adjacency(*graph, self.n_genes)),
        )

    def gene_terms(self) -> Tensor:
        """Return what every sample adds per gene, ``(n_genes, dim)``; made once per weights."""
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
            Share of missing genes that the model is told: a number, ``(n,)``, or ``None`` for
            each sample's own share. 0 is what the published code takes where it is not set.
        dtype
            Of the matrix products where no gradients are asked for; with gradients autocast
            decides.

        Returns
        -------
        ``(n, n_genes, dim + 3)`` float32: the embedding of each gene, and in the last three
        places the missing rate, the mean of the sample's observed values and its share of values
        that are not zero.
        """
        self._check(expression)
        if torch.is_grad_enabled() or self.training:
            return self._encode(expression, missing_rate)
        n = max(1, self.tokens_at_once() // self.n_genes)
        out = expression.new_empty(*expression.shape, self.dim + N_SUMMARY, dtype=torch.float32)
        for rows in chunks(len(expression), n):
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

        Where a gene is missing, the prediction is moved by as much as the sample's observed
        genes are predicted too high on average.

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
        self._check(expression)
        n = max(1, self.tokens_at_once() // self.n_genes)
        made = []
        for rows in chunks(len(expression), n):
            rate = missing_rate[rows] if isinstance(missing_rate, Tensor) else missing_rate
            embedded = self.encode(expression[rows], rate, dtype=dtype)
            part = self.decode(embedded, expression[rows])
            if self.linear_term is not None:
                part = self.linear_term.blend(part, expression[rows])
            made.append(part)
        return torch.cat(made) if made else expression.new_empty(0, self.n_genes)

    def decode(self, embedded: Tensor, expression: Tensor) -> Tensor:
        """Turn gene embeddings ``(n, n_genes, dim + 3)`` into expression ``(n, n_genes)``."""
        if torch.is_grad_enabled() or self.training:
            out = self.head(embedded).squeeze(-1)
        else:
            out = torch.empty(embedded.shape[:-1], device=embedded.device)
            # In float32 in any case: the result has the digits of its last layer.
            first, last = (prepare(self.head[i], torch.float32) for i in (1, 3))
            for rows in chunks(self.n_genes, self.tokens_at_once()):
                hidden = F.relu(first(self.head[0](embedded[:, rows])))
                out[:, rows] = last(hidden).squeeze(-1)
        out = F.relu(out.float() + self.gene_offset)
        observed = expression != MISSING
        excess = torch.where(observed, out - expression, 0.0).sum(1) / observed.sum(1).clamp(min=1)
        return torch.where(observed, out, out - excess.unsqueeze(1))

    @torch.no_grad()
    def start_from(self, mean: Tensor) -> None:
        """Make an untrained model predict the mean of each gene, ``(n_genes,)`` log TPM."""
        self.gene_offset.copy_(mean)
        for parameter in self.head[-1].parameters():
            parameter.zero_()

    @torch.no_grad()
    def bfloat16_agreement(self, n_genes: int = 512) -> float:
        """Return how alike gene embeddings are in bfloat16 and float32: mean cosine similarity.

        Tried once per weights, on a made-up sample and ``n_genes`` genes spread over the
        vocabulary; the graph is left out.
        """
        weights = *self.parameters(), *self.buffers()
        return float(self._cache.get("agreement", weights, lambda: self._try_bfloat16(n_genes)))

    def _try_bfloat16(self, n_genes: int) -> Tensor:
        device = self.norm.weight.device
        rows = torch.linspace(0, self.n_genes - 1, min(n_genes, self.n_genes), device=device)
        rows = rows.long()
        # A third of the genes silent, the others spread as log TPM are, the same every time.
        spread = torch.arange(self.n_genes, device=device) * 0.6180339887 % 1.0
        expression = (-3.0 * torch.log1p(-0.95 * spread) - 1.2).clamp(min=0.0).unsqueeze(0)
        made = []
        for dtype in (torch.float32, torch.bfloat16):
            x = self._tokens(expression, rows, dtype)
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
        """Tokens that the layers work on at a time without gradients."""
        if self.norm.weight.device.type != "cpu":
            return 65_536
        # About what fits into the caches of the cores that share the work.
        return min(8192, 512 * torch.get_num_threads())

    def _encode(self, expression: Tensor, missing_rate: float | Tensor | None) -> Tensor:
        """Encode all at once; differentiable, with dropout in training."""
        missing = expression == MISSING
        x = (
            self.expression_embedding(expression, missing)
            + self.gene_terms()
            + self._sample_terms(expression)
        )  # (b, n, dim)
        x = self.input_projection(x)
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
        """Encode a few samples in pieces, into ``out`` ``(b, n_genes, dim + 3)``."""
        size = self.tokens_at_once()
        x = torch.empty(*expression.shape, self.dim, device=expression.device)
        sample = self._sample_terms(expression)
        project = self._input(dtype)
        for rows in chunks(self.n_genes, size):
            x[:, rows] = project(self._sums(expression, rows, sample))
        for block in self.blocks:
            block = cast("GraphPerformerBlock", block)
            for rows in chunks(self.n_genes, size):
                x[:, rows] = block.norm(x[:, rows])
            around = neighbours(x, self.adjacency())
            linear = prepare_linear(block.graph.linear.weight, block.graph.bias, dtype)
            for rows in chunks(self.n_genes, size):
                x[:, rows] += linear(around[:, rows])
            del around
            run_layers(block.performer_layers(), x, chunk=size, dtype=dtype)
        for rows in chunks(self.n_genes, size):
            out[:, rows, : self.dim] = self.norm(x[:, rows])
        out[..., self.dim :] = self.summary(expression, missing_rate).unsqueeze(1)

    def _sample_terms(self, expression: Tensor) -> Tensor:
        """Embed whole samples, ``(b, 1, dim)``."""
        if self.centred:
            missing = expression == MISSING
            expression = (expression - self.gene_offset).masked_fill(missing, 0.0)
        return self.sample_projection(expression).unsqueeze(1)

    def _tokens(self, expression: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Tokens of some genes, ``(b, len(rows), dim)``."""
        sample = self._sample_terms(expression)
        return self._input(dtype)(self._sums(expression, rows, sample)).float()

    def _sums(self, expression: Tensor, rows: slice | Tensor, sample: Tensor) -> Tensor:
        """Sum the embeddings of expression, gene and sample of some genes."""
        part = expression[:, rows]
        return self.expression_embedding(part, part == MISSING) + self.gene_terms()[rows] + sample

    def _input(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """Return the input network, prepared for inference."""
        first, second = (prepare(self.input_projection[i], dtype) for i in (0, 2))
        return lambda x: second(F.relu(first(x)))

    def summary(self, expression: Tensor, missing_rate: float | Tensor | None) -> Tensor:
        """Return the three numbers appended to every gene's embedding, ``(n, 3)``."""
        observed = expression != MISSING
        n_observed = observed.sum(1)
        total = torch.where(observed, expression, 0.0).sum(1)
        if missing_rate is None:
            rate = 1.0 - n_observed / self.n_genes
        else:
            rate = torch.as_tensor(missing_rate, dtype=torch.float32, device=expression.device)
            rate = rate.expand(len(expression))
        # Missing values count as "not zero": published weights were trained that way.
        filled = (expression != 0).float().mean(1)
        return torch.stack([rate, total / n_observed.clamp(min=1), filled], dim=1)

    def _check(self, expression: Tensor) -> None:
        if expression.ndim != 2 or expression.shape[1] != self.n_genes:
            raise ValueError(
                f"Expression is {tuple(expression.shape)}; expected (samples, {self.n_genes}), a "
                "column per gene of the vocabulary."
            )
        if not self.edges.shape[1]:
            raise ValueError("The model has no gene graph; give it one with set_graph.")
