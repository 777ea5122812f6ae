"""CellPulse, AnnData side: what it is made of, the data it is given, saving and loading."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalObsField, LayerField

from cfm._arguments import check_whole, checks_arguments
from cfm.data import GeneVocabulary
from cfm.data._matrix import get_matrix
from cfm.data._warn import warn_user
from cfm.models._base import PretrainedModel, check_column, load_weights
from cfm.models._validate import validate_config
from cfm.models.cellpulse._classifier import VirusClassifier
from cfm.models.cellpulse._effects import MIN_GENES, align_effects, effect_blocks
from cfm.models.cellpulse._factors import (
    GeneFactors,
    fit_gene_factors,
    fitted_rows,
    usual_sizes,
)
from cfm.models.cellpulse._module import CellPulseModule, Tokens
from cfm.models.cellpulse._registered import MAX_HELD_BYTES, StoredEffects
from cfm.models.cellpulse._signed_sets import aligned_sets
from cfm.models.cellpulse._sizes import CellPulseSize, get_size
from cfm.models.cellpulse._tokens import ProfileTokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData

    from cfm.hub import Checkpoint

#: Registry key of the column with the infected sample.
SAMPLE_KEY = "sample"
_GENES_FILE = "genes.txt"
_CLASSIFIER = "classifier."
_MODULE = "module."


class CellPulseCore(PretrainedModel):
    """Network, vocabulary and registered data of a CellPulse; see :class:`CellPulse`.

    Attributes
    ----------
    module
        The network.
    vocabulary
        Genes that it knows.
    size
        Its sizes.
    tokenizer
        Turns effects into its tokens.
    signed_sets
        Signed gene sets for training, if any.
    classifier
        The virus classifier, once trained or loaded.
    provenance
        What else is written into a checkpoint: where the model comes from (JSON types).
    """

    module: CellPulseModule

    def __init__(
        self,
        adata: AnnData | None = None,
        *,
        signed_sets: AnnData | None = None,
        vocabulary: Sequence[str] | GeneVocabulary | None = None,
        size: str | CellPulseSize = "mini",
        seed: int = 0,
        **sizes: Any,
    ) -> None:
        super().__init__(adata)
        if vocabulary is None:
            if adata is None:
                raise ValueError(
                    "CellPulse needs adata or vocabulary to know its genes; found neither. To use "
                    "a trained model, call CellPulse.from_pretrained(name)."
                )
            vocabulary = adata.var_names
        if not isinstance(vocabulary, GeneVocabulary):
            vocabulary = GeneVocabulary(list(vocabulary))
        self.vocabulary = vocabulary
        self.size = get_size(size, **sizes)
        self.tokenizer = ProfileTokenizer(vocabulary, self.size.n_tokens)
        self.signed_sets = signed_sets
        self.classifier: VirusClassifier | None = None
        self._gene_factors: GeneFactors | None = None
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.module = CellPulseModule(len(vocabulary), **self.size.module_arguments())
            if adata is not None:
                self.fit_gene_factors()
        self._summarise()

    def _summarise(self) -> None:
        """Set what scvi-tools shows of a model; the number of parameters changes with training."""
        n = sum(p.numel() for p in self.module.parameters())
        self._model_summary_string = (
            f"CellPulse: {len(self.vocabulary)} genes, {self.size.n_tokens} tokens, "
            f"{n:,} parameters"
        )

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        labels_key: str | None = None,
        study_key: str | None = None,
        sample_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Register contrasts for training.

        Parameters
        ----------
        adata
            Contrasts by genes.
        layer
            Layer with the log2 fold changes instead of ``X``.
        labels_key
            Column of ``obs`` with the virus, ``"uninfected"`` for contrasts of other kinds.
        study_key
            Column of ``obs`` with the study. Nothing is ever judged on a study it was fitted on.
        sample_key
            Column of ``obs`` with the infected sample: contrasts of one sample against different
            controls are made to agree.
        **kwargs
            For :meth:`scvi.data.AnnDataManager.register_fields`.

        Raises
        ------
        KeyError
            If the layer or a column does not exist.
        ValueError
            If a column has missing values.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        get_matrix(adata, layer=layer)
        for key in (labels_key, study_key, sample_key):
            if key is not None:
                check_column(adata, key)
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),
            CategoricalObsField(REGISTRY_KEYS.LABELS_KEY, labels_key),
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, study_key),
            CategoricalObsField(SAMPLE_KEY, sample_key),
        ]
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        with warnings.catch_warnings():
            # Said for categories of under three cells; a study or sample may have one contrast.
            warnings.filterwarnings("ignore", message="Category .* has fewer than 3 cells")
            manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    @checks_arguments()
    def fit_gene_factors(self, *, seed: int = 0) -> None:
        """Fit the factors of the linear gene-gene term to the registered data and signed sets.

        Called when the model is made; see the module ``_factors`` for the covariance. Of more than
        4,096 contrasts so many are used, chosen by seed, as many of each study as there are.
        """
        registered, studies = self.registered_profiles()
        rows = fitted_rows(studies, seed=seed)
        effects, studies = registered[rows], studies[rows]
        sets = None if self.signed_sets is None else aligned_sets(self.signed_sets, self.vocabulary)
        factors = fit_gene_factors(effects, studies, signed_sets=sets, seed=seed)
        self.module.usual_size.copy_(torch.from_numpy(usual_sizes(effects, studies)))
        _, group = np.unique(factors.group.astype(str), return_inverse=True)
        self._gene_factors = factors
        self.module.set_gene_factors(
            torch.from_numpy(factors.values), torch.from_numpy(group.astype(np.int64))
        )

    def registered_effects(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the registered contrasts on the vocabulary, and the study of each.

        Returns
        -------
        ``(n, n_vocabulary)`` float32 and ``(n,)`` object.

        Raises
        ------
        ValueError
            If the model has no data attached.
        """
        layer = self._registered_layer()
        alignment = align_effects(self.adata, self.vocabulary, layer=layer)
        effects = np.concatenate(
            [alignment.apply(block) for _, block in effect_blocks(self.adata, layer=layer)]
        )
        return effects, self.registered_categories(REGISTRY_KEYS.BATCH_KEY)

    def registered_profiles(self) -> tuple[np.ndarray | StoredEffects, np.ndarray]:
        """Return the same as :meth:`registered_effects`; more than 1 GiB is read when indexed."""
        layer = self._registered_layer()
        if 4 * self.adata.n_obs * len(self.vocabulary) <= MAX_HELD_BYTES:
            return self.registered_effects()
        alignment = align_effects(self.adata, self.vocabulary, layer=layer)
        stored = StoredEffects(get_matrix(self.adata, layer=layer), alignment)
        return stored, self.registered_categories(REGISTRY_KEYS.BATCH_KEY)

    def _registered_layer(self) -> str | None:
        """Return the registered layer, ``None`` for ``X``."""
        if self.adata is None:
            raise ValueError(
                "The model has no data; give it some with from_pretrained(name, adata=adata) "
                "after CellPulse.setup_anndata(adata, …)."
            )
        return self.adata_manager.data_registry[REGISTRY_KEYS.X_KEY].attr_key

    def vocabulary_share(self, adata: AnnData) -> float:
        """Return the share of the model's genes that ``adata`` measures."""
        return self.vocabulary.align(adata.var_names).found_share

    def to_device(self, device: str | int | torch.device) -> None:
        """Move the model; ``"auto"`` takes a GPU if there is one."""
        super().to_device(device)
        if self.classifier is not None:
            self.classifier.to(self.device)

    @checks_arguments()
    def encode_blocks(
        self, adata: AnnData, *, layer: str | None = None, batch_size: int = 64
    ) -> Iterator[tuple[slice, np.ndarray, Tokens]]:
        """Yield ``(rows, effects on the vocabulary, tokens)`` in batches."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; found {batch_size}.")
        alignment = align_effects(adata, self.vocabulary, layer=layer)
        empty, least = 0, min(MIN_GENES, len(alignment.columns))
        for rows, block in effect_blocks(adata, layer=layer, n_rows=batch_size):
            effects = alignment.apply(block)
            empty += int((np.isfinite(effects).sum(axis=1) < least).sum())
            yield rows, effects, self.tokenizer.encode(block, alignment)
        if empty:
            warn_user(
                f"{empty} of {adata.n_obs} contrasts measure fewer than {MIN_GENES} of the model's "
                "genes (the rest are NaN); what is said of them means nothing. Drop them."
            )

    def _contents(self) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, str]]:
        parts: dict[str, torch.nn.Module] = {_MODULE: self.module}
        if self.classifier is not None:
            parts[_CLASSIFIER] = self.classifier
        tensors = {p + k: v for p, part in parts.items() for k, v in part.state_dict().items()}
        config = {
            "size": vars(self.size) | {"n_factors": self.module.gene_factors.shape[1]},
            "n_relevances": self.module.log_relevance.numel(),
            "classifier": None if self.classifier is None else self.classifier.settings(),
        }
        return tensors, config, {_GENES_FILE: "\n".join(self.vocabulary.genes) + "\n"}

    def _compacted(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        # tables with a row or column per gene: embeddings move by about 0.1 %
        n = len(self.vocabulary)
        return {
            k: v.half() if n in v.shape and v.is_floating_point() and v.ndim == 2 else v
            for k, v in tensors.items()
        }

    @classmethod
    def _from_checkpoint(cls, checkpoint: Checkpoint, adata: AnnData | None) -> Self:
        config = dict(checkpoint.config)
        with validate_config("CellPulse", checkpoint.name, checkpoint.tensors):
            size = CellPulseSize(**config.pop("size"))
            n_relevances = config.pop("n_relevances")
            check_whole("n_relevances", n_relevances, 1, size.n_factors)
            genes = GeneVocabulary(checkpoint.files[_GENES_FILE].splitlines())
            settings = config.pop("classifier")
            model = cls(vocabulary=genes, size=size)
            model.module.log_relevance = torch.nn.Parameter(torch.zeros(n_relevances))
            if settings is not None:
                model.classifier = VirusClassifier(len(genes), **settings).eval()
        load_weights(model.module, checkpoint.tensors, checkpoint.name, prefix=_MODULE)
        if model.classifier is not None:
            load_weights(model.classifier, checkpoint.tensors, checkpoint.name, prefix=_CLASSIFIER)
        found = model.module.factor_group
        if int(found.min()) < 0 or int(found.max()) >= model.module.log_relevance.numel():
            raise ValueError(
                f"The factors of checkpoint {checkpoint.name!r} belong to groups "
                f"{int(found.min())} to {int(found.max())}, of which there are "
                f"{model.module.log_relevance.numel()}; it is damaged: download it again."
            )
        model._summarise()
        model.provenance = config
        if adata is not None:
            model.attach(adata)
        return model
