"""What a tool may ask of a model, whatever its class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import pandas as pd
    from anndata import AnnData


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
