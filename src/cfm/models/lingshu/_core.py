"""Lingshu-Cell, AnnData side: what it is made of, the data it is given, saving and loading."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import torch

from cfm.data import GeneVocabulary
from cfm.hub import resolve
from cfm.hub._format import CONFIG_NAME
from cfm.hub._replace import reads_checkpoint
from cfm.models._base import PretrainedModel, load_weights
from cfm.models._validate import validate_config
from cfm.models.lingshu._levels import ConditionLevels
from cfm.models.lingshu._module import LingshuModule
from cfm.models.lingshu._perturbation_features import PerturbationFeatures
from cfm.models.lingshu._setup import Registered
from cfm.models.lingshu._sizes import LingshuSize, get_size
from cfm.models.lingshu._terms import TERMS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

    from cfm.hub import Checkpoint

_GENES_FILE = "genes.txt"
#: Tensors that float16 has no room for.
_EXACT = ("depth_quantiles",)


class LingshuCore(Registered):
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

    def vocabulary_share(self, adata: AnnData) -> float:
        """Return the share of the model's genes that ``adata`` measures."""
        return self.vocabulary.align(adata.var_names).found_share

    def set_count_term(self, term: torch.nn.Module | None) -> None:
        """Set the term that is added to the network's logits, before training.

        The head of the network is set to zero, so that training starts from the term alone. A
        trained head would not fit beside another term: what a loaded model has learned of scores
        is lost, and it is no longer the checkpoint it came from.

        Parameters
        ----------
        term
            A module as :class:`cfm.models.lingshu._terms.CountTerm` describes; ``None`` takes it
            away, and leaves the head as it is: train the model before it is used.
        """
        self.module.set_count_term(None if term is None else term.to(self.device))
        if self.checkpoint_sha256:
            self.trained_here(np.array([], dtype=object))

    def _contents(self) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, str]]:
        config: dict[str, Any] = {"size": vars(self.size), "levels": vars(self.levels)}
        if self.perturbation_features is not None:
            config["perturbation_features"] = self.perturbation_features.config()
        if (term := self.module.count_term) is not None:
            config["count_term"] = {"kind": type(term).__name__, "sizes": term.sizes}
        return (
            dict(self.module.state_dict()),
            config,
            {_GENES_FILE: "\n".join(self.vocabulary.genes) + "\n"},
        )

    def _compacted(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        out = super()._compacted(tensors) | {k: tensors[k] for k in _EXACT if k in tensors}
        out["group.permutation"] = out["group.permutation"].to(torch.int32)
        return out

    @classmethod
    @reads_checkpoint
    def from_pretrained(
        cls, source: str | Path, adata: AnnData | None = None, *, device: str = "auto"
    ) -> Self:
        """Load a model by name, folder or ``hf://org/name``.

        Parameters
        ----------
        source
            Name of a bundled or registered checkpoint, or a folder that :meth:`save` wrote, here
            or on the Hugging Face hub. The weights that the authors of Lingshu-Cell released are
            not read: what their tensors are called is not documented.
        adata
            Data to attach for further training, registered with ``setup_anndata``; their
            conditions must be known to the model.
        device
            Where the model runs; ``"auto"`` takes a GPU if there is one.

        Raises
        ------
        ValueError
            If the checkpoint is damaged, is not safe to read, or belongs to another model.
        """
        path = resolve(source)
        if not (path / CONFIG_NAME).is_file():
            raise ValueError(
                f"{path} holds no checkpoint that LingshuCell.save wrote (no {CONFIG_NAME}). The "
                "weights that the authors of Lingshu-Cell released have a layout that is not "
                "documented and are not read; train a model here, or load one of "
                "cfm.hub.list_checkpoints()."
            )
        return super().from_pretrained(source, adata, device=device)

    @classmethod
    def _from_checkpoint(cls, checkpoint: Checkpoint, adata: AnnData | None) -> Self:
        config = dict(checkpoint.config)
        tensors = checkpoint.tensors
        with validate_config("LingshuCell", checkpoint.name, tensors):
            size = LingshuSize(**config.pop("size"))
            levels = ConditionLevels(**config.pop("levels"))
            described = config.pop("perturbation_features", None)
            term = config.pop("count_term", None)
            genes = GeneVocabulary(checkpoint.files[_GENES_FILE].splitlines())
            features = None
            if described is not None:
                features = PerturbationFeatures.from_config(
                    described, tensors["features"].float().numpy(), levels.perturbations
                )
            model = cls._empty(genes, levels, size, features)
            if term is not None:
                model.module.count_term = TERMS[term["kind"]](**term["sizes"])
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
    ) -> Self:
        """Make a model whose weights will be loaded."""
        model = cls.__new__(cls)
        PretrainedModel.__init__(model, None)
        model.vocabulary, model.levels, model.size = vocabulary, levels, size
        model.perturbation_features = features
        with torch.random.fork_rng():
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
