"""How the trained network is applied to cells: embeddings, codes, attention, genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch

from cfm._arguments import checks_arguments
from cfm.models._precision import Precision
from cfm.models.cellvq._codes import CellCodes, Codebook
from cfm.models.cellvq._core import CellVQCore
from cfm.models.cellvq._reading import CellReader, Units

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from anndata import AnnData

    from cfm.models.cellvq._reading import Cells, Tokens

Representation = Literal["cell", "code"]

#: Code of a cell of which nothing is known.
NO_CODE = -1
#: What the two count tokens are called together.
SUMMARY = "<summary>"
#: Tokens at a time, padding included.
_ON_CPU, _ON_GPU = 16_384, 131_072
#: Numbers of gene embeddings that are held at a time (128 MiB).
_EMBEDDED_AT_ONCE = 32_000_000


class Encoded(NamedTuple):
    """Cells that went through the encoder.

    Attributes
    ----------
    rows
        ``(b,)`` which cells they are.
    cells, tokens
        What they express, and their sentences, on the device of the model.
    states
        ``(b, n, dim)``, outputs of the tokens.
    embedding
        ``(b, 4 * dim)``, the cell embedding.
    maximum
        ``(b, dim)``, what is quantised.
    """

    rows: np.ndarray
    cells: Cells
    tokens: Tokens
    states: torch.Tensor
    embedding: torch.Tensor
    maximum: torch.Tensor


class Applicable(CellVQCore):
    """A CellVQ that reads cells a few at a time."""

    @checks_arguments()
    @torch.inference_mode()
    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        *,
        layer: str | None = None,
        units: Units = "counts",
        total_counts: str | None = None,
        representation: Representation = "cell",
        batch_size: int = 64,
        precision: Precision = "auto",
    ) -> np.ndarray:
        """Embed cells.

        Parameters
        ----------
        adata
            Cells by genes, in any order of the genes; genes that the model does not know are left
            aside, genes that are not measured are missing. By default the model's own data, as
            they were registered (``layer``, ``units`` and ``total_counts`` are then not used).
        layer
            Layer to read instead of ``X``.
        units
            What is read: ``"counts"``, raw counts, or ``"log1p_cp10k"``, the natural ``log1p`` of
            counts per 10,000. Declared, never guessed, and checked.
        total_counts
            Column of ``obs`` with the counts of each cell, for ``"log1p_cp10k"``; without it cells
            are taken to have 10,000.
        representation
            ``"cell"``: the two count tokens, the largest value and the mean over the genes, which
            the property heads read. ``"code"``: where the cell lies among the codes.
        batch_size
            Cells at a time, fewer where memory asks for it; the result does not depend on it.
        precision
            ``"float32"``, ``"bfloat16"``, or ``"auto"``: bfloat16 where the processor is fast at
            it and a trial, made once per weights, keeps tokens at a cosine similarity of 0.999 to
            float32.

        Returns
        -------
        ``(n, 4 * dim)`` or ``(n, code_dim)`` float32; ``NaN`` for cells that express none of the
        model's genes.

        Raises
        ------
        KeyError
            If the layer or column does not exist.
        ValueError
            If values are not in the units that are declared, or too few genes are found.

        Warns
        -----
        UserWarning
            If few of the model's genes are measured, or cells express none of them.
        """
        reader = self._reader(adata, layer, units, total_counts)
        width = 4 * self.size.dim if representation == "cell" else self.size.code_dim
        out = np.full((reader.n_cells, width), np.nan, dtype=np.float32)
        for part in self._encoded(reader, batch_size, precision):
            found = part.embedding
            if representation == "code":
                found = self.module.quantize(part.maximum).latent
            out[part.rows] = found.float().cpu().numpy()
        return out

    @checks_arguments()
    @torch.inference_mode()
    def get_cell_codes(
        self,
        adata: AnnData | None = None,
        *,
        layer: str | None = None,
        units: Units = "counts",
        total_counts: str | None = None,
        batch_size: int = 64,
        precision: Precision = "float32",
    ) -> CellCodes:
        """Return the codes of cells, each the nearest one.

        Parameters
        ----------
        adata, layer, units, total_counts, batch_size, precision
            As for :meth:`get_latent_representation`.

        Returns
        -------
        CellCodes
            In the order of the cells. A cell that expresses none of the model's genes has the code
            −1, and ``NaN`` for all else.

            Codes are the same on all processors but for cells that lie between two of them to the
            last digits. In bfloat16 more of the cells with a ``margin`` near 0 get the other one.

        Raises
        ------
        KeyError, ValueError
            As :meth:`get_latent_representation`.
        """
        reader = self._reader(adata, layer, units, total_counts)
        n = reader.n_cells
        code = np.full(n, NO_CODE, dtype=np.int64)
        embedding, latent, best = (
            np.full((n, width), np.nan, dtype=np.float32)
            for width in (4 * self.size.dim, self.size.code_dim, 2)
        )
        for part in self._encoded(reader, batch_size, precision):
            found = self.module.quantize(part.maximum)
            code[part.rows] = found.code.cpu().numpy()
            embedding[part.rows] = part.embedding.float().cpu().numpy()
            latent[part.rows] = found.latent.float().cpu().numpy()
            best[part.rows] = found.similarity.float().topk(2, dim=1).values.cpu().numpy()
        return CellCodes(
            code=code,
            embedding=embedding,
            latent=latent,
            similarity=best[:, 0].copy(),
            margin=best[:, 0] - best[:, 1],
        )

    @torch.inference_mode()
    def get_codebook(self) -> Codebook:
        """Return all codes that the model can give.

        Returns
        -------
        Codebook
            In the order of their numbers.
        """
        self.module.eval()
        return Codebook(
            vectors=self.module.codebook().float().cpu().numpy(),
            bits=self.module.bits.cpu().numpy().astype(np.int8),
        )

    @checks_arguments()
    @torch.inference_mode()
    def get_attention(
        self,
        adata: AnnData | None = None,
        *,
        layer: str | None = None,
        units: Units = "counts",
        total_counts: str | None = None,
        reduce: Literal["mean"] | None = None,
    ) -> Iterator[tuple[pd.Index, np.ndarray]]:
        """Yield the attention maps of cells, one cell at a time and in their order.

        The two count tokens of a cell stand for it as a whole and are taken together: what they
        attend to is averaged, what attends to either is added up.

        Parameters
        ----------
        adata, layer, units, total_counts
            As for :meth:`get_latent_representation`.
        reduce
            ``"mean"`` averages over layers and heads as it goes, so that few maps are held.

        Yields
        ------
        tokens
            ``(n + 1,)`` names: ``"<summary>"``, then the genes that the cell expresses, in the
            order of the vocabulary; no gene for a cell that expresses none.
        weights
            ``(layers, heads, n + 1, n + 1)`` float32, or with ``reduce="mean"``
            ``(n + 1, n + 1)``; rows (queries) sum to 1.

        Raises
        ------
        KeyError, ValueError
            As :meth:`get_latent_representation`.
        """
        reader = self._reader(adata, layer, units, total_counts)
        for row in range(reader.n_cells):
            tokens = reader.tokens(np.array([row])).to(self.device)
            genes = self.vocabulary.genes[tokens.gene_ids[0, :-2].cpu().numpy()]
            layers = (_one_summary(w[0]) for w in self.module.attention(*tokens))
            if reduce is None:
                weights = torch.stack(list(layers))
            else:
                weights = torch.stack([w.mean(0) for w in layers]).mean(0)
            yield genes.insert(0, SUMMARY), weights.cpu().numpy()

    @checks_arguments()
    @torch.inference_mode()
    def get_gene_embeddings(
        self,
        adata: AnnData | None = None,
        *,
        layer: str | None = None,
        units: Units = "counts",
        total_counts: str | None = None,
        batch_size: int = 64,
        precision: Precision = "auto",
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the embeddings of all genes of the vocabulary, a few cells at a time.

        Parameters
        ----------
        adata, layer, units, total_counts, batch_size, precision
            As for :meth:`get_latent_representation`.

        Yields
        ------
        rows
            Slice of the cells.
        embeddings
            ``(b, n_genes, dim)`` float32: the output of a gene's token, in the context of the
            cell; ``NaN`` for genes that a cell does not express, which have no token.

        Raises
        ------
        KeyError, ValueError
            As :meth:`get_latent_representation`.
        """
        reader = self._reader(adata, layer, units, total_counts)
        dtype = self.inference_dtype(precision)
        n_genes, dim = len(self.vocabulary), self.size.dim
        at_once = max(1, min(batch_size, _EMBEDDED_AT_ONCE // (n_genes * dim)))
        for start in range(0, reader.n_cells, at_once):
            rows = slice(start, min(start + at_once, reader.n_cells))
            tokens = reader.tokens(np.arange(rows.start, rows.stop)).to(self.device)
            states = self.module.encode(*tokens, dtype=dtype).float().cpu().numpy()
            genes = tokens.gene_ids.cpu().numpy()
            out = np.full((len(states), n_genes, dim), np.nan, dtype=np.float32)
            cell, place = np.nonzero(genes < n_genes)
            out[cell, genes[cell, place]] = states[cell, place]
            yield rows, out

    def _reader(
        self, adata: AnnData | None, layer: str | None, units: Units, total_counts: str | None
    ) -> CellReader:
        """Return what reads given cells, or the model's own as they were registered."""
        own = adata is None
        adata = self._adata_or_own(adata)
        if own:
            setup = self._setup_arguments()
            layer, units, total_counts = (setup[k] for k in ("layer", "units", "total_counts"))
        self.module.eval()
        return CellReader(
            adata, self.vocabulary, layer=layer, units=units, total_counts=total_counts
        )

    def _encoded(
        self, reader: CellReader, batch_size: int, precision: Precision
    ) -> Iterator[Encoded]:
        """Yield the cells that express a gene of the model, those of like length together."""
        dtype = self.inference_dtype(precision)
        most = _ON_CPU if self.device.type == "cpu" else _ON_GPU
        for rows, cells in reader.batches(batch_size, most_tokens=most):
            yield self._encode(rows, cells, dtype)

    def _encode(self, rows: np.ndarray, cells: Cells, dtype: torch.dtype) -> Encoded:
        """Send cells through the encoder."""
        tokens = cells.tokens().to(self.device)
        states = self.module.encode(*tokens, dtype=dtype)
        return Encoded(rows, cells, tokens, states, *self.module.pool(states, tokens.padding))


def _one_summary(weights: torch.Tensor) -> torch.Tensor:
    """Take the last two tokens of ``(heads, n + 2, n + 2)`` together, and put them first."""
    columns = torch.cat([weights[..., -2:].sum(-1, keepdim=True), weights[..., :-2]], dim=-1)
    return torch.cat([columns[:, -2:].mean(1, keepdim=True), columns[:, :-2]], dim=1)
