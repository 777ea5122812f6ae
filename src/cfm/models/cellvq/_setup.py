"""Cells are registered for training: which columns say what, and in which units they come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalObsField, LayerField

from cfm._arguments import checks_arguments
from cfm.data import GeneVocabulary
from cfm.data._matrix import check_unique_names, get_matrix
from cfm.data._warn import warn_user
from cfm.models._base import PretrainedModel, check_column
from cfm.models.cellvq._reading import CellReader, Units

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


#: Cells that are checked at a time.
_BLOCK = 2048


class Registered(PretrainedModel):
    """A model of registered cells and what is known of them."""

    @classmethod
    @checks_arguments()
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        labels_keys: Sequence[str] = (),
        study_key: str | None = None,
        units: Units = "counts",
        total_counts: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Register cells for training, and check that they hold what is said of them.

        Parameters
        ----------
        adata
            Cells by genes, any storage.
        layer
            Layer to read instead of ``X``.
        labels_keys
            Columns of ``obs`` with properties to learn (cell type, tissue, disease, anything): the
            model gets a head for each. Cells without a label (``NaN`` or ``""``) are not judged.
        study_key
            Column with the study: training is judged on studies it has not seen. Without it, on
            cells.
        units
            ``"counts"``, or ``"log1p_cp10k"``: counts per 10,000 with ``log1p``, which are turned
            back into counts by ``total_counts``.
        total_counts
            Column with the counts of a cell before it was normalised, for ``"log1p_cp10k"``.
        **kwargs
            For :meth:`scvi.data.AnnDataManager.register_fields`.

        Raises
        ------
        KeyError
            If the layer or a column does not exist.
        TypeError
            If ``adata`` is no AnnData, or ``labels_keys`` one text.
        ValueError
            If values are not in these units, a property has no label at all or is named twice,
            studies are missing, or names of genes are not unique or empty.

        Warns
        -----
        UserWarning
            If a property has one level only: its head has nothing to tell apart.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        get_matrix(adata, layer=layer)
        check_unique_names(adata.var_names, axis="var")
        if isinstance(labels_keys, str):
            raise TypeError(f"labels_keys={labels_keys!r} is one text; expected a list.")
        labels_keys = list(labels_keys)
        if len(set(labels_keys)) < len(labels_keys):
            raise ValueError(f"labels_keys={labels_keys} names a column twice; name each once.")
        for key in labels_keys:
            _check_labels(adata, key)
        if study_key is not None:
            check_column(adata, study_key)
        check_units(adata, layer, units, total_counts)
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),
            CategoricalObsField("study", study_key),
        ]
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    def _setup_arguments(self) -> dict[str, Any]:
        return self.adata_manager._get_setup_method_args()["setup_args"]

    def _registered_labels(self) -> dict[str, np.ndarray]:
        """Return the registered properties by column, ``(n,)`` object each; ``""`` = no label."""
        keys = self._setup_arguments()["labels_keys"]
        return {key: labels_of(self.adata, key) for key in keys}


def labels_of(adata: AnnData, key: str) -> np.ndarray:
    """Return a column of ``obs`` as text, ``(n,)`` object; what is missing is ``""``."""
    column = pd.Series(adata.obs[key].to_numpy(dtype=object))
    return np.where(column.isna(), "", column.astype(str)).astype(object)


def levels_of(labels: np.ndarray) -> list[str]:
    """Return the levels of a property, sorted, without the missing one."""
    return sorted(set(labels.tolist()) - {""})


def _check_labels(adata: AnnData, key: str) -> None:
    if key not in adata.obs:
        raise KeyError(f"adata.obs has no column {key!r}; it has {adata.obs.columns.tolist()}.")
    levels = levels_of(labels_of(adata, key))
    if not levels:
        raise ValueError(
            f"adata.obs[{key!r}] has no label in any of {adata.n_obs} cells; leave it out of "
            "labels_keys, or fill it in."
        )
    if len(levels) == 1:
        warn_user(
            f"adata.obs[{key!r}] has one level only ({levels[0]!r}): its head will answer with it "
            "whatever the cell; leave it out of labels_keys, or add cells of another kind."
        )


def check_units(adata: AnnData, layer: str | None, units: Units, total_counts: str | None) -> None:
    """Check, in one pass, that cells are in the units that are declared, ready for training.

    Raises
    ------
    KeyError
        If the layer or the column of ``total_counts`` does not exist.
    ValueError
        If values are not in these units, or what is needed to turn them into counts is missing.
    """
    if units == "log1p_cp10k" and total_counts is None:
        raise ValueError(
            "Training is on counts, and units='log1p_cp10k' lacks the counts per cell; name the "
            "column of obs that holds them with total_counts=, or register a layer with counts."
        )
    everything = GeneVocabulary(list(adata.var_names))
    reader = CellReader(adata, everything, layer=layer, units=units, total_counts=total_counts)
    for start in range(0, adata.n_obs, _BLOCK):
        reader.cells(np.arange(start, min(start + _BLOCK, adata.n_obs)))
