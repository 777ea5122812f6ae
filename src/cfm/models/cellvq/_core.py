"""CellVQ, AnnData side: what it is made of, the data it is given, saving and loading."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from cfm._arguments import Range, check_whole, checks_arguments
from cfm.data import GeneVocabulary
from cfm.hub import resolve
from cfm.hub._replace import reads_checkpoint
from cfm.models._base import PretrainedModel, load_weights
from cfm.models._validate import validate_config
from cfm.models.cellvq._checkpoint import is_published, read_published
from cfm.models.cellvq._module import CellVQModule
from cfm.models.cellvq._setup import Registered, levels_of
from cfm.models.cellvq._sizes import CellVQSize, get_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from anndata import AnnData

    from cfm.hub import Checkpoint

_GENES_FILE = "genes.txt"
#: In a file of its own, as there may be thousands of names.
_PROPERTIES_FILE = "properties.json"
#: Quantiles of the confidence that are kept: 0, 0.01, …, 0.5.
_LEVELS = np.linspace(0.0, 0.5, 51)


class CellVQCore(Registered):
    """Network, vocabulary and properties of a CellVQ; see :class:`CellVQ`.

    Attributes
    ----------
    module
        The network.
    size
        Its sizes.
    properties
        Classes of each property head, by the name of the head.
    confidence_levels
        By name of a head the quantiles 0, 0.01, …, 0.5 of the largest probability that it gives
        held-out cells; see :meth:`least_confidence`.
    """

    module: CellVQModule

    def __init__(
        self,
        adata: AnnData | None = None,
        *,
        vocabulary: Sequence[str] | GeneVocabulary | None = None,
        size: str | CellVQSize = "mini",
        properties: Mapping[str, Sequence[str]] | None = None,
        seed: int = 0,
        **sizes: Any,
    ) -> None:
        super().__init__(adata)
        if vocabulary is None:
            if adata is None:
                raise ValueError(
                    "CellVQ needs adata or vocabulary to know its genes; found neither. To use a "
                    "trained model, call CellVQ.from_pretrained(folder)."
                )
            vocabulary = adata.var_names
        if not isinstance(vocabulary, GeneVocabulary):
            vocabulary = GeneVocabulary(list(vocabulary))
        self._vocabulary: GeneVocabulary | None = vocabulary
        found = {} if adata is None else self._registered_labels()
        self.properties = check_properties(
            {key: levels_of(labels) for key, labels in found.items()} | dict(properties or {})
        )
        self.confidence_levels: dict[str, list[float]] = {}
        self.size = get_size(size, **sizes)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.module = CellVQModule(
                len(vocabulary), size=self.size, properties=_n_classes(self.properties)
            )
        self._summarise()

    def _summarise(self) -> None:
        """Set what scvi-tools shows of a model."""
        n = sum(p.numel() for p in self.module.parameters())
        genes = (
            "genes without names" if self._vocabulary is None else f"{len(self.vocabulary)} genes"
        )
        self._model_summary_string = (
            f"CellVQ: {genes}, {2**self.size.n_bits} codes, properties {list(self.properties)}, "
            f"width {self.size.dim}, {self.size.n_layers} layers, {n:,} parameters"
        )

    @property
    def vocabulary(self) -> GeneVocabulary:
        """Genes that the model knows.

        Raises
        ------
        ValueError
            If the weights came without the names of their genes.
        """
        if self._vocabulary is None:
            raise ValueError(
                "The weights came without the names of their genes, so no counts can be read; "
                "pass from_pretrained(…, genes=names), in the authors' order "
                "(OS_scRNA_gene_index.19264.tsv)."
            )
        return self._vocabulary

    def vocabulary_share(self, adata: AnnData) -> float:
        """Return the share of the model's genes that ``adata`` measures."""
        return self.vocabulary.align(adata.var_names).found_share

    @checks_arguments(unknown=Range(0, 0.5))
    def least_confidence(self, name: str, unknown: float) -> float:
        """Return the probability below which a share of held-out cells lies.

        Parameters
        ----------
        name
            A property head.
        unknown
            Share of the held-out cells, 0 to 0.5.

        Returns
        -------
        That probability; 0 where the head was not trained here, such as in published weights.
        """
        levels = self.confidence_levels.get(name)
        if levels is None or unknown <= 0:
            return 0.0
        return float(np.interp(unknown, _LEVELS, levels))

    def set_confidence_levels(self, name: str, confidence: np.ndarray) -> None:
        """Keep how sure a head is of held-out cells, ``(n_cells,)`` largest probabilities."""
        self.confidence_levels[name] = np.quantile(confidence.astype(float), _LEVELS).tolist()

    @checks_arguments()
    def set_properties(
        self, properties: Mapping[str, Sequence[str] | None], *, seed: int = 0
    ) -> None:
        """Give the model new property heads, untrained; others stay as they are.

        Parameters
        ----------
        properties
            Classes of each new head by its name, which is that of the column of ``obs`` that it
            will learn from. A head of that name is replaced; ``None`` takes it away.
        seed
            Seed of the new weights.

        Raises
        ------
        KeyError
            If a head is to be taken away that there is not.
        TypeError, ValueError
            If classes are one text, none, empty or named twice.

        Examples
        --------
        >>> import cfm
        >>> model = cfm.models.CellVQ(vocabulary=["A", "B", "C"], size="mini", n_layers=1)
        >>> model.set_properties({"cell_type": ["B cell", "T cell"]})
        >>> model.properties
        {'cell_type': ['B cell', 'T cell']}
        """
        gone = [name for name, classes in properties.items() if classes is None]
        unknown = [name for name in gone if name not in self.properties]
        if unknown:
            raise KeyError(f"The model has no heads {unknown}; it has {list(self.properties)}.")
        new = check_properties({k: v for k, v in properties.items() if v is not None})
        for name in properties:
            self.confidence_levels.pop(name, None)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.module.set_heads(_n_classes(new) | dict.fromkeys(gone, 0))
        kept = {k: v for k, v in self.properties.items() if k not in gone}
        self.properties = kept | new
        self._summarise()

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a folder or file holds weights as the authors of CellVQ publish them."""
        return is_published(path)

    @classmethod
    @reads_checkpoint
    def from_pretrained(
        cls,
        source: str | Path,
        adata: AnnData | None = None,
        *,
        device: str = "auto",
        mode: str = "m1",
        genes: Sequence[str] | None = None,
        properties: Mapping[str, Sequence[str]] | None = None,
    ) -> Self:
        """Load a model by name, folder or ``hf://org/name``.

        Parameters
        ----------
        source
            Name of a bundled or registered checkpoint, a folder that :meth:`save` wrote, or
            ``models.ckpt`` as the authors release it, or a folder with it: a dictionary of
            ``config`` and the weights of each mode. It is read without running anything in it.
        adata
            Data to attach for further training, registered with ``setup_anndata``. Properties
            that the model has no head for get one when it is trained.
        device
            Where the model runs; ``"auto"`` takes a GPU if there is one.
        mode
            Which weights of the authors' file are taken.
        genes
            Names of the genes of the authors' weights, in their order. By default those of
            ``OS_scRNA_gene_index.19264.tsv`` beside the file; without either the model reads
            tensors, but no AnnData.
        properties
            Names of the classes of the authors' heads, which their file does not say; by default
            ``"0"``, ``"1"``, ….

        Raises
        ------
        ValueError
            If the checkpoint is damaged, is not safe to read, belongs to another model, or what
            is given does not fit it.
        """
        path = resolve(source)
        if not cls.recognises(path):
            if genes is not None or properties is not None:
                raise ValueError(
                    "genes= and properties= are for the authors' weights; this checkpoint names "
                    "its own."
                )
            return super().from_pretrained(source, adata, device=device)
        published = read_published(path, mode)
        names = published.genes if genes is None else genes
        vocabulary = None if names is None else GeneVocabulary(list(names))
        found = {k: [str(i) for i in range(n)] for k, n in published.properties.items()}
        for name, classes in check_properties(properties or {}).items():
            if len(classes) != len(found.get(name, ())):
                raise ValueError(
                    f"properties= names {len(classes)} classes of {name!r}; the weights have "
                    f"{published.properties}."
                )
            found[name] = classes
        model = cls._filled(
            published.size,
            published.n_genes,
            vocabulary,
            found,
            published.tensors,
            published.name,
        )
        model.checkpoint_name = published.name
        model.checkpoint_sha256 = published.sha256
        if adata is not None:
            model.attach(adata)
        model.is_trained_ = True
        model.to_device(device)
        model.module.eval()
        return model

    @classmethod
    def _filled(
        cls,
        size: CellVQSize,
        n_genes: int,
        vocabulary: GeneVocabulary | None,
        properties: dict[str, list[str]],
        tensors: dict[str, torch.Tensor],
        name: str,
    ) -> Self:
        """Make a model of given weights, without a second copy of them."""
        if vocabulary is not None and len(vocabulary) != n_genes:
            raise ValueError(
                f"Found {len(vocabulary)} names of genes, but weights of {n_genes} genes in "
                f"checkpoint {name!r}."
            )
        with validate_config("CellVQ", name, tensors):
            module = CellVQModule(n_genes, size=size, properties=_n_classes(properties))
        load_weights(module, tensors, name, copy=False)
        model = cls.__new__(cls)
        PretrainedModel.__init__(model, None)
        model.size, model.properties, model._vocabulary = size, properties, vocabulary
        model.confidence_levels = {}
        model.module = module
        model._summarise()
        return model

    def _contents(self) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, str]]:
        files = {_PROPERTIES_FILE: json.dumps(self.properties, ensure_ascii=False, indent=0) + "\n"}
        if self._vocabulary is not None:
            files[_GENES_FILE] = "\n".join(self._vocabulary.genes) + "\n"
        config = {"size": vars(self.size), "n_genes": self.module.n_genes}
        if self.confidence_levels:
            config["confidence_levels"] = self.confidence_levels
        return dict(self.module.state_dict()), config, files

    @classmethod
    def _from_checkpoint(cls, checkpoint: Checkpoint, adata: AnnData | None) -> Self:
        config = dict(checkpoint.config)
        with validate_config("CellVQ", checkpoint.name, checkpoint.tensors):
            size = CellVQSize(**config.pop("size"))
            n_genes = check_whole("n_genes", config.pop("n_genes"))
            text = checkpoint.files.get(_GENES_FILE)
            genes = None if text is None else GeneVocabulary(text.splitlines())
            properties = check_properties(json.loads(checkpoint.files[_PROPERTIES_FILE]))
            levels = check_levels(config.pop("confidence_levels", {}), properties)
        model = cls._filled(size, n_genes, genes, properties, checkpoint.tensors, checkpoint.name)
        model.provenance, model.confidence_levels = config, levels
        if adata is not None:
            model.attach(adata)
        return model


def check_properties(properties: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return properties with their classes as lists of text.

    Raises
    ------
    TypeError, ValueError
        If classes are one text, none, empty or named twice, or the name of a head is empty.
    """
    out = {}
    for name, classes in properties.items():
        if isinstance(classes, str):
            raise TypeError(f"The classes of {name!r} are one text ({classes!r}); expected a list.")
        names = [str(c) for c in classes]
        if not name or not names or "" in names or len(set(names)) < len(names):
            raise ValueError(
                f"The property {name!r} has the classes {names[:8]}; expected at least one, each "
                "with a name of its own."
            )
        out[str(name)] = names
    return out


def check_levels(levels: Any, properties: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the confidence levels of heads by name.

    Raises
    ------
    ValueError
        If they are of other heads, or are not rising probabilities.
    """
    found = {}
    for name, numbers in dict(levels).items():
        values = np.array(numbers, dtype=np.float64)
        rising = values.shape == _LEVELS.shape and bool((np.diff(values) >= 0).all())
        if name not in properties or not rising or values[0] < 0 or values[-1] > 1:
            raise ValueError(f"The confidence levels of {name!r} are damaged.")
        found[name] = values.tolist()
    return found


def _n_classes(properties: Mapping[str, Sequence[str]]) -> dict[str, int]:
    return {name: len(classes) for name, classes in properties.items()}
