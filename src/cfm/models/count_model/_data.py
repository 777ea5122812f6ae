"""AnnData to counts by gene of a vocabulary, and to conditions; other units are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.data.fields import CategoricalObsField, LayerField

from cfm._adata import warn_user
from cfm._docs import fill_docs
from cfm.data._counts import CountReader, check_count_values
from cfm.data._matrix import check_unique_names, get_matrix, in_memory_frame, row_blocks, to_dense
from cfm.models._base import TEXTS, PretrainedModel, check_column
from cfm.models.count_model._conditions import ConditionLevels, PerturbationFeatures
from cfm.pp._perturbation_parts import split_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from cfm.data import GeneVocabulary
    from cfm.models.count_model._module import Conditions

#: In counts: a gene that is not measured.
NOT_MEASURED = -1
#: Cells that are read at a time.
_BLOCK = 512
REMEDY = (
    "raw counts are expected: pass the layer that holds them with layer=, such as layer='counts'; "
    "round expected counts first."
)


class DenseCountReader(CountReader):
    """Counts of an AnnData by gene of a vocabulary, a few cells at a time, as arrays.

    Parameters
    ----------
    adata
        Cells by genes, any storage.
    vocabulary
        Genes of the model.
    layer
        Layer with the counts instead of ``X``.

    Errors and warnings are those of :class:`cfm.data._counts.CountReader`.
    """

    def __init__(self, adata: AnnData, vocabulary: GeneVocabulary, layer: str | None) -> None:
        super().__init__(adata, vocabulary, layer=layer, min_genes=1, remedy=REMEDY)

    def counts(self, rows: np.ndarray) -> np.ndarray:  # type: ignore[override]
        """Return ``(b, n_genes)`` int64 counts; −1 = not measured."""
        block = self._rows[rows]
        check_count_values(_stored_values(block), self._where, REMEDY)
        out = np.full((len(rows), self.alignment.n_vocabulary), NOT_MEASURED, dtype=np.int64)
        out[:, self.alignment.positions] = to_dense(block)[:, self.alignment.columns]
        return out

    def counts_of(self, rows: slice) -> np.ndarray:
        """Return :meth:`counts` of neighbouring cells."""
        return self.counts(np.arange(rows.start, rows.stop))

    def names(self, var_names: pd.Index) -> pd.Index:
        """Return the genes of the vocabulary by the names that ``adata`` has for them."""
        names = self.vocabulary.genes.to_numpy(dtype=object, copy=True)
        names[self.alignment.positions] = var_names[self.alignment.columns]
        return pd.Index(names)

    def depths(self) -> np.ndarray:
        """Return the library size of each cell over the genes of the model, ``(n,)`` float32."""
        starts = range(0, self.n_cells, _BLOCK)
        blocks = (self.counts_of(slice(i, min(i + _BLOCK, self.n_cells))) for i in starts)
        return np.concatenate([np.maximum(b, 0).sum(1) for b in blocks]).astype(np.float32)


def _stored_values(block: Any) -> np.ndarray:
    """Return the stored values of a sparse block, or the dense block."""
    return np.asarray(block.data if sparse.issparse(block) else block)


def check_count_matrix(matrix: Any, where: str, *, limit: int | None = None) -> None:
    """Check a whole matrix, and warn of counts above a limit.

    Parameters
    ----------
    matrix
        Any storage.
    where
        Its place in the AnnData, for messages.
    limit
        Largest count with a value of its own in the model, if there is one.

    Raises
    ------
    ValueError
        If it does not hold counts.

    Warns
    -----
    UserWarning
        If counts lie above the limit.
    """
    beyond, largest = 0, 0.0
    for _, block in row_blocks(matrix):
        values = _stored_values(block)
        check_count_values(values, where, REMEDY)
        if values.size and limit is not None:
            beyond += int((values > limit).sum())
            largest = max(largest, float(values.max()))
    if beyond and limit is not None:
        warn_user(
            f"{beyond} counts of {where} lie above {limit:,} (largest {largest:,.0f}); the model "
            f"has one value for all of them, and generates it as {limit + 1:,}."
        )


def check_control(adata: AnnData, perturbation_key: str | None, control: str | None) -> None:
    """Check that the column of perturbations and its control are given together and exist.

    Raises
    ------
    ValueError
        If they are not, or no cell is a control.
    """
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
            f"perturbation_key={perturbation_key!r} was given without control=; name the "
            f"unperturbed one of {found[:8]}."
        )
    if control not in found:
        raise ValueError(
            f"adata.obs[{perturbation_key!r}] has no control {control!r}; it has {found[:8]}. "
            "The model compares with unperturbed cells."
        )


class RegisteredCounts(PretrainedModel):
    """Base class of models of counts under conditions: registered data, conditions by name."""

    #: Largest count with a value of its own in the model, if there is one.
    largest_count: ClassVar[int | None] = None
    vocabulary: GeneVocabulary
    levels: ConditionLevels
    perturbation_features: PerturbationFeatures | None

    @classmethod
    @fill_docs(TEXTS)
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
        %(counts_layer)s
        source_key
            Column of ``obs`` with the cell line, donor or cell type.
        perturbation_key
            Column with the perturbation, combinations as ``"A+B"``.
        control
            Its level for unperturbed cells; needed with ``perturbation_key``.
        covariate_keys
            Columns with further conditions, such as a batch or a time, for models that use them.
        study_key
            Column with the study: training is judged on studies it has not seen. Without it, on
            cells.
        %(register_fields)s

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
            If counts lie above the range of the model, 9,999 for Lingshu-Cell.
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
        check_control(adata, perturbation_key, control)
        where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
        check_count_matrix(matrix, where, limit=cls.largest_count)
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),
            CategoricalObsField("study", study_key),
        ]
        cls._register(adata, fields, setup_method_args, **kwargs)

    def _registered_levels(self, adata: AnnData) -> ConditionLevels:
        given = self.adata_manager.registry["setup_args"]
        return ConditionLevels.of(
            in_memory_frame(adata.obs),
            given["source_key"],
            given["perturbation_key"],
            given["control"],
            given["covariate_keys"],
        )

    def _registered_reader(self) -> DenseCountReader:
        """Return a reader of the registered counts."""
        self._require_own_data()
        return DenseCountReader(self.adata, self.vocabulary, self._registered_layer())

    def _conditions_of(self, obs: pd.DataFrame) -> Conditions:
        """Return the conditions in the registered columns of ``obs``; depths are unknown."""
        levels = self.levels

        def column(key: str | None) -> np.ndarray | None:
            return None if key is None else obs[key].astype(str).to_numpy(dtype=object)

        return levels.conditions(
            len(obs),
            source=column(levels.source_key),
            perturbation=column(levels.perturbation_key),
            covariates=obs[list(levels.covariates)].astype(str) if levels.covariates else None,
        )

    def _numbered(
        self,
        n: int,
        *,
        source: np.ndarray | None,
        perturbation: np.ndarray | None,
        covariates: pd.DataFrame | None,
        features: pd.Series | None,
        depth: np.ndarray | None = None,
    ) -> Conditions:
        """Turn names into numbers; a perturbation may be described by features."""
        described: list[str] = []
        rows = None
        if features is not None:
            if self.perturbation_features is None:
                raise ValueError(
                    "features= was given, but the model was trained without perturbation_features=."
                )
            wanted = sorted(set() if perturbation is None else set(perturbation))
            known = {*self.levels.perturbations, self.levels.control}
            new = [p for name in wanted for p in split_parts(name) if p not in known]
            if len(set(new)) != 1:
                raise ValueError(
                    f"features= describes one perturbation that the model does not have; found "
                    f"{sorted(set(new))} in {wanted}."
                )
            described = new[:1]
            row = torch.from_numpy(self.perturbation_features.describe(features))
            rows = torch.cat([torch.from_numpy(self.perturbation_features.values), row[None]])
        conditions = self.levels.conditions(
            n,
            source=source,
            perturbation=perturbation,
            covariates=covariates,
            depth=depth,
            described=described,
        )
        return conditions._replace(features=rows)

    def _cells_to_perturb(
        self,
        adata: AnnData,
        perturbation: Sequence[str],
        layer: str | None,
        groupby: str | None,
        features: pd.Series | None,
        *,
        covariates: bool,
        depths: bool,
    ) -> tuple[pd.DataFrame, DenseCountReader, Conditions]:
        """Return ``obs``, counts, and conditions under a perturbation, of unperturbed cells."""
        if isinstance(perturbation, str):
            raise TypeError(f"perturbation={perturbation!r} is one text; expected a list of parts.")
        if adata.n_obs == 0:
            raise ValueError("adata has no cell to start from; pass at least one.")
        check_unique_names(adata.obs_names, axis="obs")
        obs = in_memory_frame(adata.obs)
        reader = DenseCountReader(adata, self.vocabulary, layer)
        depth = reader.depths()
        conditions = self._numbered(
            adata.n_obs,
            source=self._sources(obs, groupby),
            perturbation=np.full(adata.n_obs, "+".join(perturbation), dtype=object),
            covariates=self._covariates(obs) if covariates else None,
            features=features,
            depth=np.where(depth > 0, depth, np.nan) if depths else None,
        )
        return obs, reader, conditions

    def _sources(self, obs: pd.DataFrame, groupby: str | None) -> np.ndarray | None:
        """Return the source of each cell."""
        key = self.levels.source_key
        if key is None:
            return None
        column = key if key in obs else groupby
        if column is None or column not in obs:
            raise KeyError(
                f"The model needs the source of each cell: adata.obs has no column {key!r}, which "
                "it was trained with; add it, or name another with groupby=."
            )
        return obs[column].astype(str).to_numpy(dtype=object)

    def _covariates(self, obs: pd.DataFrame) -> pd.DataFrame | None:
        """Return the covariates that ``obs`` has; the others are unknown."""
        found = [key for key in self.levels.covariates if key in obs]
        return obs[found].astype(str) if found else None
