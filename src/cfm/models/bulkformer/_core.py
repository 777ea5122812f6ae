"""BulkFormer, AnnData side: what it is made of, the data it is given, saving and loading."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalObsField, LayerField

from cfm._arguments import check_flag, check_whole
from cfm.data import GeneVocabulary
from cfm.data._matrix import get_matrix
from cfm.data._warn import warn_user
from cfm.hub import resolve
from cfm.hub._replace import reads_checkpoint
from cfm.models._base import PretrainedModel, check_column, load_weights
from cfm.models._validate import validate_config
from cfm.models.bulkformer._checkpoint import Published, is_published, read_published
from cfm.models.bulkformer._graphs import graph_of_data, graph_tensors
from cfm.models.bulkformer._linear_term import LocalFactors
from cfm.models.bulkformer._module import BulkFormerModule
from cfm.models.bulkformer._reading import vocabulary_of
from cfm.models.bulkformer._sizes import BulkFormerSize, get_size
from cfm.nn._graph import check_graph

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

    from cfm.hub import Checkpoint

_GENES_FILE = "genes.txt"


class BulkFormerCore(PretrainedModel):
    """Network, vocabulary and registered data of a BulkFormer; see :class:`BulkFormer`.

    Attributes
    ----------
    module
        The network.
    vocabulary
        Genes that it knows.
    size
        Its sizes.
    """

    def __init__(
        self,
        adata: AnnData | None = None,
        *,
        vocabulary: Sequence[str] | GeneVocabulary | None = None,
        size: str | BulkFormerSize = "mini",
        graph: Any = None,
        gene_features: pd.DataFrame | None = None,
        seed: int = 0,
        **sizes: Any,
    ) -> None:
        super().__init__(adata)
        if vocabulary is None:
            if adata is None:
                raise ValueError(
                    "BulkFormer needs adata or vocabulary to know its genes; found neither. To "
                    "use a trained model, call BulkFormer.from_pretrained(folder)."
                )
            vocabulary = adata.var_names
        if not isinstance(vocabulary, GeneVocabulary):
            vocabulary = GeneVocabulary(list(vocabulary))
        self.vocabulary = vocabulary
        #: Whether the vocabulary holds names; published weights may come without a gene list.
        self.knows_genes = True
        self.size = get_size(size, **sizes)
        table = None if gene_features is None else self._align_features(gene_features)
        width = 0 if table is None else table.shape[1]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.module = BulkFormerModule(
                len(vocabulary), **self.size.module_arguments(), n_gene_features=width
            )
        if table is not None:
            self.module.set_gene_features(torch.from_numpy(table))
        if graph is not None:
            self.module.set_graph(*graph_tensors(graph, len(vocabulary)))
        elif adata is not None:
            layer = self._registered_layer()
            self.module.set_graph(*graph_of_data(adata, vocabulary, layer=layer))
        self._summarise()

    def _summarise(self) -> None:
        """Set what scvi-tools shows of a model."""
        n = sum(p.numel() for p in self.module.parameters())
        self._model_summary_string = (
            f"BulkFormer: {len(self.vocabulary)} genes, width {self.size.dim}, "
            f"{self.size.n_blocks} × {self.size.n_layers} Performer layers, {n:,} parameters"
        )

    @classmethod
    def setup_anndata(
        cls, adata: AnnData, layer: str | None = None, study_key: str | None = None, **kwargs: Any
    ) -> None:
        """Register samples for training.

        Parameters
        ----------
        adata
            Samples by genes, natural log1p of TPM (:func:`cfm.pp.tpm`); ``NaN`` or −10 where a
            gene is not measured.
        layer
            Layer with the log TPM instead of ``X``.
        study_key
            Column of ``obs`` with the study: training is judged on studies it has not seen.
        **kwargs
            For :meth:`scvi.data.AnnDataManager.register_fields`.

        Raises
        ------
        KeyError
            If the layer or the column does not exist.
        ValueError
            If the column has missing values.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        get_matrix(adata, layer=layer)
        if study_key is not None:
            check_column(adata, study_key)
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, study_key),
        ]
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    def _registered_layer(self) -> str | None:
        """Layer that was registered, ``None`` for ``X``."""
        registered = self.adata_manager.data_registry[REGISTRY_KEYS.X_KEY]
        return registered.attr_key if registered.attr_name == "layers" else None

    def vocabulary_share(self, adata: AnnData) -> float:
        """Return the share of the model's genes that ``adata`` measures."""
        self.require_genes()
        return self.vocabulary.align(adata.var_names).found_share

    def require_genes(self) -> None:
        """Check that the model knows which genes its columns are.

        Raises
        ------
        ValueError
            If it was loaded from weights without a gene list.
        """
        if not self.knows_genes:
            raise ValueError(
                f"The weights came without bulkformer_gene_info.csv, so it is unknown which genes "
                f"the model's {len(self.vocabulary)} columns are; put that file beside them, or "
                "pass their names in order: from_pretrained(folder, genes=[…])."
            )

    def _align_features(self, table: pd.DataFrame) -> np.ndarray:
        """Return a table of gene features by vocabulary gene: z-scores, 0 where it has no row."""
        alignment = self.vocabulary.align(table.index)
        values = table.to_numpy(dtype=np.float32)[alignment.columns]
        if not np.isfinite(values).all():
            raise ValueError("gene_features holds NaN or infinite values; drop those genes.")
        spread = values.std(axis=0)
        values = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
        if alignment.found_share < 0.5:
            warn_user(
                f"gene_features has rows for {alignment.found_share:.0%} of the model's "
                f"{len(self.vocabulary)} genes; the rest are alike to the model."
            )
        out = np.zeros((len(self.vocabulary), values.shape[1]), dtype=np.float32)
        out[alignment.positions] = values
        return out

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a folder or file holds weights as the authors of BulkFormer publish them."""
        return is_published(path)

    @classmethod
    @reads_checkpoint
    def from_pretrained(
        cls,
        source: str | Path,
        adata: AnnData | None = None,
        *,
        device: str = "auto",
        genes: Sequence[str] | None = None,
    ) -> Self:
        """Load a model by name, folder or ``hf://org/name``.

        Parameters
        ----------
        source
            Name of a bundled or registered checkpoint, a folder that :meth:`save` wrote, or one
            laid out as the authors release their weights: ``bulkformer_*.pt``, ``G_tcga.pt``,
            ``G_tcga_weight.pt`` and, if there, ``bulkformer_gene_info.csv``; or that ``.pt``
            file. ``hf://org/name`` on the Hugging Face hub for either.
        adata
            Data to attach for further training, registered with ``setup_anndata``.
        device
            Where the model runs; ``"auto"`` takes a GPU if there is one.
        genes
            Ensembl ids of the model's genes, in order, for weights without
            ``bulkformer_gene_info.csv``.

        Raises
        ------
        ValueError
            If files are missing, damaged or not safe to read, if they do not fit each other, or
            if the weights are of another model or another generation of BulkFormer.
        """
        path = resolve(source)
        if not cls.recognises(path):
            if genes is not None:
                raise ValueError("genes= is for weights without a gene list; this has its own.")
            return super().from_pretrained(source, adata, device=device)
        published = read_published(path)
        model = cls._from_published(published, genes)
        model.checkpoint_name = published.name
        model.checkpoint_sha256 = published.sha256
        model.is_trained_ = True
        if adata is not None:
            model.attach(adata)
        model.to_device(device)
        model.module.eval()
        return model

    @classmethod
    def _from_published(cls, published: Published, genes: Sequence[str] | None) -> Self:
        names = list(genes) if genes is not None else published.genes
        if names is not None and len(names) != published.n_genes:
            raise ValueError(
                f"genes= names {len(names)} genes; the weights have {published.n_genes}."
            )
        tensors = published.tensors | {
            "gene_offset": torch.zeros(published.n_genes),
            "edges": published.edges,
            "edge_weights": published.edge_weights,
        }
        unnamed = [f"gene {i + 1}" for i in range(published.n_genes)]
        vocabulary = GeneVocabulary(unnamed) if names is None else vocabulary_of(names)
        with validate_config("BulkFormer", published.name, tensors):
            model = cls(vocabulary=vocabulary, size=published.size)
        model.knows_genes = names is not None
        model._fill(tensors, published.name)
        return model

    def _fill(self, tensors: dict[str, torch.Tensor], name: str) -> None:
        """Give a model on the ``meta`` device its weights and its graph."""
        # a graph has as many edges as it has
        for key in ("edges", "edge_weights"):
            if key in tensors:
                buffer = getattr(self.module, key)
                setattr(self.module, key, buffer.new_empty(tensors[key].shape))
        load_weights(self.module, tensors, name)
        try:
            check_graph(self.module.edges, self.module.edge_weights, self.module.n_genes)
        except ValueError as error:
            raise ValueError(f"The graph of checkpoint {name!r} is damaged. {error}") from error

    def _contents(self) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, str]]:
        width = 0 if self.module.gene_embedding is not None else self.module.gene_features.shape[1]
        config: dict[str, Any] = {
            "size": vars(self.size),
            "n_gene_features": width,
            "knows_genes": self.knows_genes,
        }
        if self.module.linear_term is not None:
            config["linear_term"] = self.module.linear_term.sizes
        return (
            dict(self.module.state_dict()),
            config,
            {_GENES_FILE: "\n".join(self.vocabulary.genes) + "\n"},
        )

    def _compacted(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        out = super()._compacted(tensors)
        out["edge_weights"] = out["edge_weights"].half()
        small = len(self.vocabulary) <= torch.iinfo(torch.int16).max
        out["edges"] = out["edges"].to(torch.int16 if small else torch.int32)
        return out

    @classmethod
    def _from_checkpoint(cls, checkpoint: Checkpoint, adata: AnnData | None) -> Self:
        config = dict(checkpoint.config)
        with validate_config("BulkFormer", checkpoint.name, checkpoint.tensors):
            size = BulkFormerSize(**config.pop("size"))
            width = check_whole("n_gene_features", config.pop("n_gene_features"), 0)
            knows_genes = check_flag("knows_genes", config.pop("knows_genes"))
            linear = config.pop("linear_term", None)
            genes = GeneVocabulary(checkpoint.files[_GENES_FILE].splitlines())
            model = cls(vocabulary=genes, size=size)
            if width:
                model.module = BulkFormerModule(
                    len(genes), **size.module_arguments(), n_gene_features=width
                )
            if linear is not None:
                model.module.linear_term = LocalFactors(len(genes), **linear)
        model.knows_genes = knows_genes
        model._fill(checkpoint.tensors, checkpoint.name)
        model._summarise()
        model.provenance = config
        if adata is not None:
            model.attach(adata)
        return model
