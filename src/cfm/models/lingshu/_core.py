"""Lingshu-Cell, AnnData side: what it is made of, the data it is given, saving and loading."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalObsField, LayerField

from cfm.data import GeneVocabulary
from cfm.data._matrix import check_unique_names, get_matrix
from cfm.hub import save_checkpoint
from cfm.models._base import (
    PretrainedModel,
    check_column,
    check_weights,
    load_weights,
    require_anndata,
)
from cfm.models.lingshu._levels import ConditionLevels
from cfm.models.lingshu._module import LingshuModule
from cfm.models.lingshu._perturbation_features import PerturbationFeatures
from cfm.models.lingshu._reading import check_counts
from cfm.models.lingshu._sizes import LingshuSize, get_size
from cfm.models.lingshu._terms import TERMS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

    from cfm.hub import Checkpoint

_GENES_FILE = "genes.txt"


class LingshuCore(PretrainedModel):
    """Network, vocabulary and conditions of a Lingshu-Cell; see :class:`LingshuCell`.

    Attributes
    ----------
    module
        The network.
    vocabulary
        Genes that it knows.
    levels
        Conditions that it knows.
    size
        Its sizes.
    """

    def __init__(
        self,
        adata: AnnData | None = None,
        *,
        vocabulary: Sequence[str] | GeneVocabulary | None = None,
        levels: ConditionLevels | None = None,
        size: str | LingshuSize = "mini",
        perturbation_features: pd.DataFrame | None = None,
        seed: int = 0,
        **sizes: Any,
    ) -> None:
        super().__init__(adata)
        if vocabulary is None:
            if adata is None:
                raise ValueError(
                    "LingshuCell needs adata or vocabulary to know its genes; found neither. To "
                    "use a trained model, call LingshuCell.from_pretrained(folder)."
                )
            vocabulary = adata.var_names
        if not isinstance(vocabulary, GeneVocabulary):
            vocabulary = GeneVocabulary(list(vocabulary))
        self.vocabulary = vocabulary
        if levels is None:
            levels = ConditionLevels() if adata is None else self._registered_levels(adata)
        self.levels = levels
        self.size = get_size(size, **sizes)
        #: How perturbations are described, ``None`` if each has a token of its own.
        self.perturbation_features: PerturbationFeatures | None = None
        if perturbation_features is not None:
            self.perturbation_features = PerturbationFeatures.of(
                perturbation_features, levels.control
            )
            self.levels = self.perturbation_features.levels(self.levels)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.module = LingshuModule(len(vocabulary), **self._module_arguments())
        if self.perturbation_features is not None:
            self.module.features.copy_(torch.from_numpy(self.perturbation_features.values))
        self._summarise()

    def _module_arguments(self) -> dict[str, Any]:
        described = self.perturbation_features
        return (
            vars(self.size)
            | self.levels.module_arguments()
            | {"n_features": 0 if described is None else described.values.shape[1]}
        )

    def _summarise(self) -> None:
        """Set what scvi-tools shows of a model."""
        n = sum(p.numel() for p in self.module.parameters())
        self._model_summary_string = (
            f"LingshuCell: {len(self.vocabulary)} genes in groups of {self.size.group_size}, "
            f"{len(self.levels.sources)} sources, {len(self.levels.perturbations)} perturbations, "
            f"width {self.size.dim}, {self.size.n_layers} layers, {n:,} parameters"
        )

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
        require_anndata(adata)
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

    def vocabulary_share(self, adata: AnnData) -> float:
        """Return the share of the model's genes that ``adata`` measures."""
        return self.vocabulary.align(adata.var_names).found_share

    def set_count_term(self, term: torch.nn.Module | None) -> None:
        """Set the term that is added to the network's logits, before training.

        The head of the network is set to zero, so that training starts from the term alone.

        Parameters
        ----------
        term
            A module as :class:`cfm.models.lingshu._terms.CountTerm` describes; ``None`` takes it
            away.
        """
        self.module.set_count_term(None if term is None else term.to(self.device))

    def save(
        self,
        dir_path: str | Path,
        *,
        overwrite: bool = False,
        card: str | None = None,
        compact: bool = False,
        **kwargs: Any,
    ) -> Path:
        """Save weights, gene order, conditions and provenance as a cfm checkpoint.

        Parameters
        ----------
        dir_path
            Folder to make.
        overwrite
            Replace a checkpoint that is there.
        card
            Model card (Markdown); the loaded one by default.
        compact
            Store matrices in float16: half the size, and other cells are drawn than before.
        **kwargs
            None are taken: data are never saved with the model.
        """
        if kwargs:
            raise TypeError(
                f"save() does not take {sorted(kwargs)}; cfm checkpoints hold the model only. "
                "Save data with adata.write_h5ad."
            )
        tensors = dict(self.module.state_dict())
        if compact:
            tensors = {
                k: v.half() if v.is_floating_point() and v.ndim > 1 else v
                for k, v in tensors.items()
            }
            tensors["group.permutation"] = tensors["group.permutation"].to(torch.int32)
        config = self.provenance | {"size": vars(self.size), "levels": vars(self.levels)}
        if self.perturbation_features is not None:
            config["perturbation_features"] = self.perturbation_features.config()
        if (term := self.module.count_term) is not None:
            config["count_term"] = {"kind": type(term).__name__, "sizes": term.sizes}
        return save_checkpoint(
            dir_path,
            tensors,
            config,
            model="LingshuCell",
            files={_GENES_FILE: "\n".join(self.vocabulary.genes) + "\n"} | self._history_file(),
            card=card if card is not None else self.card,
            overwrite=overwrite,
        )

    @classmethod
    def _from_checkpoint(cls, checkpoint: Checkpoint, adata: AnnData | None) -> Self:
        config = dict(checkpoint.config)
        tensors = checkpoint.tensors
        try:
            size = LingshuSize(**config.pop("size"))
            levels = ConditionLevels(**config.pop("levels"))
            described = config.pop("perturbation_features", None)
            term = config.pop("count_term", None)
            genes = GeneVocabulary(checkpoint.files[_GENES_FILE].splitlines())
            _check_layers(tensors, size)
            features = None
            if described is not None:
                features = PerturbationFeatures.from_config(
                    described, tensors["features"].float().numpy(), levels.perturbations
                )
            model = cls._empty(genes, levels, size, features, device="meta")
            if term is not None:
                with torch.device("meta"):
                    model.module.count_term = TERMS[term["kind"]](**term["sizes"])
            check_weights(model.module, tensors, checkpoint.name)
            model = cls._empty(genes, levels, size, features, device="cpu")
            if term is not None:
                model.module.count_term = TERMS[term["kind"]](**term["sizes"])
        except (AttributeError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"The config.json of checkpoint {checkpoint.name!r} lacks or garbles a setting of "
                f"LingshuCell ({error}). It may be damaged or from another version; download it "
                "again."
            ) from error
        load_weights(model.module, tensors, checkpoint.name)
        order = model.module.group.permutation
        if not torch.equal(order.sort().values, torch.arange(len(genes))):
            raise ValueError(
                f"The gene order of checkpoint {checkpoint.name!r} does not name each of its "
                f"{len(genes)} genes once; it is damaged: download it again."
            )
        model.provenance = config
        if adata is not None:
            model.attach(adata)
        return model

    @classmethod
    def _empty(
        cls,
        vocabulary: GeneVocabulary,
        levels: ConditionLevels,
        size: LingshuSize,
        features: PerturbationFeatures | None,
        *,
        device: str,
    ) -> Self:
        """Make a model whose weights will be loaded; on ``meta`` it takes no memory."""
        model = cls.__new__(cls)
        PretrainedModel.__init__(model, None)
        model.vocabulary, model.levels, model.size = vocabulary, levels, size
        model.perturbation_features = features
        with torch.random.fork_rng(), torch.device(device):
            model.module = LingshuModule(len(vocabulary), **model._module_arguments())
        model._summarise()
        return model

    def _conditions_of(self, obs: pd.DataFrame, depth: np.ndarray | None) -> Any:
        """Read the conditions of cells from the registered columns of ``obs``."""
        levels = self.levels

        def column(key: str | None) -> np.ndarray | None:
            return None if key is None else obs[key].astype(str).to_numpy(dtype=object)

        return levels.conditions(
            len(obs),
            source=column(levels.source_key),
            perturbation=column(levels.perturbation_key),
            covariates=obs[list(levels.covariates)].astype(str) if levels.covariates else None,
            depth=depth,
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


def _check_layers(tensors: dict[str, torch.Tensor], size: LingshuSize) -> None:
    """Check that the weights have as many layers as the sizes claim."""
    found = len({name.split(".")[2] for name in tensors if name.startswith("trunk.blocks.")})
    if found != size.n_layers:
        raise ValueError(f"found sizes of {size.n_layers} layers, but weights of {found}")
