"""BulkFormer and perturbations: genes that are turned down, compounds that it was taught."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from anndata import AnnData

from cfm._arguments import NOT_NEGATIVE, checks_arguments
from cfm.models._precision import Precision
from cfm.models.bulkformer._compound_signatures import compound_key
from cfm.models.bulkformer._compounds import CompoundLearner

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd


Kind = Literal["auto", "gene", "compound"]


class Perturbable(CompoundLearner):
    """A BulkFormer that answers for compounds and for genes."""

    @checks_arguments(remaining=NOT_NEGATIVE)
    def simulate(
        self,
        adata: AnnData,
        perturbation: Sequence[str],
        *,
        layer: str | None = None,
        groupby: str | None = None,
        batch_size: int = 64,
        seed: int = 0,
        kind: Kind = "auto",
        remaining: float = 0.0,
        strength: float = 1.0,
        features: pd.Series | None = None,
        precision: Precision = "auto",
    ) -> AnnData:
        """Turn genes down, add compounds, and say what the samples would then be.

        The predicted changes of log TPM are added to what was measured: of genes together the
        shift of :meth:`knock_down`, of each compound that of :meth:`predict_compound`. Log TPM
        does not fall below 0. Genes that are turned down have ``remaining`` of their TPM.

        Parameters
        ----------
        adata, layer, batch_size, precision
            As for :meth:`get_latent_representation`.
        perturbation
            Genes of the vocabulary, and compounds that the model was taught.
        groupby, seed
            Not used: each sample is predicted alone, and nothing is random.
        kind
            What names are: ``"gene"``, ``"compound"``, or ``"auto"``, genes if the vocabulary has
            them and compounds else.
        remaining
            Share of a gene's TPM that is left.
        strength
            What a compound's change is multiplied by. Signatures of directions say nothing of
            sizes: with 1 a gene that is sure to rise is given one natural log unit.
        features
            Of a compound that the model has none of; see :meth:`predict_compound`.

        Returns
        -------
        AnnData, samples by those genes of ``adata`` that are predicted, float32 log TPM; ``NaN``
        where a gene was not measured.

        Raises
        ------
        KeyError
            If a name is unknown to the model, or a gene is not measured.
        ValueError
            If the matrix is not log TPM, or an option is out of range.
        """
        genes = [
            p
            for p in perturbation
            if kind == "gene" or (kind == "auto" and p in self.vocabulary.genes)
        ]
        compounds = [p for p in perturbation if p not in genes]
        if features is not None and len(compounds) != 1:
            raise ValueError(
                f"features= describes one compound; found {len(compounds)} in {list(perturbation)}."
            )
        if kind == "auto" and compounds and features is None:
            unknown = [c for c in compounds if compound_key(c) not in self.compounds]
            if unknown:
                raise KeyError(
                    f"{unknown} are neither genes of the model (such as "
                    f"{', '.join(self.vocabulary.genes[:3])}) nor among the "
                    f"{len(self.compounds)} compounds that it was taught (train_compounds)."
                )
        shifts = [
            strength
            * self.predict_compound(
                adata,
                compound,
                features=features,
                layer=layer,
                batch_size=batch_size,
                precision=precision,
            )
            for compound in compounds
        ]
        lowered = self._positions(genes) if genes else np.zeros(0, dtype=np.int64)
        if genes:
            shift = self.knock_down(
                adata,
                genes,
                layer=layer,
                remaining=remaining,
                batch_size=batch_size,
                precision=precision,
            )
            shifts.append(shift)
        alignment = self._align(adata, layer)
        out = np.empty((adata.n_obs, len(alignment.columns)), dtype=np.float32)
        names = self.vocabulary.genes[alignment.positions]
        predicted = np.zeros(len(names), dtype=bool)
        change = np.zeros_like(out)
        for shift in shifts:
            found = shift.columns.get_indexer(names)
            predicted |= found >= 0
            change[:, found >= 0] += shift.to_numpy()[:, found[found >= 0]]
        for rows, values, _ in self._blocks(adata, alignment, layer, batch_size):
            measured = values[:, alignment.columns]
            made = np.maximum(measured + change[rows], 0.0)
            down = np.isin(alignment.positions, lowered)
            made[:, down] = np.log1p(np.expm1(measured[:, down]) * remaining)
            out[rows] = made
        return AnnData(
            out[:, predicted],
            obs=adata.obs[[]],
            var=adata.var[[]].iloc[alignment.columns[predicted]],
        )
