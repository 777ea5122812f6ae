"""The count model of perturbed cells: the public class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from cfm._arguments import checks_arguments
from cfm._docs import fill_docs
from cfm.data import GeneVocabulary
from cfm.data._matrix import in_memory_frame
from cfm.hub._checkpoint import validate_config
from cfm.models._base import TEXTS, load_weights, stored_genes
from cfm.models.count_model._conditions import ConditionLevels, PerturbationFeatures
from cfm.models.count_model._data import RegisteredCounts
from cfm.models.count_model._module import (
    Conditions,
    NegativeBinomialModule,
    perturbed_counts,
    uniform_numbers,
)
from cfm.models.count_model._training import fit_counts

if TYPE_CHECKING:
    from cfm.hub import Checkpoint

Start = Literal["cell", "noise"]

#: Tensor of a checkpoint with the features of perturbations.
_FEATURES = "features"


@fill_docs(TEXTS)
class PerturbationCountModel(RegisteredCounts):
    r"""Negative binomial model of the counts of cells under perturbations.

    Each gene's counts are negative binomial. Their mean follows from the source of a cell (cell
    line, donor or cell type), its perturbation and its library size, their dispersion from the
    gene. Effects that were not measured in a source are predicted from other sources, those of
    perturbations that were measured nowhere from their features. It is fitted in seconds to
    minutes on one core, and can be used alone or beside the network of
    :class:`cfm.models.LingshuCell` (``count_model=``).

    Parameters
    ----------
    adata
        Cells by genes, raw counts, registered with :meth:`setup_anndata`.
    vocabulary
        Genes of the model; by default ``adata.var_names``.
    levels
        Conditions of the model (:class:`cfm.models.count_model.ConditionLevels`); by default those
        of ``adata``.
    %(perturbation_features)s

    Attributes
    ----------
    module
        Its tables.
    vocabulary
        Its genes.
    levels
        Its conditions.
    perturbation_features
        Features of the perturbations, or ``None``.

    Notes
    -----
    With the library size :math:`N_i` of a cell, the mean log expression :math:`m_{sg}` of the
    controls of its source and the effects :math:`e_{spg}` of the parts of its perturbation,

    .. math:: x_{ig} \sim \mathrm{NB}(\text{mean } N_i \rho_{spg}, \text{ dispersion } \phi_g),
        \qquad \mathrm{E}\,\log(1 + 10^4 x_{ig} / N_i) = m_{sg} + \sum_{p} e_{spg} ,

    where :math:`\rho` is solved for. It is not part of a published model.

    Examples
    --------
    >>> import cfm
    >>> screen = cfm.datasets.toy_perturbation()
    >>> cfm.models.PerturbationCountModel.setup_anndata(
    ...     screen, source_key="cell_type", perturbation_key="perturbation", control="control"
    ... )
    >>> model = cfm.models.PerturbationCountModel(screen)
    >>> model.train()
    >>> effects = model.predict_effects("IFNB1")
    >>> effects.shape
    (4, 300)
    """

    def __init__(
        self,
        adata: AnnData | None = None,
        *,
        vocabulary: Sequence[str] | GeneVocabulary | None = None,
        levels: ConditionLevels | None = None,
        perturbation_features: pd.DataFrame | PerturbationFeatures | None = None,
    ) -> None:
        super().__init__(adata)
        vocabulary = self._vocabulary_of(adata, vocabulary)
        self.vocabulary = vocabulary
        if levels is None:
            levels = ConditionLevels() if adata is None else self._registered_levels(adata)
        described = perturbation_features
        if described is not None and not isinstance(described, PerturbationFeatures):
            described = PerturbationFeatures.of(described, levels.control)
        self.perturbation_features = described
        self.levels = levels if described is None else described.levels(levels)
        self.module = NegativeBinomialModule(
            len(vocabulary), len(self.levels.sources), len(self.levels.perturbations)
        )
        self._model_summary_string = (
            f"PerturbationCountModel: {len(vocabulary)} genes, {len(self.levels.sources)} sources, "
            f"{len(self.levels.perturbations)} perturbations"
        )

    @property
    def device(self) -> torch.device:
        """Device of the tables."""
        return self.module.control.device

    def train(self) -> None:  # type: ignore[override]
        """Fit means, effects and dispersions to the registered cells.

        Effects of conditions with at least five cells are measured, and shrunk by what chance
        explains of them; the others are predicted.

        Raises
        ------
        ValueError
            If the model has no data, or they are no counts.

        Warns
        -----
        UserWarning
            If a perturbation has too few cells in every source, and no features: its effect is 0.
        """
        reader = self._registered_reader()
        conditions = self._conditions_of(in_memory_frame(self.adata.obs))
        rows = np.arange(self.adata.n_obs)
        device, features = self.device, self.perturbation_features
        fitted = fit_counts(reader, rows, conditions, self.levels, features)
        self.module = fitted.to(device)
        self.is_trained_ = True
        self.mark_trained(self.registered_categories("study"))

    @checks_arguments()
    def predict_effects(
        self, perturbation: str | Sequence[str], *, features: pd.Series | None = None
    ) -> pd.DataFrame:
        """Return the effect of a perturbation in each source.

        Parameters
        ----------
        perturbation
            Name, or parts of a combination.
        features
            Features of a perturbation that is not in the table of the model.

        Returns
        -------
        Sources by genes, float32: change of the mean of log1p counts per 10,000 against the
        controls of the source. A model without sources has one row, ``"all"``.

        Raises
        ------
        KeyError
            If the model does not have the perturbation.
        ValueError
            If the model is not trained, or has no perturbations.
        """
        self._check_trained()
        name = perturbation if isinstance(perturbation, str) else "+".join(perturbation)
        sources = self.levels.sources
        wanted = self._numbered(
            max(1, len(sources)),
            source=np.array(sources, dtype=object) if sources else None,
            perturbation=np.full(max(1, len(sources)), name, dtype=object),
            covariates=None,
            features=features,
        )
        parts = [p for p in wanted.parts[0].tolist() if p >= 0]
        effects = [
            self.module.expected_log(s, parts, wanted.features) - self.module.control[s]
            for s in wanted.source.tolist()
        ]
        return pd.DataFrame(
            torch.stack(effects).cpu().numpy(),
            index=sources or ["all"],
            columns=self.vocabulary.genes.to_list(),
        )

    @checks_arguments()
    @fill_docs(TEXTS)
    def simulate(
        self,
        adata: AnnData,
        perturbation: Sequence[str],
        *,
        layer: str | None = None,
        groupby: str | None = None,
        batch_size: int = 64,
        seed: int = 0,
        start: Start = "cell",
        features: pd.Series | None = None,
    ) -> AnnData:
        """Draw a perturbed cell for each unperturbed one, with its source and library size.

        From ``"noise"``, counts are drawn anew. From the ``"cell"``, each count keeps its quantile:
        a gene whose count is high among control cells has an equally high one among perturbed
        cells, and a gene that the perturbation does not change keeps its count.

        Parameters
        ----------
        adata
            Unperturbed cells by genes, raw counts. Genes of the model that it lacks are drawn.
        %(perturbation_parts)s
        %(counts_layer)s
        %(sources)s
        batch_size
            Cells at a time; the result does not depend on it.
        %(cell_seed)s
        %(start)s
        %(new_features)s

        Returns
        -------
        AnnData, cells by the genes of the model, CSR int32 counts; genes by the names that
        ``adata`` has for them.

        Raises
        ------
        KeyError
            If the model does not have the perturbation or a source.
        ValueError
            If there is no cell, values are no counts, or the model is not trained.
        """
        self._check_trained()
        n = adata.n_obs
        obs, reader, conditions = self._cells_to_perturb(
            adata, perturbation, layer, groupby, features, covariates=False, depths=True
        )
        names = [str(name) for name in adata.obs_names]
        dispersion = self.module.log_dispersion.exp().double().cpu().numpy()
        blocks = []
        for first in range(0, n, batch_size):
            rows = slice(first, min(first + batch_size, n))
            own = conditions.rows(rows)
            made = perturbed_counts(
                reader.counts_of(rows),
                uniform_numbers(names[rows], len(self.vocabulary), seed),
                self._means(own),
                dispersion,
                self._means(own.control()) if start == "cell" else None,
            )
            blocks.append(sparse.csr_matrix(made.astype(np.int32)))
        return AnnData(
            sparse.vstack(blocks, format="csr"),
            obs=obs[[]],
            var=pd.DataFrame(index=reader.names(adata.var_names)),
        )

    def _means(self, conditions: Conditions) -> np.ndarray:
        return self.module.mean_counts(conditions.to(self.device)).cpu().numpy()

    def _check_trained(self) -> None:
        if self.levels.perturbation_key is None:
            raise ValueError(
                "The model was made without perturbation_key=, so it has no perturbations."
            )
        if not self.is_trained_:
            raise ValueError("The model is not trained; call train() first.")

    def _contents(self) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, str]]:
        tensors = dict(self.module.state_dict())
        config: dict[str, Any] = {"levels": vars(self.levels), "sizes": self.module.sizes}
        if self.perturbation_features is not None:
            config["perturbation_features"] = self.perturbation_features.config()
            tensors[_FEATURES] = torch.from_numpy(self.perturbation_features.values)
        return tensors, config, self._genes_file()

    @classmethod
    def _from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        config, tensors = dict(checkpoint.config), dict(checkpoint.tensors)
        with validate_config(cls.__name__, checkpoint.name, tensors):
            levels = ConditionLevels(**config.pop("levels"))
            sizes = config.pop("sizes")
            described = config.pop("perturbation_features", None)
            if described is not None:
                described = PerturbationFeatures.from_config(
                    described, tensors.pop(_FEATURES).float().numpy(), levels.perturbations
                )
            genes = stored_genes(checkpoint)
            model = cls(vocabulary=genes, levels=levels, perturbation_features=described)
            model.module = NegativeBinomialModule(
                len(genes), len(levels.sources), len(levels.perturbations), sizes["combinations"]
            )
            if model.module.sizes != sizes:
                raise ValueError(f"sizes {sizes} do not fit genes and conditions")
        load_weights(model.module, tensors, checkpoint.name)
        model.provenance = config
        return model
