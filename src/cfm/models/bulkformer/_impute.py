"""Expression that BulkFormer predicts: missing entries, unmeasured genes, knock-downs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from cfm._arguments import NOT_NEGATIVE, checks_arguments
from cfm.models._precision import Precision
from cfm.models.bulkformer._apply import Applicable
from cfm.models.bulkformer._constants import MISSING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


class Imputer(Applicable):
    """A BulkFormer that predicts expression."""

    @checks_arguments()
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
        filled, _ = self.impute_and_count(
            adata, layer=layer, mask=mask, batch_size=batch_size, precision=precision
        )
        return filled

    @checks_arguments()
    def impute_and_count(
        self,
        adata: AnnData | None = None,
        *,
        layer: str | None = None,
        mask: np.ndarray | None = None,
        batch_size: int = 64,
        precision: Precision = "auto",
    ) -> tuple[np.ndarray, int]:
        """Do as :meth:`impute`, and also return how many entries were missing or hidden."""
        adata = self._adata_or_own(adata)
        alignment = self._align(adata, layer)
        mask = check_mask(mask, adata)
        predicted = self._predicted(adata, alignment, layer, mask, batch_size, precision)
        out = np.empty(adata.shape, dtype=np.float32)
        n_missing = 0
        for rows, values, prediction in predicted:
            filled = np.full(values.shape, np.nan, dtype=np.float32)
            filled[:, alignment.columns] = prediction[:, alignment.positions]
            missing = np.isnan(values)
            n_missing += int(missing.sum())
            out[rows] = np.where(missing, filled, values)
        return out, n_missing

    def absent_genes(self, adata: AnnData) -> pd.Index:
        """Return the genes of the vocabulary that ``adata`` does not have."""
        self.require_genes()
        found = self.vocabulary.align(adata.var_names).positions
        return self.vocabulary.genes.delete(found)

    @checks_arguments()
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
        mask = check_mask(mask, adata)
        out = np.empty((adata.n_obs, len(place)), dtype=np.float32)
        for rows, _, prediction in self._predicted(
            adata, alignment, layer, mask, batch_size, precision
        ):
            out[rows] = prediction[:, place]
        return pd.DataFrame(out, index=adata.obs_names, columns=self.vocabulary.genes[place])

    @checks_arguments(remaining=NOT_NEGATIVE)
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
        adata = self._adata_or_own(adata)
        alignment = self._align(adata, layer)
        place = self._positions([genes] if isinstance(genes, str) else genes)
        absent = self.vocabulary.genes[place[~np.isin(place, alignment.positions)]].tolist()
        if absent:
            raise KeyError(f"adata does not measure {absent}; what is missing cannot be lowered.")
        out = np.empty((adata.n_obs, len(self.vocabulary)), dtype=np.float32)
        dtype = self.inference_dtype(precision)
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


def check_mask(mask: np.ndarray | None, adata: AnnData) -> np.ndarray | None:
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
