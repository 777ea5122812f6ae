"""What the property heads say of cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from cfm._arguments import checks_arguments
from cfm.data._warn import warn_user
from cfm.models._precision import Precision
from cfm.models.cellvq._apply import Applicable
from cfm.models.cellvq._reading import Units

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


class Predicting(Applicable):
    """A CellVQ that names properties of cells."""

    def choose_properties(self, properties: str | Sequence[str] | None = None) -> list[str]:
        """Return the names of the property heads that are asked for.

        By default those that make sense for any cells: what the model's provenance lists as
        ``default_properties``, or all.

        Raises
        ------
        KeyError
            If the model has no head of a name.
        ValueError
            If the model has no heads at all, or none is asked for.
        """
        if not self.properties:
            raise ValueError(
                "The model has no property heads; train it with setup_anndata(adata, "
                "labels_keys=[…]), or learn a property from its embeddings with cfm.tl.probe."
            )
        if properties is None:
            named = self.provenance.get("default_properties")
            usual = named if isinstance(named, list) else []
            chosen = [name for name in self.properties if name in usual] or list(self.properties)
        else:
            # each once, in the order that was asked for
            chosen = list(
                dict.fromkeys([properties] if isinstance(properties, str) else properties)
            )
        if not chosen:
            raise ValueError(
                f"properties= is empty; expected some of {list(self.properties)}, or None for all."
            )
        unknown = [name for name in chosen if name not in self.properties]
        if unknown:
            raise KeyError(
                f"The model has no property heads {unknown}; it has {list(self.properties)}."
            )
        return chosen

    @checks_arguments()
    @torch.inference_mode()
    def predict_properties(
        self,
        adata: AnnData | None = None,
        properties: str | Sequence[str] | None = None,
        *,
        layer: str | None = None,
        units: Units = "counts",
        total_counts: str | None = None,
        batch_size: int = 64,
        precision: Precision = "float32",
    ) -> dict[str, pd.DataFrame]:
        """Predict properties of cells, such as their type, tissue or disease.

        Parameters
        ----------
        adata, layer, units, total_counts, batch_size, precision
            As for :meth:`get_latent_representation`.
        properties
            Names of property heads (:attr:`properties`); by default those that make sense for any
            cells (``provenance["default_properties"]``), or all.

        Returns
        -------
        By name of a property a DataFrame, cells by classes, float32: the probabilities that the
        head gives, which sum to 1. They are not calibrated, and a cell of a kind that the head
        was not trained on gets one of its classes nonetheless. ``NaN`` for cells that express none
        of the model's genes.

        Raises
        ------
        KeyError
            If there is no such property, layer or column.
        ValueError
            If the model has no property heads, values are not in the units that are declared, or
            too few genes are found.

        Warns
        -----
        UserWarning
            If few of the model's genes are measured, cells express none of them, or a head knows
            a single class.

        Examples
        --------
        >>> import anndata as ad, cfm, numpy as np
        >>> genes = [f"G{i}" for i in range(20)]
        >>> model = cfm.models.CellVQ(
        ...     vocabulary=genes, n_layers=1, properties={"cell_type": ["B cell", "T cell"]}
        ... )
        >>> cells = ad.AnnData(np.eye(3, 20, dtype=np.float32) * 5)
        >>> cells.var_names = genes
        >>> model.predict_properties(cells)["cell_type"].columns.tolist()
        ['B cell', 'T cell']
        """
        chosen = self.choose_properties(properties)
        single = [name for name in chosen if len(self.properties[name]) == 1]
        if single:
            warn_user(
                f"The heads {single} know a single class each, which they give to every cell; "
                "nothing is learned from their answers."
            )
        reader = self._reader(adata, layer, units, total_counts)
        out = {
            name: np.full((reader.n_cells, len(self.properties[name])), np.nan, dtype=np.float32)
            for name in chosen
        }
        for part in self._encoded(reader, batch_size, precision):
            logits = self.module.classify(part.embedding.float())
            for name, table in out.items():
                table[part.rows] = torch.softmax(logits[name].double(), dim=-1).cpu().numpy()
        names = self._adata_or_own(adata).obs_names
        return {
            name: pd.DataFrame(table, index=names, columns=self.properties[name])
            for name, table in out.items()
        }
