"""Protocols of models: methods that a tool needs, whatever the class of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Literal

    import numpy as np
    import pandas as pd
    from anndata import AnnData

    from cfm.data import GeneVocabulary
    from cfm.models.cellvq import CellCodes, Codebook
    from cfm.models.pulsar import DonorEmbeddings


@runtime_checkable
class AttentionModel(Protocol):
    """A model that shows which gene attends to which.

    Examples
    --------
    >>> from cfm.models import AttentionModel, CellPulse
    >>> isinstance(CellPulse.from_pretrained("cellpulse-mini"), AttentionModel)
    True
    """

    def get_attention(
        self, adata: AnnData, *, layer: str | None = None
    ) -> Iterator[tuple[pd.Index, np.ndarray]]:
        """Yield the attention maps of observations, one at a time and in their order.

        Parameters
        ----------
        adata
            Observations by genes, of the kind that the model reads.
        layer
            Layer to read instead of ``X``.

        Yields
        ------
        tokens
            ``(n + 1,)`` names of the tokens: ``"<summary>"``, then ``n`` different genes by the
            names that the model has for them. ``n`` may differ between observations and be 0.
        weights
            ``(layers, heads, n + 1, n + 1)`` float32; rows (queries) sum to 1.
        """


@runtime_checkable
class GeneFactorModel(Protocol):
    """A model with a linear gene-gene term, given by factors of its genes.

    Examples
    --------
    >>> from cfm.models import CellPulse, GeneFactorModel
    >>> isinstance(CellPulse.from_pretrained("cellpulse-mini"), GeneFactorModel)
    True
    """

    def get_gene_factors(self) -> tuple[pd.Index, np.ndarray]:
        """Return the genes and their factors.

        Returns
        -------
        genes
            ``(n_genes,)`` names, as in :meth:`AttentionModel.get_attention`.
        factors
            ``(n_genes, n_factors)`` float32; the inner product of two rows is how strongly the
            model expects the two genes to move together (> 0) or against each other (< 0).
        """


@runtime_checkable
class PerturbationModel(Protocol):
    """A model that predicts observations after a perturbation.

    :func:`cfm.tl.simulate_perturbation` takes any object with this method as ``model=``: it chooses
    the observations to start from, and stores the result in an AnnData.

    Examples
    --------
    >>> from cfm.models import CellPulse, PerturbationModel
    >>> isinstance(CellPulse.from_pretrained("cellpulse-mini"), PerturbationModel)
    True
    """

    def simulate(
        self,
        adata: AnnData,
        perturbation: Sequence[str],
        *,
        layer: str | None = None,
        groupby: str | None = None,
        batch_size: int = 64,
        seed: int = 0,
        **options: Any,
    ) -> AnnData:
        """Predict a perturbation of observations, or make new ones in their place.

        Parameters
        ----------
        adata
            Unperturbed observations by genes, in memory, with their ``obs``: one per predicted
            observation. The same one may occur several times under different names.
        perturbation
            Parts of the perturbation, one or more names without order.
        layer
            Layer to read instead of ``X``.
        groupby
            Column of ``obs`` with the group (cell type, donor) of an observation, if given.
        batch_size
            Observations at a time; the result does not depend on it.
        seed
            Seed of what is random.
        **options
            The model's own.

        Returns
        -------
        AnnData with a row for each row of ``adata``, in that order, and ``X`` in the units of what
        was read. ``var_names`` are the genes that are predicted: by the names that ``adata`` has
        for them, and by the model's names for genes that ``adata`` does not measure. Further
        results for single observations are in ``obs``, tables in ``uns``; the tool keeps both.

        Raises
        ------
        KeyError
            If the model cannot predict this perturbation.
        """


@runtime_checkable
class GeneEmbeddingModel(Protocol):
    """A model that embeds each gene in the context of its observation.

    Examples
    --------
    >>> from cfm.models import BulkFormer, GeneEmbeddingModel
    >>> model = BulkFormer(vocabulary=["A", "B", "C"], graph=([[0], [1]], [0.9]))
    >>> isinstance(model, GeneEmbeddingModel)
    True
    """

    vocabulary: GeneVocabulary

    def get_gene_embeddings(
        self, adata: AnnData, *, layer: str | None = None, batch_size: int = 64, **kwargs: Any
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the embeddings of all genes of the vocabulary, a few observations at a time.

        Parameters
        ----------
        adata
            Observations by genes, of the kind that the model reads.
        layer
            Layer to read instead of ``X``.
        batch_size
            Observations at a time.
        **kwargs
            What else the model takes.

        Yields
        ------
        rows
            Slice of the observations.
        embeddings
            ``(b, n_genes, dim)`` float32.
        """


@runtime_checkable
class DonorModel(Protocol):
    """A model that embeds donors, each by all of its cells.

    Examples
    --------
    >>> from cfm.models import DonorModel, Pulsar
    >>> isinstance(Pulsar(size="mini"), DonorModel)
    True
    """

    def get_donor_embeddings(
        self,
        adata: AnnData,
        *,
        donor_key: str | None = None,
        use_rep: str | None = None,
        n_cells: int | None = 1024,
        n_draws: int = 1,
        seed: int = 0,
        batch_size: int = 16,
    ) -> DonorEmbeddings:
        """Embed donors.

        Parameters
        ----------
        adata
            Cells of donors.
        donor_key
            Column of ``obs`` with the donor.
        use_rep
            Name in ``obsm`` of what represents a cell.
        n_cells
            Cells to draw of a donor, without replacement; all with ``None``.
        n_draws
            Draws to average over.
        seed
            Seed of the draws.
        batch_size
            Donors at a time; the result does not depend on it.

        Returns
        -------
        DonorEmbeddings
            Donors by sorted names, with ``embedding`` ``(n_donors, dim)`` float32.
        """


@runtime_checkable
class CodeModel(Protocol):
    """A model that gives each cell one of a fixed set of codes.

    Examples
    --------
    >>> from cfm.models import CellPulse, CellVQ, CodeModel
    >>> isinstance(CellVQ.from_pretrained("cellvq-mini"), CodeModel)
    True
    >>> isinstance(CellPulse.from_pretrained("cellpulse-mini"), CodeModel)
    False
    """

    vocabulary: GeneVocabulary

    def get_cell_codes(
        self,
        adata: AnnData,
        *,
        layer: str | None = None,
        units: Literal["counts", "log1p_cp10k"] = "counts",
        total_counts: str | None = None,
        batch_size: int = 64,
    ) -> CellCodes:
        """Return the codes of cells.

        Parameters
        ----------
        adata
            Cells by genes.
        layer
            Layer to read instead of ``X``.
        units
            What is read: raw counts, or counts per 10,000 with ``log1p``.
        total_counts
            Column of ``obs`` with the counts of a cell, for normalised data.
        batch_size
            Cells at a time; the result does not depend on it.

        Returns
        -------
        CellCodes
            In the order of the cells.
        """

    def get_codebook(self) -> Codebook:
        """Return all codes that the model can give."""
