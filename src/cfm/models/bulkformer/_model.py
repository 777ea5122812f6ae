"""BulkFormer: the public class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd
import torch

from cfm.data._warn import warn_user
from cfm.models.bulkformer._constants import MISSING
from cfm.models.bulkformer._pretrain import Trainable
from cfm.models.bulkformer._reading import align_expression, expression_blocks
from cfm.nn._linear import fast_bfloat16

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData

    from cfm.data import GeneAlignment

Pooling = Literal["mean", "max", "median"]
Precision = Literal["auto", "float32", "bfloat16"]

#: Mean cosine similarity to float32 below which "auto" does not use bfloat16.
LEAST_AGREEMENT = 0.999


class BulkFormer(Trainable):
    """Foundation model of bulk expression: every gene of a sample, with a co-expression graph.

    A sample is the log TPM of all genes of the vocabulary; what is not measured is missing, not
    zero. Each gene is given an embedding in the context of its sample, from which expression is
    predicted back.

    Parameters
    ----------
    adata
        Samples by genes, natural log1p of TPM (:func:`cfm.pp.tpm`), registered with
        :meth:`setup_anndata`.
    vocabulary
        Gene symbols that the model is to know; by default ``adata.var_names``.
    size
        ``"mini"``, one of the published ``"37M"``, ``"50M"``, ``"93M"``, ``"127M"``, ``"147M"``
        (nominal names), or a ``BulkFormerSize``.
    graph
        Co-expression graph over the vocabulary: a sparse matrix (row = target), or a pair of
        ``(2, n_edges)`` edges and ``(n_edges,)`` weights. By default ``adata.varp["coexpression"]``
        (:func:`cfm.pp.coexpression_graph`), which is made of the data if it is not there.
    gene_features
        Table, genes by features, that says what each gene is, such as embeddings of its protein;
        by default an embedding per gene is learned.
    seed
        Seed of the initial weights.
    **sizes
        Single numbers to change in the size: ``dim``, ``n_layers``, ``n_heads``, ``n_blocks``,
        ``ff_mult``, ``attention_dropout``, ``ff_dropout``, ``centred``.

    Notes
    -----
    The architecture of the BulkFormer repository of December 2025 (five sizes; Cell Systems
    17(7) 101657, 2026), whose released weights :meth:`from_pretrained` reads. With
    ``precision="auto"`` matrix products run in bfloat16 where the processor is fast at it and a
    trial, made once per weights, keeps embeddings at a cosine similarity of 0.999 to float32.

    Examples
    --------
    >>> import cfm
    >>> model = cfm.models.BulkFormer(vocabulary=["A", "B", "C"], graph=([[0], [1]], [0.9]))
    >>> model.module.dim
    64
    """

    @torch.inference_mode()
    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        *,
        layer: str | None = None,
        pooling: Pooling = "mean",
        genes: Sequence[str] | None = None,
        batch_size: int = 64,
        precision: Precision = "auto",
    ) -> np.ndarray:
        """Embed samples: the embeddings of their genes, pooled.

        Parameters
        ----------
        adata
            Samples by genes, log TPM, any gene order; need not be registered. The model's own
            data if not given.
        layer
            Layer with the log TPM instead of ``X``.
        pooling
            ``"mean"``, ``"max"`` or ``"median"`` (the lower of two middle values) over genes.
        genes
            Genes to pool over, names of the vocabulary; by default those that ``adata`` has.
        batch_size
            Samples to read at a time; the result does not depend on it.
        precision
            ``"float32"``, ``"bfloat16"``, or ``"auto"``; see the class.

        Returns
        -------
        ``(n, dim + 3)`` float32; the last three are the share of missing genes, the mean of the
        measured values and the share of values that are not zero.

        Raises
        ------
        KeyError
            If the layer or a gene does not exist.
        ValueError
            If the matrix is not log TPM, or too few genes are found.
        """
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling={pooling!r}; expected one of {get_args(Pooling)}.")
        adata = self._adata_or_own(adata)
        alignment = self._align(adata, layer)
        place = np.sort(alignment.positions) if genes is None else self._positions(genes)
        index = torch.from_numpy(place).to(self.device)
        out = np.empty((adata.n_obs, self.module.dim + 3), dtype=np.float32)
        for rows, embedded in self._encoded(adata, alignment, layer, batch_size, precision):
            chosen = embedded[:, index]
            if pooling == "mean":
                pooled = chosen.mean(1)
            else:
                pooled = (chosen.max(1) if pooling == "max" else chosen.median(1)).values
            out[rows] = pooled.cpu().numpy()
        return out

    @torch.inference_mode()
    def get_gene_embeddings(
        self,
        adata: AnnData | None = None,
        *,
        layer: str | None = None,
        genes: Sequence[str] | None = None,
        batch_size: int = 64,
        precision: Precision = "auto",
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the embeddings of genes in their samples, a few samples at a time.

        Parameters
        ----------
        adata, layer, batch_size, precision
            As for :meth:`get_latent_representation`.
        genes
            Names of the vocabulary; by default all of it, in its order.

        Yields
        ------
        rows
            Slice of the samples.
        embeddings
            ``(b, n_genes, dim + 3)`` float32.
        """
        adata = self._adata_or_own(adata)
        alignment = self._align(adata, layer)
        place = np.arange(len(self.vocabulary)) if genes is None else self._positions(genes)
        index = torch.from_numpy(place).to(self.device)
        for rows, embedded in self._encoded(adata, alignment, layer, batch_size, precision):
            yield rows, embedded[:, index].cpu().numpy()

    def impute(
        self,
        adata: AnnData | None = None,
        *,
        layer: str | None = None,
        mask: np.ndarray | None = None,
        batch_size: int = 64,
        precision: Precision = "auto",
    ) -> np.ndarray:
        """Fill in missing expression; what is observed stays as it is.

        Parameters
        ----------
        adata, layer, batch_size, precision
            As for :meth:`get_latent_representation`; ``NaN`` and −10 are missing.
        mask
            ``(n_obs, n_vars)`` bool: entries to hide from the model and predict as well.

        Returns
        -------
        ``(n_obs, n_vars)`` float32 log TPM. ``NaN`` where a missing gene is not among the model's.
        """
        adata = self._adata_or_own(adata)
        alignment = self._align(adata, layer)
        mask = _check_mask(mask, adata)
        predicted = self._predicted(adata, alignment, layer, mask, batch_size, precision)
        out = np.empty(adata.shape, dtype=np.float32)
        for rows, values, prediction in predicted:
            filled = np.full(values.shape, np.nan, dtype=np.float32)
            filled[:, alignment.columns] = prediction[:, alignment.positions]
            out[rows] = np.where(np.isnan(values), filled, values)
        return out

    def predict_expression(
        self,
        adata: AnnData | None = None,
        *,
        layer: str | None = None,
        genes: Sequence[str] | None = None,
        mask: np.ndarray | None = None,
        batch_size: int = 64,
        precision: Precision = "auto",
    ) -> pd.DataFrame:
        """Predict the expression of the model's genes, also of those that were not measured.

        Parameters
        ----------
        adata, layer, mask, batch_size, precision
            As for :meth:`impute`.
        genes
            Names of the vocabulary; by default all of it.

        Returns
        -------
        Samples by genes, float32 log TPM. Of observed genes this is the model's reconstruction.
        """
        adata = self._adata_or_own(adata)
        alignment = self._align(adata, layer)
        place = np.arange(len(self.vocabulary)) if genes is None else self._positions(genes)
        mask = _check_mask(mask, adata)
        out = np.empty((adata.n_obs, len(place)), dtype=np.float32)
        for rows, _, prediction in self._predicted(
            adata, alignment, layer, mask, batch_size, precision
        ):
            out[rows] = prediction[:, place]
        return pd.DataFrame(out, index=adata.obs_names, columns=self.vocabulary.genes[place])

    def knock_down(
        self,
        adata: AnnData | None,
        genes: str | Sequence[str],
        *,
        layer: str | None = None,
        remaining: float = 0.0,
        batch_size: int = 64,
        precision: Precision = "auto",
    ) -> pd.DataFrame:
        """Predict how expression shifts when genes are turned down.

        The genes' TPM are multiplied by ``remaining``, and the prediction for the changed sample
        is compared with the prediction for the sample as it is. This is what co-expression makes
        likely, not an effect that was measured or is known to be causal.

        Parameters
        ----------
        adata, layer, batch_size, precision
            As for :meth:`get_latent_representation`.
        genes
            One or more genes, by names of the vocabulary; each has to be measured.
        remaining
            Share of the TPM that is left, from 0.

        Returns
        -------
        Samples by genes of the vocabulary, float32: predicted change of log TPM.

        Raises
        ------
        KeyError
            If the model does not know a gene, or ``adata`` does not measure it.
        ValueError
            If ``remaining`` is negative.
        """
        if not remaining >= 0:
            raise ValueError(f"remaining must be at least 0; found {remaining}.")
        adata = self._adata_or_own(adata)
        alignment = self._align(adata, layer)
        place = self._positions([genes] if isinstance(genes, str) else genes)
        absent = self.vocabulary.genes[place[~np.isin(place, alignment.positions)]].tolist()
        if absent:
            raise KeyError(f"adata does not measure {absent}; what is missing cannot be lowered.")
        out = np.empty((adata.n_obs, len(self.vocabulary)), dtype=np.float32)
        dtype = self._dtype(precision)
        with torch.inference_mode():
            for rows, _, x in self._blocks(adata, alignment, layer, batch_size):
                lowered = x.clone()
                value = lowered[:, place]
                changed = torch.log1p(torch.expm1(value) * remaining)
                lowered[:, place] = torch.where(value == MISSING, value, changed)
                shift = self.module.predict(lowered, dtype=dtype)
                shift -= self.module.predict(x, dtype=dtype)
                out[rows] = shift.cpu().numpy()
        return pd.DataFrame(out, index=adata.obs_names, columns=self.vocabulary.genes)

    def _align(self, adata: AnnData, layer: str | None) -> GeneAlignment:
        self.require_genes()
        self.module.eval()
        return align_expression(adata, self.vocabulary, layer=layer)

    def _positions(self, genes: Sequence[str]) -> np.ndarray:
        """Return the places of genes in the vocabulary."""
        if isinstance(genes, str):
            raise TypeError(f"genes={genes!r} is a single string; give a list of gene names.")
        place = self.vocabulary.genes.get_indexer(pd.Index(list(genes)))
        unknown = [str(g) for g, p in zip(genes, place, strict=True) if p < 0]
        if unknown or not len(place):
            raise KeyError(
                f"The model does not know {unknown[:5]}; it knows "
                f"{', '.join(self.vocabulary.genes[:3])}, … (model.vocabulary.genes)."
            )
        return place.astype(np.int64)

    def _blocks(
        self,
        adata: AnnData,
        alignment: GeneAlignment,
        layer: str | None,
        batch_size: int,
        mask: np.ndarray | None = None,
    ) -> Iterator[tuple[slice, np.ndarray, torch.Tensor]]:
        """Yield ``(rows, values as in adata with NaN = missing, the model's input)``."""
        at_once = max(1, self.module.tokens_at_once() // len(self.vocabulary))
        for block, values in expression_blocks(adata, layer=layer, n_rows=batch_size):
            if mask is not None:
                values[mask[block]] = np.nan
            for start in range(0, len(values), at_once):
                part = values[start : start + at_once]
                first = block.start + start
                x = np.nan_to_num(alignment.apply(part), nan=MISSING)
                yield slice(first, first + len(part)), part, torch.from_numpy(x).to(self.device)

    def _encoded(
        self,
        adata: AnnData,
        alignment: GeneAlignment,
        layer: str | None,
        batch_size: int,
        precision: Precision,
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield the gene embeddings of a few samples at a time."""
        dtype = self._dtype(precision)
        for rows, _, x in self._blocks(adata, alignment, layer, batch_size):
            yield rows, self.module.encode(x, dtype=dtype)

    def _predicted(
        self,
        adata: AnnData,
        alignment: GeneAlignment,
        layer: str | None,
        mask: np.ndarray | None,
        batch_size: int,
        precision: Precision,
    ) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Yield ``(rows, values with NaN = missing, predicted log TPM of the vocabulary)``."""
        dtype = self._dtype(precision)
        for rows, values, x in self._blocks(adata, alignment, layer, batch_size, mask):
            with torch.inference_mode():
                # The correction of the mean may push a prediction below nothing at all.
                predicted = self.module.predict(x, dtype=dtype).clamp(min=0.0)
            yield rows, values, predicted.cpu().numpy()

    def _dtype(self, precision: Precision) -> torch.dtype:
        """Decide what matrix products run in; the data have no say in it."""
        if precision not in get_args(Precision):
            raise ValueError(f"precision={precision!r}; expected one of {get_args(Precision)}.")
        if precision != "auto":
            return torch.float32 if precision == "float32" else torch.bfloat16
        if not fast_bfloat16(self.device):
            return torch.float32
        agreement = self.module.bfloat16_agreement()
        if agreement < LEAST_AGREEMENT:
            warn_user(
                f"In bfloat16 these weights give embeddings at a cosine similarity of only "
                f"{agreement:.4f} to float32, so float32 is used; precision='float32' says so "
                "without a trial."
            )
            return torch.float32
        return torch.bfloat16


def _check_mask(mask: np.ndarray | None, adata: AnnData) -> np.ndarray | None:
    """Check the shape and type of a mask."""
    if mask is None:
        return None
    mask = np.asarray(mask)
    if mask.shape != adata.shape or mask.dtype != bool:
        raise ValueError(
            f"mask= is {mask.shape} of {mask.dtype}; expected {adata.shape} of bool, True where "
            "an entry is hidden."
        )
    return mask
