"""CellVQ: the public class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS
from scvi.data.fields import CategoricalObsField, LayerField

from cfm._adata import warn_user
from cfm._arguments import SHARE, Range, check_whole, checks_arguments, named_size
from cfm._docs import fill_docs
from cfm.data import GeneVocabulary
from cfm.data._counts import Units
from cfm.data._matrix import check_unique_names, get_matrix
from cfm.hub._checkpoint import validate_config
from cfm.hub._resolve import reads_checkpoint
from cfm.models._base import (
    GENES_FILE,
    TEXTS,
    Precision,
    PretrainedModel,
    check_column,
    load_weights,
    stored_genes,
)
from cfm.models.cellvq._data import (
    NO_CODE,
    STUDY,
    CellReader,
    check_labels,
    check_training_units,
    labels_of,
    levels_of,
)
from cfm.models.cellvq._module import SIZES, CellVQModule, CellVQSize
from cfm.models.cellvq._perturbation import (
    GeneChange,
    Rounding,
    Simulator,
    assign_folds,
    find_genes,
)
from cfm.models.cellvq._property_heads import EXPRESSION, LEVELS, PropertyHeads, check_classes
from cfm.models.cellvq._published import read_published
from cfm.models.cellvq._training import CellVQRecipe, training_of
from cfm.nn._kernels import one_thread_if_small

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from anndata import AnnData

    from cfm.hub import Checkpoint
    from cfm.models._training import Training, TrainingRun
    from cfm.models.cellvq._module import Encoded
    from cfm.models.cellvq._perturbation import Effect

Representation = Literal["cell", "code"]

#: Name of the two count tokens, merged.
SUMMARY = "<summary>"
#: Tokens at a time, padding included.
_ON_CPU, _ON_GPU = 16_384, 131_072
#: Cells at a time whose properties are read from expression.
_EXPRESSION_AT_ONCE = 512
#: Values of gene embeddings in memory at a time (128 MiB).
_EMBEDDED_AT_ONCE = 32_000_000


@dataclass(frozen=True)
class CellCodes:
    """Codes of cells, and what they follow from.

    Attributes
    ----------
    code
        ``(n_cells,)`` int64, number of the nearest code, 0 to ``n_codes`` - 1.
    latent
        ``(n_cells, code_dim)`` float32 of unit length: position of a cell among the codes.
    similarity
        ``(n_cells,)`` float32, cosine of a cell to its code, -1 to 1.
    margin
        ``(n_cells,)`` float32, similarity to its code less that to the second nearest, 0 to 2.
    """

    code: np.ndarray
    latent: np.ndarray
    similarity: np.ndarray
    margin: np.ndarray


@dataclass(frozen=True)
class Codebook:
    """All codes of a model.

    Attributes
    ----------
    vectors
        ``(n_codes, code_dim)`` float32 of unit length.
    bits
        ``(n_codes, n_bits)`` int8 of 0 and 1: the binary number of each code.
    """

    vectors: np.ndarray
    bits: np.ndarray


class CellVQ(PretrainedModel):
    """Model of single cells with a discrete code per cell.

    A cell is a sequence of the genes that it expresses; genes that are not measured are missing,
    not zero. The encoder turns it into a cell embedding, and the quantiser assigns one of
    ``2 ** n_bits`` codes. Codes with similar vectors are similar cells; codes with similar binary
    numbers need not be. Heads on the embedding predict properties: cell type, tissue, disease,
    any label.

    Parameters
    ----------
    adata
        Cells by genes, registered with :meth:`setup_anndata`.
    vocabulary
        Genes of the model; by default ``adata.var_names``.
    size
        ``"mini"``, ``"published"``, or a ``CellVQSize``.
    properties
        Classes of each property head by its name, that of the column of ``obs`` to learn from; by
        default the levels of the registered ``labels_keys``.
    seed
        Seed of the initial weights.
    **sizes
        Single numbers to change in the size: ``dim``, ``n_layers``, ``n_bits``, … (see
        :class:`cfm.models.cellvq.CellVQSize`).

    Attributes
    ----------
    module
        The network.

    Notes
    -----
    The architecture of Nat Commun 2026, 17:4037 (514 million parameters in the published size, of
    which 371 million are the table of relations between genes). The weights of the losses and the
    schedule of the temperature were not published; those here are ours, see :meth:`train`. The
    ``mini`` size adds two linear terms to the published network (``code_term`` and
    ``expression_term`` of :class:`cfm.models.cellvq.CellVQSize`), and its codes are clusters of
    the training cells, a linear function of expression (``expression_codes``), which agree with
    cell types better than those of its quantiser. ``expression_codes=False, n_bits=8`` has that.

    Examples
    --------
    >>> import cfm
    >>> model = cfm.models.CellVQ(vocabulary=["A", "B", "C"], n_layers=1)
    >>> model.module.codebook().shape
    torch.Size([16, 32])
    """

    module: CellVQModule
    Recipe = CellVQRecipe

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
        vocabulary = self._vocabulary_of(adata, vocabulary)
        self._vocabulary: GeneVocabulary | None = vocabulary
        found = {} if adata is None else self.registered_labels()
        levels = {key: levels_of(labels) for key, labels in found.items()}
        classes = check_classes(levels | dict(properties or {}))
        sizes_of_network = named_size(size, SIZES, sizes)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.module = CellVQModule(len(vocabulary), size=sizes_of_network, properties=classes)
        self._summarise()

    def _summarise(self) -> None:
        """Set the summary that scvi-tools prints."""
        n = sum(p.numel() for p in self.module.parameters())
        genes = (
            "genes without names" if self._vocabulary is None else f"{len(self.vocabulary)} genes"
        )
        self._model_summary_string = (
            f"CellVQ: {genes}, {self.size.n_codes} codes, properties {list(self.properties)}, "
            f"width {self.size.dim}, {self.size.n_layers} layers, {n:,} parameters"
        )

    @classmethod
    @checks_arguments()
    @fill_docs(TEXTS)
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
        """Register cells for training, and check their units and labels.

        Parameters
        ----------
        adata
            Cells by genes, any storage.
        layer
            Layer to read instead of ``X``.
        labels_keys
            Columns of ``obs`` with properties to learn (cell type, tissue, disease, anything): the
            model gets a head for each. Cells without a label (``NaN`` or ``""``) do not count.
        study_key
            Column with the study: validation is on whole studies. Without it, on cells.
        units
            ``"counts"``, or ``"log1p_cp10k"``: ``log1p`` of counts per 10,000, which are turned
            back into counts with ``total_counts``.
        total_counts
            Column with the counts of a cell before it was normalised, for ``"log1p_cp10k"``.
        %(register_fields)s

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
            If a property has one level only.
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
            check_labels(adata, key)
        if study_key is not None:
            check_column(adata, study_key)
        check_training_units(adata, layer, units, total_counts)
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),
            CategoricalObsField(STUDY, study_key),
        ]
        cls._register(adata, fields, setup_method_args, **kwargs)

    @property
    def size(self) -> CellVQSize:
        """Sizes of the network."""
        return self.module.size

    @property
    def properties(self) -> dict[str, list[str]]:
        """Classes of each property head by the name of the property."""
        return self.module.property_heads.classes

    @property
    def confidence_levels(self) -> dict[str, list[float]]:
        """Quantiles 0, 0.01, …, 0.5 of the confidence of a head in held-out cells, by its name.

        Confidence is the largest probability of a cell; see :meth:`least_confidence`.
        """
        return self.module.property_heads.confidence_levels

    @property
    def vocabulary(self) -> GeneVocabulary:
        """Genes of the model.

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

    @checks_arguments()
    @torch.inference_mode()
    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        *,
        layer: str | None = None,
        units: Units = "counts",
        total_counts: str | None = None,
        representation: Representation = "cell",
        batch_size: int = 64,
        precision: Precision = "auto",
    ) -> np.ndarray:
        """Embed cells.

        Parameters
        ----------
        adata
            Cells by genes, any gene order; genes that the model does not have are ignored, genes
            that are not measured are missing. By default the model's own data, as registered
            (``layer``, ``units`` and ``total_counts`` are then not used).
        layer
            Layer to read instead of ``X``.
        units
            Units of the matrix: ``"counts"``, raw counts, or ``"log1p_cp10k"``, the natural
            ``log1p`` of counts per 10,000. Declared, never guessed, and checked.
        total_counts
            Column of ``obs`` with the counts of each cell, for ``"log1p_cp10k"``; without it cells
            are taken to have 10,000.
        representation
            ``"cell"``: the two count tokens, the largest value and the mean over the genes, which
            are the input of the property heads. ``"code"``: position of the cell among the codes.
        batch_size
            Cells at a time at most; the result does not depend on it.
        precision
            ``"float32"``, ``"bfloat16"``, or ``"auto"``: bfloat16 where the processor is fast at
            it and, in a trial once per weights, tokens have a cosine similarity of at least 0.999
            to float32.

        Returns
        -------
        ``(n, 4 * dim)`` or ``(n, code_dim)`` float32; ``NaN`` for cells that express none of the
        model's genes.

        Raises
        ------
        KeyError
            If the layer or column does not exist.
        ValueError
            If values are not in the declared units, or too few genes are found.

        Warns
        -----
        UserWarning
            If few of the model's genes are measured, or cells express none of them.
        """
        if representation == "code":
            return self.get_cell_codes(
                adata,
                layer=layer,
                units=units,
                total_counts=total_counts,
                batch_size=batch_size,
                precision=precision,
            ).latent
        reader = self._reader(adata, layer, units, total_counts)
        out = np.full((reader.n_cells, 4 * self.size.dim), np.nan, dtype=np.float32)
        for rows, encoded in self._encoded(reader, batch_size, precision):
            out[rows] = encoded.embedding.float().cpu().numpy()
        return out

    @checks_arguments()
    @torch.inference_mode()
    def get_cell_codes(
        self,
        adata: AnnData | None = None,
        *,
        layer: str | None = None,
        units: Units = "counts",
        total_counts: str | None = None,
        batch_size: int = 64,
        precision: Precision = "float32",
    ) -> CellCodes:
        """Return the nearest code of each cell.

        Parameters
        ----------
        adata, layer, units, total_counts, batch_size, precision
            As for :meth:`get_latent_representation`.

        Returns
        -------
        CellCodes
            In the order of the cells. A cell that expresses none of the model's genes has the code
            −1, and ``NaN`` in all other fields.

            Codes differ between processors only for cells whose ``margin`` is 0 up to rounding. In
            bfloat16 more cells with a ``margin`` near 0 get the other code.

        Raises
        ------
        KeyError, ValueError
            As :meth:`get_latent_representation`.
        """
        reader = self._reader(adata, layer, units, total_counts)
        n = reader.n_cells
        code = np.full(n, NO_CODE, dtype=np.int64)
        latent, best = (
            np.full((n, width), np.nan, dtype=np.float32) for width in (self.size.code_dim, 2)
        )
        for rows, places in self._places(reader, batch_size, precision):
            found = self.module.quantize(places)
            code[rows] = found.code.cpu().numpy()
            latent[rows] = found.latent.float().cpu().numpy()
            best[rows] = found.similarity.float().topk(2, dim=1).values.cpu().numpy()
        return CellCodes(
            code=code,
            latent=latent,
            similarity=best[:, 0].copy(),
            margin=best[:, 0] - best[:, 1],
        )

    @torch.inference_mode()
    def get_codebook(self) -> Codebook:
        """Return all codes of the model.

        Returns
        -------
        Codebook
            In the order of their numbers.
        """
        self.module.eval()
        return Codebook(
            vectors=self.module.codebook().float().cpu().numpy(),
            bits=self.module.bits.cpu().numpy().astype(np.int8),
        )

    @checks_arguments()
    @torch.inference_mode()
    def get_attention(
        self,
        adata: AnnData | None = None,
        *,
        layer: str | None = None,
        units: Units = "counts",
        total_counts: str | None = None,
        reduce: Literal["mean"] | None = None,
    ) -> Iterator[tuple[pd.Index, np.ndarray]]:
        """Yield the attention maps of cells, one cell at a time and in their order.

        The two count tokens represent the whole cell and are merged into ``"<summary>"``: their
        rows are averaged, their columns summed.

        Parameters
        ----------
        adata, layer, units, total_counts
            As for :meth:`get_latent_representation`.
        reduce
            ``"mean"`` averages over layers and heads, with few maps in memory.

        Yields
        ------
        tokens
            ``(n + 1,)`` names: ``"<summary>"``, then the genes that the cell expresses, in the
            order of the vocabulary; no gene for a cell that expresses none.
        weights
            ``(layers, heads, n + 1, n + 1)`` float32, or with ``reduce="mean"``
            ``(n + 1, n + 1)``; rows (queries) sum to 1.

        Raises
        ------
        KeyError, ValueError
            As :meth:`get_latent_representation`.
        """
        reader = self._reader(adata, layer, units, total_counts)
        for row in range(reader.n_cells):
            tokens = reader.tokens(np.array([row])).to(self.device)
            genes = self.vocabulary.genes[tokens.gene_ids[0, :-2].cpu().numpy()]
            with one_thread_if_small(self.size.dim, self.device):
                layers = (_merge_count_tokens(w[0]) for w in self.module.attention(*tokens))
                if reduce is None:
                    weights = torch.stack(list(layers))
                else:
                    weights = torch.stack([w.mean(0) for w in layers]).mean(0)
            yield genes.insert(0, SUMMARY), weights.cpu().numpy()

    @checks_arguments()
    @torch.inference_mode()
    def get_gene_embeddings(
        self,
        adata: AnnData | None = None,
        *,
        layer: str | None = None,
        units: Units = "counts",
        total_counts: str | None = None,
        batch_size: int = 64,
        precision: Precision = "auto",
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the embeddings of all genes of the vocabulary, a few cells at a time.

        Parameters
        ----------
        adata, layer, units, total_counts, batch_size, precision
            As for :meth:`get_latent_representation`.

        Yields
        ------
        rows
            Slice of the cells.
        embeddings
            ``(b, n_genes, dim)`` float32: the output of a gene's token, in the context of the
            cell; ``NaN`` for genes that a cell does not express, which have no token.

        Raises
        ------
        KeyError, ValueError
            As :meth:`get_latent_representation`.
        """
        reader = self._reader(adata, layer, units, total_counts)
        dtype = self.inference_dtype(precision)
        n_genes, dim = len(self.vocabulary), self.size.dim
        at_once = max(1, min(batch_size, _EMBEDDED_AT_ONCE // (n_genes * dim)))
        for start in range(0, reader.n_cells, at_once):
            rows = slice(start, min(start + at_once, reader.n_cells))
            tokens = reader.tokens(np.arange(rows.start, rows.stop)).to(self.device)
            states = self.module.encode(*tokens, dtype=dtype).float().cpu().numpy()
            genes = tokens.gene_ids.cpu().numpy()
            out = np.full((len(states), n_genes, dim), np.nan, dtype=np.float32)
            cell, place = np.nonzero(genes < n_genes)
            out[cell, genes[cell, place]] = states[cell, place]
            yield rows, out

    def choose_properties(self, properties: str | Sequence[str] | None = None) -> list[str]:
        """Return the names of some property heads.

        By default those that make sense for any cells: ``default_properties`` in the provenance
        of the model, or all.

        Raises
        ------
        KeyError
            If the model has no head of a name.
        ValueError
            If the model has no heads at all, or ``properties`` is empty.
        """
        listed = self.provenance.get("default_properties")
        default = listed if isinstance(listed, list) else []
        return self.module.property_heads.choose(properties, default)

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
        head gives, which sum to 1. Those of heads on the embedding are not calibrated, and a cell
        of a kind that the head was not trained on gets one of its classes nonetheless. ``NaN`` for
        cells that express none of the model's genes.

        Raises
        ------
        KeyError
            If there is no such property, layer or column.
        ValueError
            If the model has no property heads, values are not in the declared units, or too few
            genes are found.

        Warns
        -----
        UserWarning
            If few of the model's genes are measured, cells express none of them, or a head has a
            single class.

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
                f"The heads {single} have a single class each, which they predict for every cell; "
                "their predictions carry no information."
            )
        reader = self._reader(adata, layer, units, total_counts)
        out = {
            name: np.full((reader.n_cells, len(self.properties[name])), np.nan, dtype=np.float32)
            for name in chosen
        }
        heads = self.module.property_heads
        by_expression = {k: head for k, head in heads.expression().items() if k in chosen}
        if len(by_expression) < len(chosen):
            for rows, encoded in self._encoded(reader, batch_size, precision):
                for name, predicted in heads.predict(encoded.embedding).items():
                    if name in out:
                        out[name][rows] = predicted
        if by_expression:
            for rows, cells in reader.batches(_EXPRESSION_AT_ONCE):
                for name, head in by_expression.items():
                    out[name][rows] = head.predict(cells.values, reader.measured)
        names = self._given_or_own(adata)[0].obs_names
        return {
            name: pd.DataFrame(table, index=names, columns=self.properties[name])
            for name, table in out.items()
        }

    @checks_arguments(unknown=Range(0, 0.5))
    def least_confidence(self, name: str, unknown: float) -> float:
        """Return the probability below which a share of the held-out cells lies.

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
        return self.module.property_heads.least_confidence(name, unknown)

    def set_confidence_levels(self, name: str, confidence: np.ndarray) -> None:
        """Set the confidence of a head in held-out cells, ``(n_cells,)`` largest probabilities."""
        self.module.property_heads.set_confidence_levels(name, confidence)

    @checks_arguments()
    def set_properties(
        self, properties: Mapping[str, Sequence[str] | None], *, seed: int = 0
    ) -> None:
        """Add or replace property heads, untrained; others stay.

        Parameters
        ----------
        properties
            Classes of each new head by its name, the column of ``obs`` that it is trained on. A
            head of that name is replaced; ``None`` removes it.
        seed
            Seed of the new weights.

        Raises
        ------
        KeyError
            If a head to remove does not exist.
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
        self.module.property_heads.change(properties, seed=seed)
        self.module.property_heads.to(self.device)
        self._summarise()

    @checks_arguments(n_folds=2, max_fold=Range(1), quantile=SHARE)
    @torch.inference_mode()
    def simulate(
        self,
        adata: AnnData,
        perturbation: Sequence[str],
        *,
        layer: str | None = None,
        groupby: str | None = None,
        batch_size: int = 64,
        seed: int = 0,
        units: Units = "counts",
        total_counts: str | None = None,
        effect: Effect | float = "knock_out",
        quantile: float = 0.95,
        targets: pd.DataFrame | None = None,
        n_folds: int = 2,
        max_fold: float = 10.0,
    ) -> AnnData:
        r"""Predict codes and expression of cells after a change of some genes.

        The genes are removed from the tokens of the cell, or their values are changed; other tokens
        stay. The cell is encoded to a code, and decoded, before and after:

        .. math:: \hat x_g = x_g \, \mathrm{clip}(\mu'_g / \mu_g, 1 / F, F)

        with :math:`\mu_g` and :math:`\mu'_g` the means that are decoded before and after, in
        counts, and *F* = ``max_fold``. The decoder was trained on genes that it did not see, so
        genes are split into folds at random, and each fold is decoded from the others and the
        perturbed genes. A gene that a cell does not express stays so, unless it is
        over-expressed.

        Unless the model was trained on perturbed cells, the prediction follows from co-expression;
        it is not a causal effect. Matrix products run in float32, because changes are small.

        Parameters
        ----------
        adata
            Unperturbed cells by genes.
        perturbation
            Genes, by any name that can be mapped, and with ``targets`` also compounds.
        layer
            Layer to read instead of ``X``.
        groupby
            Not used: each cell is predicted alone.
        batch_size
            Cells at a time; the result does not depend on it.
        seed
            Of the folds, and of rounding to counts.
        units, total_counts
            See :meth:`get_latent_representation`.
        effect
            ``"knock_out"``: the genes are not expressed. ``"over_expression"``: they are raised to
            the ``quantile`` of the expressed values of the cell, if they are lower. A number:
            their counts are multiplied by it.
        quantile
            See ``effect``.
        targets
            Table of the genes that compounds act on, such as :func:`cfm.datasets.drug_targets`,
            columns ``compound`` and ``gene``; ``effect`` applies to these genes.
        n_folds
            Folds of the genes, at least 2; the network runs once per fold.
        max_fold
            Largest factor by which a gene rises or falls.

        Returns
        -------
        AnnData, cells by the genes of ``adata`` that the model has, in the units of the input:
        CSR float32; counts are rounded up or down at random so that the mean stays. ``obs``:
        ``'cell_code_before'`` and ``'cell_code_after'`` (categorical of str such as ``"7"``;
        missing for cells that express none of the model's genes).
        ``uns['code_transitions']``: DataFrame of ``before``, ``after`` and ``n_cells``, the most
        frequent first.

        Raises
        ------
        TypeError
            If ``perturbation`` is one text, or ``targets`` no table.
        KeyError
            If a name is neither a gene of the model nor a compound that acts on one.
        ValueError
            If an option is out of range, or values are not in the declared units.

        Warns
        -----
        UserWarning
            If no cell expresses a gene that is to be changed, so that nothing changes, few of the
            model's genes are measured, or cells express none of them.
        """
        change = GeneChange(find_genes(self.vocabulary, perturbation, targets), effect, quantile)
        reader = self._reader(adata, layer, units, total_counts)
        simulator = Simulator(
            self.module,
            change,
            assign_folds(len(self.vocabulary), change.places, n_folds, seed),
            max_fold,
            # elsewhere decoders were trained without the codes of cells
            self.module.code_term is not None or "training_studies" in self.provenance,
            reader.measured,
        )
        rounding = Rounding([str(n) for n in adata.obs_names], seed) if units == "counts" else None
        return simulator.run(adata, reader, batch_size=batch_size, rounding=rounding)

    def _training(self, run: TrainingRun) -> AbstractContextManager[Training]:
        return training_of(self, run)

    def _reader(
        self, adata: AnnData | None, layer: str | None, units: Units, total_counts: str | None
    ) -> CellReader:
        """Return a reader of cells, by default the registered ones; set evaluation mode."""
        self.module.eval()
        if adata is None:
            return self.registered_reader()
        return CellReader(
            adata,
            self.vocabulary,
            layer=layer,
            units=units,
            total_counts=total_counts,
        )

    def registered_reader(self) -> CellReader:
        """Return a reader of the registered data."""
        adata, _ = self._given_or_own(None)
        setup = self._setup_arguments()
        given = {key: setup[key] for key in ("layer", "units", "total_counts")}
        return CellReader(adata, self.vocabulary, **given)

    def registered_labels(self) -> dict[str, np.ndarray]:
        """Return the registered properties, ``(n,)`` object by column; ``""`` = no label."""
        keys = self._setup_arguments()["labels_keys"]
        return {key: labels_of(self.adata, key) for key in keys}

    def _setup_arguments(self) -> dict[str, Any]:
        """Return the arguments of :meth:`setup_anndata`."""
        return self.adata_manager.registry["setup_args"]

    def _encoded(
        self, reader: CellReader, batch_size: int, precision: Precision
    ) -> Iterator[tuple[np.ndarray, Encoded]]:
        """Yield ``(rows, output of the encoder)`` of the cells that express a gene of the model."""
        dtype = self.inference_dtype(precision)
        most = _ON_CPU if self.device.type == "cpu" else _ON_GPU
        for rows, cells in reader.batches(batch_size, most_tokens=most):
            yield rows, self.module.encode_cells(*cells.tokens().to(self.device), dtype=dtype)

    def _places(
        self, reader: CellReader, batch_size: int, precision: Precision
    ) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Yield ``(rows, what is quantised)``; the encoder is not run where expression is."""
        codes = self.module.code_reader(reader.measured)
        if codes is None:
            for rows, encoded in self._encoded(reader, batch_size, precision):
                yield rows, encoded.quantised
            return
        for rows, cells in reader.batches(_EXPRESSION_AT_ONCE):
            yield rows, codes.positions(cells.values).to(self.device)

    @classmethod
    @reads_checkpoint
    @fill_docs(TEXTS)
    def from_pretrained(
        cls,
        source: str | Path,
        adata: AnnData | None = None,
        *,
        device: str = "auto",
        mode: str | None = None,
        genes: Sequence[str] | None = None,
        properties: Mapping[str, Sequence[str]] | None = None,
    ) -> Self:
        """Load a model by name, folder or ``hf://org/name``.

        Parameters
        ----------
        source
            Name of a bundled or registered checkpoint, a folder that :meth:`save` wrote, or
            ``models.ckpt`` as the authors release it, or a folder with it: a dictionary of
            ``config`` and the weights of each mode. No code in it is run.
        adata
            Data to attach for further training, registered with ``setup_anndata``. Properties
            that the model has no head for get one when it is trained.
        %(device)s
        mode
            Which weights of the authors' file to load, by default ``"m1"``.
        genes
            Names of the genes of the authors' weights, in their order. By default those of
            ``OS_scRNA_gene_index.19264.tsv`` beside the file; without either the network can be
            used with tensors, but no AnnData can be read.
        properties
            Names of the classes of the authors' heads, which their file does not contain; by
            default ``"0"``, ``"1"``, ….

        Raises
        ------
        ValueError
            If the checkpoint is damaged, is not safe to read, belongs to another model, or an
            argument does not fit it.
        """
        return cls._load_from(source, adata, device, mode=mode, genes=genes, properties=properties)

    @classmethod
    def _read_published(cls, path: Path, name: str, **published: Any) -> Checkpoint:
        return read_published(path, **published)

    def _contents(self) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, str]]:
        settings, files = self.module.property_heads.state()
        if self._vocabulary is not None:
            files |= self._genes_file()
        config = {"size": vars(self.size), "n_genes": self.module.n_genes} | settings
        return dict(self.module.state_dict()), config, files

    @classmethod
    def _from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        config, tensors, name = dict(checkpoint.config), checkpoint.tensors, checkpoint.name
        with validate_config("CellVQ", name, tensors):
            size = CellVQSize(**config.pop("size"))
            n_genes = check_whole("n_genes", config.pop("n_genes"))
            vocabulary = stored_genes(checkpoint) if GENES_FILE in checkpoint.files else None
            module = CellVQModule(n_genes, size=size)
            module.property_heads = PropertyHeads.from_state(
                4 * size.dim, n_genes, config, checkpoint.files
            )
            for key in (LEVELS, EXPRESSION):
                config.pop(key, None)
        if vocabulary is not None and len(vocabulary) != n_genes:
            raise ValueError(
                f"Found {len(vocabulary)} names of genes, but weights of {n_genes} genes in "
                f"checkpoint {name!r}."
            )
        # very large weights are not copied
        load_weights(module, tensors, name, copy=False)
        # not by __init__, which would make a network in memory
        model = cls.__new__(cls)
        PretrainedModel.__init__(model)
        model._vocabulary, model.module, model.provenance = vocabulary, module, config
        model._summarise()
        return model


def _merge_count_tokens(weights: torch.Tensor) -> torch.Tensor:
    """Merge the last two tokens of ``(heads, n + 2, n + 2)`` weights, and put them first."""
    columns = torch.cat([weights[..., -2:].sum(-1, keepdim=True), weights[..., :-2]], dim=-1)
    return torch.cat([columns[:, -2:].mean(1, keepdim=True), columns[:, :-2]], dim=1)
