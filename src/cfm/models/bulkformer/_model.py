"""BulkFormer: the public class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from cfm._arguments import checks_arguments
from cfm.models._precision import Precision
from cfm.models.bulkformer._perturb import Perturbable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData


Pooling = Literal["mean", "max", "median"]


class BulkFormer(Perturbable):
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

    @checks_arguments()
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

    @checks_arguments()
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
