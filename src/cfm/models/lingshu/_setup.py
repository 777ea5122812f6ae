"""Cells are registered for training: which columns say what, and whether these are counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalObsField, LayerField

from cfm.data._matrix import check_unique_names, get_matrix
from cfm.models._base import PretrainedModel, check_column
from cfm.models.lingshu._levels import ConditionLevels
from cfm.models.lingshu._reading import check_counts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


class Registered(PretrainedModel):
    """A model of registered counts and conditions."""

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        source_key: str | None = None,
        perturbation_key: str | None = None,
        control: str | None = None,
        covariate_keys: Sequence[str] = (),
        study_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Register cells for training, and check that they hold counts.

        Parameters
        ----------
        adata
            Cells by genes, raw counts, any storage.
        layer
            Layer with the counts instead of ``X``.
        source_key
            Column of ``obs`` with what a cell is: cell line, donor or cell type.
        perturbation_key
            Column with what was done to it, combinations as ``"A+B"``.
        control
            Its level for unperturbed cells; needed with ``perturbation_key``.
        covariate_keys
            Columns with further conditions, such as a batch or a time.
        study_key
            Column with the study: training is judged on studies it has not seen. Without it, on
            cells.
        **kwargs
            For :meth:`scvi.data.AnnDataManager.register_fields`.

        Raises
        ------
        KeyError
            If the layer or a column does not exist.
        TypeError
            If ``adata`` is no AnnData, or ``covariate_keys`` one text.
        ValueError
            If values are no counts, columns have missing values or are named twice, names of
            genes are not unique, or no cell is a control.

        Warns
        -----
        UserWarning
            If counts lie above 9,999, the range of the quantiser.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        matrix = get_matrix(adata, layer=layer)
        check_unique_names(adata.var_names, axis="var")
        if isinstance(covariate_keys, str):
            raise TypeError(f"covariate_keys={covariate_keys!r} is one text; expected a list.")
        conditions = [k for k in (source_key, perturbation_key, *covariate_keys) if k is not None]
        for key in [*conditions, *([] if study_key is None else [study_key])]:
            check_column(adata, key)
        if len(set(conditions)) < len(conditions):
            raise ValueError(f"A column is named as two conditions: {conditions}; name each once.")
        _check_control(adata, perturbation_key, control)
        check_counts(matrix, "adata.X" if layer is None else f"adata.layers[{layer!r}]")
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),
            CategoricalObsField("study", study_key),
        ]
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    def _setup_arguments(self) -> dict[str, Any]:
        return self.adata_manager._get_setup_method_args()["setup_args"]

    def _registered_levels(self, adata: AnnData) -> ConditionLevels:
        given = self._setup_arguments()
        return ConditionLevels.of(
            adata.obs,
            given["source_key"],
            given["perturbation_key"],
            given["control"],
            given["covariate_keys"],
        )


def _check_control(adata: AnnData, perturbation_key: str | None, control: str | None) -> None:
    if perturbation_key is None:
        if control is not None:
            raise ValueError(
                f"control={control!r} was given without perturbation_key=, the column that holds "
                "it."
            )
        return
    found = sorted(set(adata.obs[perturbation_key].astype(str)))
    if control is None:
        raise ValueError(
            f"perturbation_key={perturbation_key!r} was given without control=; say which of "
            f"{found[:8]} is unperturbed."
        )
    if control not in found:
        raise ValueError(
            f"adata.obs[{perturbation_key!r}] has no control {control!r}; it has {found[:8]}. "
            "Unperturbed cells are what the model compares with."
        )
