"""BulkFormer: the public class."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data.fields import CategoricalObsField, LayerField

from cfm._adata import warn_user
from cfm._arguments import (
    BELOW_1,
    NOT_NEGATIVE,
    SHARE,
    check_flag,
    check_whole,
    checks_arguments,
    named_size,
)
from cfm._docs import fill_docs
from cfm.data import GeneVocabulary
from cfm.data._matrix import get_matrix
from cfm.hub._checkpoint import validate_config
from cfm.hub._resolve import reads_checkpoint
from cfm.models._base import (
    TEXTS,
    Precision,
    PretrainedModel,
    check_column,
    load_weights,
    stored_genes,
)
from cfm.models._training import Training, TrainingRun, held_out_rows, root_weights
from cfm.models.bulkformer._compounds import (
    CompoundHead,
    baseline_profiles,
    compound_key,
    read_features,
    read_signatures,
)
from cfm.models.bulkformer._data import (
    ExpressionReader,
    align_gene_features,
    check_mask,
    features_by_gene,
    graph_of_data,
    graph_tensors,
)
from cfm.models.bulkformer._factor_model import LocalFactorModel
from cfm.models.bulkformer._latest import SIZES, BulkFormerLatestSize
from cfm.models.bulkformer._module import (
    MISSING,
    BulkFormerSize,
    lower_genes,
    pool_genes,
)
from cfm.models.bulkformer._published import read_published
from cfm.models.bulkformer._training import (
    BulkFormerRecipe,
    MaskedExpressionPlan,
    SampleStream,
)
from cfm.nn._genes import check_graph

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from cfm.hub import Checkpoint

Pooling = Literal["auto", "factors", "mean", "max", "median", "all"]
PerturbationKind = Literal["auto", "gene", "compound"]

#: Names in a checkpoint of what a model may hold beside its network.
_LINEAR_TERM, _COMPOUNDS = "linear_term", "compounds"


class BulkFormer(PretrainedModel):
    """Foundation model of bulk expression: every gene of a sample, with a co-expression graph.

    A sample is the log TPM of all genes of the vocabulary; what is not measured is missing, not
    zero. The model embeds each gene in the context of its sample and predicts its expression.

    Parameters
    ----------
    adata
        Samples by genes, natural log1p of TPM (:func:`cfm.pp.tpm`), registered with
        :meth:`setup_anndata`.
    vocabulary
        Gene symbols of the model; by default ``adata.var_names``.
    size
        ``"mini"``, one of the published ``"37M"``, ``"50M"``, ``"93M"``, ``"127M"``, ``"147M"``
        (v2, nominal names) and ``"latest"`` (v3), or a ``BulkFormerSize``.
    graph
        Co-expression graph over the vocabulary: a sparse matrix (row = target), or a pair of
        ``(2, n_edges)`` edges and ``(n_edges,)`` weights. By default ``adata.varp["coexpression"]``
        (:func:`cfm.pp.coexpression_graph`), or a new graph of the data if it is not there.
    gene_features
        Table of genes by features, such as embeddings of proteins; by default an embedding per
        gene is learned.
    seed
        Seed of the initial weights.
    **sizes
        Single settings of the size to change: ``dim``, ``n_layers``, ``n_heads``, ``n_blocks``,
        ``ff_mult``, ``attention_dropout``, ``ff_dropout``, ``centred``.

    Attributes
    ----------
    module
        The network.
    vocabulary
        Its genes.
    size
        Its sizes.
    linear_term
        The local factor model that is blended with predicted expression
        (:meth:`fit_linear_term`), or ``None``. It is not part of the published model.
    compound_head
        What :meth:`train_compounds` trained, or ``None``. It is not part of the published model.

    Notes
    -----
    The architectures of the BulkFormer repository of December 2025 (v2, five sizes; Cell Systems
    17(7) 101657, 2026) and of October 2026 (v3, bulkformer-latest), whose released weights
    :meth:`from_pretrained` reads. With
    ``precision="auto"`` matrix products run in bfloat16 where the processor is fast at it and, in
    a trial once per weights, embeddings have a cosine similarity of at least 0.999 to float32.

    Examples
    --------
    >>> import cfm
    >>> model = cfm.models.BulkFormer(vocabulary=["A", "B", "C"], graph=([[0], [1]], [0.9]))
    >>> model.module.dim
    64
    """

    Recipe = BulkFormerRecipe

    def __init__(
        self,
        adata: AnnData | None = None,
        *,
        vocabulary: Sequence[str] | GeneVocabulary | None = None,
        size: str | BulkFormerSize | BulkFormerLatestSize = "mini",
        graph: Any = None,
        gene_features: pd.DataFrame | None = None,
        seed: int = 0,
        **sizes: Any,
    ) -> None:
        super().__init__(adata)
        vocabulary = self._vocabulary_of(adata, vocabulary)
        self.vocabulary = vocabulary
        #: Whether the vocabulary contains names; published weights may come without a gene list.
        self.knows_genes = True
        self.size = named_size(size, SIZES, sizes)
        table = None if gene_features is None else align_gene_features(gene_features, vocabulary)
        width = 0 if table is None else table.shape[1]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.module = self.size.module(len(vocabulary), width)
        if table is not None:
            self.module.set_gene_features(torch.from_numpy(table))
        if graph is not None:
            self.module.set_graph(*graph_tensors(graph, len(vocabulary)))
        elif adata is not None:
            reader = ExpressionReader(adata, vocabulary, layer=self._registered_layer())
            self.module.set_graph(*graph_of_data(reader))
        self.linear_term: LocalFactorModel | None = None
        self.compound_head: CompoundHead | None = None
        self._summarise()

    def _summarise(self) -> None:
        """Set the summary that scvi-tools prints."""
        n = sum(p.numel() for p in self.module.parameters())
        self._model_summary_string = (
            f"BulkFormer: {len(self.vocabulary)} genes, width {self.size.dim}, "
            f"{len(self.module.blocks)} × {self.size.n_layers} Performer layers, {n:,} parameters"
        )

    @classmethod
    @fill_docs(TEXTS)
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
            Column of ``obs`` with the study: validation is on whole studies.
        %(register_fields)s

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
        cls._register(adata, fields, setup_method_args, **kwargs)

    def vocabulary_share(self, adata: AnnData) -> float:
        """Return the share of the model's genes that ``adata`` measures."""
        self.require_genes()
        return self.vocabulary.align(adata.var_names).found_share

    def require_genes(self) -> None:
        """Check that the columns of the model have gene names.

        Raises
        ------
        ValueError
            If it was loaded from weights without a gene list.
        """
        if not self.knows_genes:
            raise ValueError(
                f"The weights came without their gene list (bulkformer_gene_info.csv in v2, "
                f"gene_vocab.csv in v3), so it is unknown which genes the model's "
                f"{len(self.vocabulary)} columns are; put that file beside them, or "
                "pass their names in order: from_pretrained(folder, genes=[…])."
            )

    @checks_arguments()
    @torch.inference_mode()
    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        *,
        layer: str | None = None,
        pooling: Pooling = "auto",
        genes: Sequence[str] | None = None,
        batch_size: int = 64,
        precision: Precision = "auto",
    ) -> np.ndarray:
        """Return embeddings of samples: the embeddings of their genes, pooled, or linear factors.

        Parameters
        ----------
        adata
            Samples by genes, log TPM, any gene order; need not be registered. The model's own
            data if not given.
        layer
            Layer with the log TPM instead of ``X``.
        pooling
            Of the network's embeddings: ``"mean"``, ``"max"`` or ``"median"`` (the lower of two
            middle values) over genes, or ``"all"`` three, one after the other. Weights of v3
            pool over the genes that are observed in each sample. ``"factors"``: the leading
            factors of the linear term instead, at most 128, without the network. ``"auto"``:
            ``"factors"`` if the term has more than half of the weight in predictions
            (:meth:`fit_linear_term`), else ``"mean"``.
        genes
            Genes to pool over or to fit the factors to, names of the vocabulary; by default those
            that ``adata`` has.
        batch_size
            Samples to read at a time; the result does not depend on it.
        precision
            ``"float32"``, ``"bfloat16"``, or ``"auto"``; see the class.

        Returns
        -------
        ``(n, dim + 3)`` float32; the last three are the share of missing genes, the mean of the
        measured values and the share of values that are not zero. ``(n, dim)`` for v3, and three
        times as many columns for ``"all"``. Of factors ``(n, f)`` float32, in units of log TPM.

        Raises
        ------
        KeyError
            If the layer or a gene does not exist.
        ValueError
            If the matrix is not log TPM, too few genes are found, or a model without linear term
            is to return its factors.
        """
        reader = self._reader(adata, layer)
        measured = np.sort(reader.alignment.positions)
        place = measured if genes is None else self._positions(genes)
        term = self.linear_term
        if pooling == "auto":
            pooling = "factors" if term is not None and float(term.weight) > 0.5 else "mean"
        if pooling == "factors":
            if term is None:
                raise ValueError(
                    "pooling='factors' needs a linear term, which this model does not have; call "
                    "model.fit_linear_term(), or pass pooling='mean'."
                )
            parts = [
                term.embed(_observed(expression, place))
                for _, _, expression in reader.batches(batch_size)
            ]
            return np.concatenate(parts)
        index = torch.from_numpy(place).to(self.device)
        width = self.module.n_outputs * (3 if pooling == "all" else 1)
        out = np.empty((reader.adata.n_obs, width), dtype=np.float32)
        for rows, expression, embedded in self._embeddings(reader, batch_size, precision):
            if self.module.pools_observed:
                observed = (expression != MISSING)[:, index]
                _check_observed(observed, rows.start)
                pooled = [
                    pool_genes(one[index][seen][None], pooling)
                    for one, seen in zip(embedded, observed, strict=True)
                ]
                out[rows] = torch.cat(pooled).cpu().numpy()
            else:
                out[rows] = pool_genes(embedded[:, index], pooling).cpu().numpy()
        return out

    @checks_arguments()
    @torch.inference_mode()
    def get_gene_embeddings(
        self,
        adata: AnnData | None = None,
        *,
        layer: str | None = None,
        genes: Sequence[str] | None = None,
        gene_features: pd.DataFrame | None = None,
        batch_size: int = 64,
        precision: Precision = "auto",
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the embeddings of genes in their samples, a few samples at a time.

        Parameters
        ----------
        adata, layer, batch_size, precision
            As for :meth:`get_latent_representation`.
        genes
            Names of the vocabulary; by default all of it, in its order.
        gene_features
            Genes by features, such as embeddings of proteins, that are appended to the embedding
            of each gene as they are; ``NaN`` for genes without a row. The authors append 1,280
            numbers of ESM2 to the 643 of the largest model of v2.

        Yields
        ------
        rows
            Slice of the samples.
        embeddings
            ``(b, n_genes, dim + 3 + n_features)`` float32; without the 3 for v3.

        Raises
        ------
        ValueError
            If ``gene_features`` has no gene of the vocabulary.
        """
        reader = self._reader(adata, layer)
        place = self._positions(genes)
        index = torch.from_numpy(place).to(self.device)
        table = None
        if gene_features is not None:
            table = features_by_gene(gene_features, self.vocabulary)[place]
        for rows, _, embedded in self._embeddings(reader, batch_size, precision):
            chosen = embedded[:, index].cpu().numpy()
            if table is not None:
                wide = np.broadcast_to(table, (len(chosen), *table.shape))
                chosen = np.concatenate([chosen, wide], axis=2)
            yield rows, chosen

    @checks_arguments()
    @torch.inference_mode()
    def impute(
        self,
        adata: AnnData | None = None,
        *,
        layer: str | None = None,
        mask: np.ndarray | None = None,
        absent_genes: bool = False,
        batch_size: int = 64,
        precision: Precision = "auto",
    ) -> np.ndarray | tuple[np.ndarray, pd.DataFrame]:
        """Fill in missing expression; what is observed stays as it is.

        Parameters
        ----------
        adata, layer, batch_size, precision
            As for :meth:`get_latent_representation`; ``NaN`` and −10 are missing.
        mask
            ``(n_obs, n_vars)`` bool: entries to hide from the model and predict as well.
        absent_genes
            Predict the genes of the model that ``adata`` lacks (:meth:`absent_genes`), too.

        Returns
        -------
        ``(n_obs, n_vars)`` float32 log TPM. ``NaN`` where a missing gene is not among the model's.
        With ``absent_genes`` also a DataFrame, samples by absent genes.
        """
        reader = self._reader(adata, layer)
        mask = check_mask(mask, reader.adata)
        alignment = reader.alignment
        names = self.absent_genes(reader.adata) if absent_genes else pd.Index([])
        place = self.vocabulary.genes.get_indexer(names)
        out = np.empty(reader.adata.shape, dtype=np.float32)
        absent = np.empty((len(out), len(names)), dtype=np.float32)
        for rows, values, predicted in self._predictions(reader, mask, batch_size, precision):
            filled = np.full(values.shape, np.nan, dtype=np.float32)
            filled[:, alignment.columns] = predicted[:, alignment.positions]
            out[rows] = np.where(np.isnan(values), filled, values)
            absent[rows] = predicted[:, place]
        if not absent_genes:
            return out
        return out, pd.DataFrame(absent, index=reader.adata.obs_names, columns=names)

    def absent_genes(self, adata: AnnData) -> pd.Index:
        """Return the genes of the vocabulary that ``adata`` does not have."""
        self.require_genes()
        found = self.vocabulary.align(adata.var_names).positions
        return self.vocabulary.genes.delete(found)

    @checks_arguments()
    @torch.inference_mode()
    def predict_expression(
        self,
        adata: AnnData | None = None,
        *,
        layer: str | None = None,
        genes: Sequence[str] | None = None,
        mask: np.ndarray | None = None,
        batch_size: int = 64,
        precision: Precision = "auto",
    ) -> pd.DataFrame:
        """Predict the expression of the model's genes, also of those that were not measured.

        Parameters
        ----------
        adata, layer, mask, batch_size, precision
            As for :meth:`impute`.
        genes
            Names of the vocabulary; by default all of it.

        Returns
        -------
        Samples by genes, float32 log TPM. Of observed genes this is the model's reconstruction.
        """
        reader = self._reader(adata, layer)
        place = self._positions(genes)
        mask = check_mask(mask, reader.adata)
        out = np.empty((reader.adata.n_obs, len(place)), dtype=np.float32)
        for rows, _, predicted in self._predictions(reader, mask, batch_size, precision):
            out[rows] = predicted[:, place]
        return pd.DataFrame(out, index=reader.adata.obs_names, columns=self.vocabulary.genes[place])

    @checks_arguments(remaining=NOT_NEGATIVE)
    @torch.inference_mode()
    def knock_down(
        self,
        adata: AnnData | None,
        genes: str | Sequence[str],
        *,
        layer: str | None = None,
        remaining: float = 0.0,
        batch_size: int = 64,
        precision: Precision = "auto",
    ) -> pd.DataFrame:
        """Predict the change of expression when genes are knocked down.

        The genes' TPM are multiplied by ``remaining``, and the prediction for the changed sample
        is compared with the prediction for the sample as it is. The change follows from
        co-expression; it is neither a measured nor a causal effect.

        Parameters
        ----------
        adata, layer, batch_size, precision
            As for :meth:`get_latent_representation`.
        genes
            One or more genes, by names of the vocabulary; each has to be measured.
        remaining
            Share of the TPM that is left, from 0.

        Returns
        -------
        Samples by genes of the vocabulary, float32: predicted change of log TPM.

        Raises
        ------
        KeyError
            If a gene is not in the vocabulary, or ``adata`` does not measure it.
        ValueError
            If ``remaining`` is negative.
        """
        reader = self._reader(adata, layer)
        place = self._positions([genes] if isinstance(genes, str) else genes)
        absent = self.vocabulary.genes[place[~np.isin(place, reader.alignment.positions)]].tolist()
        if absent:
            raise KeyError(f"adata does not measure {absent}; what is missing cannot be lowered.")
        out = np.empty((reader.adata.n_obs, len(self.vocabulary)), dtype=np.float32)
        index = torch.from_numpy(place).to(self.device)
        dtype = self.inference_dtype(precision)
        for rows, _, expression in self._batches(reader, batch_size, whole=self._term_alone):
            lowered = lower_genes(expression, index, remaining)
            shift = self._predict(lowered, dtype) - self._predict(expression, dtype)
            out[rows] = shift.cpu().numpy()
        return pd.DataFrame(out, index=reader.adata.obs_names, columns=self.vocabulary.genes)

    @checks_arguments()
    @torch.inference_mode()
    def predict_compound(
        self,
        adata: AnnData,
        compound: str,
        *,
        features: pd.Series | None = None,
        layer: str | None = None,
        batch_size: int = 64,
        precision: Precision = "auto",
    ) -> pd.DataFrame:
        """Predict the effect of a compound on samples.

        Parameters
        ----------
        adata, layer, batch_size, precision
            As for :meth:`get_latent_representation`.
        compound
            One of ``model.compounds``, in any case; with ``features`` any name.
        features
            Features of a new compound, by the names of the training features; 0 where not given.

        Returns
        -------
        Samples by the genes that the training signatures measured, float32: change of log TPM; if
        the signatures were directions, the expected direction, about −1 to 1.

        Raises
        ------
        KeyError
            If the model has no compound head, or the head lacks this compound or these features.
        """
        head = self.compound_head
        if head is None:
            raise KeyError(
                f"The model was not trained on compounds, so it cannot predict {compound!r}; see "
                "train_compounds."
            )
        described = head.describe_named(compound, features)
        reader = self._reader(adata, layer)
        genes = self.vocabulary.genes[head.genes.cpu().numpy()]
        out = np.empty((adata.n_obs, len(genes)), dtype=np.float32)
        for rows, _, embedded in self._embeddings(reader, batch_size, precision):
            made = head(embedded[:, head.genes], described.expand(len(embedded), -1))
            out[rows] = made.cpu().numpy()
        return pd.DataFrame(out, index=adata.obs_names, columns=genes)

    @checks_arguments(remaining=NOT_NEGATIVE)
    def simulate(
        self,
        adata: AnnData,
        perturbation: Sequence[str],
        *,
        layer: str | None = None,
        groupby: str | None = None,
        batch_size: int = 64,
        seed: int = 0,
        kind: PerturbationKind = "auto",
        remaining: float = 0.0,
        strength: float = 1.0,
        features: pd.Series | None = None,
        precision: Precision = "auto",
    ) -> AnnData:
        """Predict samples after knock-downs of genes and treatment with compounds.

        The predicted changes of log TPM are added to the measured values: :meth:`knock_down` of
        all genes together, and :meth:`predict_compound` of each compound. Log TPM does not fall
        below 0. Genes that are knocked down have ``remaining`` of their TPM.

        Parameters
        ----------
        adata, layer, batch_size, precision
            As for :meth:`get_latent_representation`.
        perturbation
            Genes of the vocabulary, and compounds of ``model.compounds``.
        groupby, seed
            Not used: each sample is predicted alone, and nothing is random.
        kind
            Kind of the names: ``"gene"``, ``"compound"``, or ``"auto"``, genes if the vocabulary
            has them and compounds otherwise.
        remaining
            Share of a gene's TPM that is left.
        strength
            Factor of a compound's change. Signatures of directions have no sizes: with 1 a gene
            that is certain to rise gets one natural log unit.
        features
            Of a new compound; see :meth:`predict_compound`.

        Returns
        -------
        AnnData, samples by those genes of ``adata`` that are predicted, float32 log TPM; ``NaN``
        where a gene was not measured.

        Raises
        ------
        KeyError
            If a name is neither a gene nor a compound of the model, or a gene is not measured.
        ValueError
            If the matrix is not log TPM, or an option is out of range.
        """
        genes = [
            p
            for p in perturbation
            if kind == "gene" or (kind == "auto" and p in self.vocabulary.genes)
        ]
        compounds = [p for p in perturbation if p not in genes]
        if features is not None and len(compounds) != 1:
            raise ValueError(
                f"features= describes one compound; found {len(compounds)} in {list(perturbation)}."
            )
        if kind == "auto" and compounds and features is None:
            unknown = [c for c in compounds if compound_key(c) not in self.compounds]
            if unknown:
                raise KeyError(
                    f"{unknown} are neither genes of the model (such as "
                    f"{', '.join(self.vocabulary.genes[:3])}) nor among the "
                    f"{len(self.compounds)} compounds that it was trained on (train_compounds)."
                )
        options: Any = {"layer": layer, "batch_size": batch_size, "precision": precision}
        shifts = [
            strength * self.predict_compound(adata, compound, features=features, **options)
            for compound in compounds
        ]
        if genes:
            shifts.append(self.knock_down(adata, genes, remaining=remaining, **options))
        reader = self._reader(adata, layer)
        positions, columns = reader.alignment.positions, reader.alignment.columns
        names = self.vocabulary.genes[positions]
        predicted = np.zeros(len(names), dtype=bool)
        change = np.zeros((adata.n_obs, len(names)), dtype=np.float32)
        for shift in shifts:
            found = shift.columns.get_indexer(names)
            predicted |= found >= 0
            change[:, found >= 0] += shift.to_numpy()[:, found[found >= 0]]
        down = np.isin(names, genes)
        out = np.empty_like(change)
        for rows, values in reader.blocks(batch_size):
            measured = values[:, columns]
            out[rows] = np.maximum(measured + change[rows], 0.0)
            out[rows, down] = np.log1p(np.expm1(measured[:, down]) * remaining)
        return AnnData(
            out[:, predicted],
            obs=adata.obs[[]],
            var=adata.var[[]].iloc[columns[predicted]],
        )

    @contextmanager
    def _training(self, run: TrainingRun) -> Iterator[Training]:
        recipe: BulkFormerRecipe = run.recipe
        reader = self._registered_reader()
        reader.check()
        studies = self.registered_categories(REGISTRY_KEYS.BATCH_KEY)
        held_out = held_out_rows(studies, recipe.validation_share, run.seed)
        training, validation = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        if not self.is_trained_:
            self.module.start_from(torch.from_numpy(reader.mean(training)))
        settings: Any = {"mask_share": recipe.mask_share, "prefetch": reader.prefetch, **run.layout}
        weights = root_weights(studies[training]) if recipe.balanced else None
        batches = SampleStream(reader.read, training, seed=run.seed, weights=weights, **settings)
        checks = None
        if len(validation):
            checks = SampleStream(
                reader.read, validation, seed=run.seed + 1, fixed=True, **settings
            )
        n_steps = run.count_steps(batches.n_batches)
        plan = MaskedExpressionPlan(
            self.module, redraw_interval=recipe.redraw_interval, seed=run.seed, **run.schedule
        )
        self.module.recompute = recipe.recompute
        try:
            yield Training(plan, batches, checks)
        finally:
            self.module.recompute = False
        self.mark_trained(studies, training_seed=run.seed, max_steps=n_steps)
        if self.compound_head is not None:
            self.compound_head = None
            warn_user(
                "The model has new weights, so its compound head is removed; call train_compounds "
                "again."
            )

    @checks_arguments(weight=SHARE, validation_share=BELOW_1)
    def fit_linear_term(
        self,
        n_factors: int = 192,
        *,
        group_key: str | None = None,
        weight: float | None = None,
        validation_share: float = 0.1,
        seed: int = 0,
    ) -> None:
        """Fit a linear gene-gene term that is blended with the network's predictions.

        The term is a Gaussian of the training samples most like the sample to predict, in closed
        form (see ``LocalFactorModel``). Its share in the prediction is chosen on studies that are
        predicted without their own samples; with more than half of it, its factors also embed
        samples (:meth:`get_latent_representation`).

        Parameters
        ----------
        n_factors
            Directions in which genes vary together; fewer if there are fewer samples.
        group_key
            Column of ``obs`` with groups of like samples, such as a table or a tissue; by default
            the registered study.
        weight
            Share of the term in a prediction: 1 predicts with the term alone, 0 with the network
            alone. Chosen on held-out studies if not given.
        validation_share, seed
            As in :meth:`train`, so that the held-out studies are new to the network.

        Raises
        ------
        KeyError
            If the column does not exist.
        ValueError
            If the model has no data, the matrix is not log TPM, or the weight is not in 0 to 1.
        """
        reader = self._registered_reader()
        studies = self.registered_categories(REGISTRY_KEYS.BATCH_KEY)
        groups = studies
        if group_key is not None:
            if group_key not in self.adata.obs:
                raise KeyError(
                    f"adata.obs has no column {group_key!r}; it has "
                    f"{self.adata.obs.columns.tolist()}."
                )
            groups = self.adata.obs[group_key].astype(str).to_numpy(dtype=object)
        expression = reader.read_all()
        values = expression.masked_fill(expression == MISSING, torch.nan).numpy()
        term = LocalFactorModel.fit(values, groups, n_factors=n_factors)
        if weight is None:
            held_out = held_out_rows(studies, validation_share, seed)
            term.choose_weight(self._network, values, studies, held_out, seed=seed)
        else:
            term.weight.fill_(weight)
        self.linear_term = term.to(self.device)
        self._mark_part_trained(studies)

    @checks_arguments(unlisted_weight=SHARE, validation_share=BELOW_1)
    def train_compounds(
        self,
        signatures: pd.DataFrame | AnnData,
        baseline: AnnData,
        *,
        features: pd.DataFrame | None = None,
        layer: str | None = None,
        unlisted_weight: float = 1.0,
        validation_share: float = 0.2,
        n_steps: int = 200,
        batch_size: int = 32,
        lr: float = 3e-3,
        weight_decay: float = 0.1,
        rank: int = 32,
        seed: int = 0,
    ) -> dict[str, float]:
        """Train a head that predicts the effects of compounds; the rest of the model stays.

        The head predicts the change of each gene from the gene's embedding in a baseline sample
        and the features of a compound; see ``CompoundHead``. It starts as the mean of the
        signatures, which is a strong baseline, and its difference from the mean is shrunken by
        the factor that is best for held-out compounds (less one standard error).

        Parameters
        ----------
        signatures
            DataFrame with ``compound``, ``gene`` and ``direction`` (1 up, −1 down; such as
            :func:`cfm.datasets.cmap_signatures`) or ``effect`` (change of natural log TPM); or
            AnnData of compounds by genes with such changes in ``X``, ``NaN`` = not known. In a
            column ``sample``, the name of the observation of ``baseline`` that was treated. In a
            column ``signature`` of a DataFrame, which signature of the compound a row belongs to;
            without it all of its rows are one, and genes that are named twice are averaged.
        baseline
            Untreated samples by genes, log TPM. Where signatures have no ``sample``, the mean of
            these is the baseline.
        features
            Compounds by features, or a table of targets (``compound``, ``gene``, such as
            :func:`cfm.datasets.drug_targets`), which becomes a vector of unit length. Compounds
            without a signature are kept and can be predicted. Without features an embedding of
            each compound is learned, and no others can be predicted. Case does not matter.
        layer
            Layer of ``baseline`` with the log TPM instead of ``X``.
        unlisted_weight
            Of directions only: a gene that other signatures list and this one does not was probably
            measured and not among the strongest. It counts as 0 with this weight; a weight of 0
            treats it as not known. In ``docs/benchmarks.md`` profiles of unknown compounds are
            predicted best at 1.
        validation_share
            Share of the compounds that is held out. If that is fewer than three, or without
            ``features``, none are held out, and there is no shrinkage.
        n_steps, batch_size, lr, weight_decay, rank
            Of the training, and number of factors.
        seed
            Of the whole run.

        Returns
        -------
        ``shrinkage`` (0: the prediction is the mean; 1: no shrinkage),
        ``validation_correlation`` and ``validation_centred_correlation``: mean Pearson's r over
        held-out compounds, of the profile and of its difference from the mean.

        Raises
        ------
        TypeError, KeyError, ValueError
            If an argument has another form, lacks a column or names an unknown sample, or too few
            compounds are left.

        Warns
        -----
        UserWarning
            If compounds have no features and are left out.

        Notes
        -----
        The authors of BulkFormer predicted compound effects of LINCS L1000 in their preprint and
        withdrew it in December 2025, because that assay is not bulk RNA-seq. The same holds for
        signatures of the Connectivity Map build 2, which come from microarrays: a head trained on
        them predicts directions, not changes of log TPM.
        """
        self.require_genes()
        table = None if features is None else read_features(features)
        known = read_signatures(signatures, self.vocabulary, table)
        reader = self._reader(baseline, layer)
        profiles, sample = baseline_profiles(reader.read_all(), baseline.obs_names, known)
        genes = torch.from_numpy(known.positions).to(self.device)
        with torch.no_grad():
            embedded = torch.cat(
                [self.module.encode(x[None].to(self.device))[:, genes] for x in profiles]
            )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            dim = self.module.n_outputs
            head = CompoundHead.of_signatures(known, table, dim, rank).to(self.device)
            scores = head.fit(
                embedded,
                sample,
                known,
                validation_share=validation_share,
                n_steps=n_steps,
                batch_size=batch_size,
                lr=lr,
                weight_decay=weight_decay,
                unlisted_weight=unlisted_weight,
                seed=seed,
            )
        self.compound_head = head
        self._mark_part_trained([], compound_scores=scores)
        self.is_trained_ = True
        return scores

    @property
    def compounds(self) -> list[str]:
        """Compounds that the model can predict, lower case; none before training on them."""
        return [] if self.compound_head is None else self.compound_head.compounds

    def to_device(self, device: str | int | torch.device) -> None:
        """Move the model; ``"auto"`` takes a GPU if there is one."""
        super().to_device(device)
        with torch.inference_mode(False):
            for part in self._extra_parts().values():
                part.to(self.device)

    def _extra_parts(self) -> dict[str, torch.nn.Module]:
        """Return the parts beside the network, by their names in a checkpoint."""
        parts = {_LINEAR_TERM: self.linear_term, _COMPOUNDS: self.compound_head}
        return {name: part for name, part in parts.items() if part is not None}

    def _mark_part_trained(self, studies: Sequence[str] | np.ndarray, **facts: Any) -> None:
        """Record the training of a part; the records of the other parts stay."""
        replaced = ("training_studies", "started_from")
        kept = {k: v for k, v in self.provenance.items() if k not in replaced}
        self.mark_trained(np.asarray(studies, dtype=object), **(kept | facts))

    def _reader(self, adata: AnnData | None, layer: str | None) -> ExpressionReader:
        """Return a reader of samples, by default the model's own; set the network to evaluation."""
        adata, layer = self._given_or_own(adata, layer)
        self.require_genes()
        self.module.eval()
        return ExpressionReader(adata, self.vocabulary, layer=layer)

    def _registered_reader(self) -> ExpressionReader:
        """Return a reader of the registered data."""
        self._require_own_data()
        return self._reader(self.adata, self._registered_layer())

    def _positions(self, genes: Sequence[str] | None) -> np.ndarray:
        """Return the positions of genes in the vocabulary, of all by default."""
        if genes is None:
            return np.arange(len(self.vocabulary))
        if isinstance(genes, str):
            raise TypeError(f"genes={genes!r} is a single string; give a list of gene names.")
        place = self.vocabulary.genes.get_indexer(pd.Index(list(genes)))
        unknown = [str(g) for g, p in zip(genes, place, strict=True) if p < 0]
        if unknown or not len(place):
            raise KeyError(
                f"Genes {unknown[:5]} are not in the model's vocabulary; it has "
                f"{', '.join(self.vocabulary.genes[:3])}, … (model.vocabulary.genes)."
            )
        return place.astype(np.int64)

    def _batches(
        self,
        reader: ExpressionReader,
        batch_size: int,
        mask: np.ndarray | None = None,
        *,
        whole: bool = False,
    ) -> Iterator[tuple[slice, np.ndarray, torch.Tensor]]:
        """Yield ``(rows, values as in adata, expression on the device)`` of a few samples.

        Of as many as the network takes at once, or with ``whole`` of all samples of a batch.
        """
        n = batch_size if whole else self.module.samples_at_once()
        for rows, values, expression in reader.batches(batch_size, n, mask):
            yield rows, values, expression.to(self.device)

    def _embeddings(
        self, reader: ExpressionReader, batch_size: int, precision: Precision
    ) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Yield ``(rows, expression, embeddings of all genes)`` of a few samples at a time."""
        dtype = self.inference_dtype(precision)
        for rows, _, expression in self._batches(reader, batch_size):
            yield rows, expression, self.module.encode(expression, dtype=dtype)

    def _predictions(
        self,
        reader: ExpressionReader,
        mask: np.ndarray | None,
        batch_size: int,
        precision: Precision,
    ) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Yield ``(rows, values as in adata, predicted log TPM of all genes)``."""
        dtype = self.inference_dtype(precision)
        for rows, values, expression in self._batches(
            reader, batch_size, mask, whole=self._term_alone
        ):
            # The correction of missing genes may be larger than the prediction.
            predicted = self._predict(expression, dtype).clamp(min=0.0)
            yield rows, values, predicted.cpu().numpy()

    @property
    def _term_alone(self) -> bool:
        """Whether the network has no share in predictions."""
        return self.linear_term is not None and bool(self.linear_term.weight == 1.0)

    def _predict(self, expression: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Predict log TPM with the network, blended with the linear term if there is one."""
        term = self.linear_term
        if term is None:
            return self.module.predict(expression, dtype=dtype)
        values = expression.masked_fill(expression == MISSING, torch.nan)
        if self._term_alone:
            return term(values).relu()
        return term.blend(self.module.predict(expression, dtype=dtype), values)

    def _network(self, values: torch.Tensor) -> torch.Tensor:
        """Predict log TPM with the network alone, ``NaN`` = missing, on the CPU."""
        expression = values.nan_to_num(nan=MISSING).to(self.device)
        return self.module.predict(expression).cpu()

    @classmethod
    @reads_checkpoint
    @fill_docs(TEXTS)
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
            ``G_tcga_weight.pt`` and, if there, ``bulkformer_gene_info.csv`` (v2); ``model.pt``,
            ``edge_index.pt``, ``edge_weight.pt`` and ``gene_vocab.csv`` (v3); or that ``.pt``
            file. ``hf://org/name`` on the Hugging Face hub for either.
        %(adata_to_attach)s
        %(device)s
        genes
            Ensembl ids of the model's genes, in order, for weights without a gene list.

        Raises
        ------
        ValueError
            If files are missing, damaged or not safe to read, if they do not fit each other, or
            if the weights are of another model or of v1, or files are of different versions.
        """
        return cls._load_from(source, adata, device, genes=genes)

    @classmethod
    def _read_published(cls, path: Path, name: str, **published: Any) -> Checkpoint:
        return read_published(path, **published)

    def _contents(self) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, str]]:
        width = 0 if self.module.gene_embedding is not None else self.module.gene_features.shape[1]
        config: dict[str, Any] = {
            "size": vars(self.size),
            "n_gene_features": width,
            "knows_genes": self.knows_genes,
        }
        if self.linear_term is not None:
            config[_LINEAR_TERM] = self.linear_term.sizes
        if self.compound_head is not None:
            config[_COMPOUNDS] = self.compound_head.settings
        tensors = dict(self.module.state_dict())
        for name, part in self._extra_parts().items():
            tensors |= part.state_dict(prefix=f"{name}.")
        return tensors, config, self._genes_file()

    def _compacted(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        out = super()._compacted(tensors)
        out["edge_weights"] = out["edge_weights"].half()
        small = len(self.vocabulary) <= torch.iinfo(torch.int16).max
        out["edges"] = out["edges"].to(torch.int16 if small else torch.int32)
        return out

    @classmethod
    def _from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        config, tensors, name = dict(checkpoint.config), checkpoint.tensors, checkpoint.name
        with validate_config("BulkFormer", name, tensors):
            sizes = config.pop("size")
            size = (BulkFormerLatestSize if "graph_dim" in sizes else BulkFormerSize)(**sizes)
            width = check_whole("n_gene_features", config.pop("n_gene_features"), 0)
            knows_genes = check_flag("knows_genes", config.pop("knows_genes"))
            linear_term, compounds = config.pop(_LINEAR_TERM, None), config.pop(_COMPOUNDS, None)
            genes = stored_genes(checkpoint)
            model = cls(vocabulary=genes, size=size)
            if width:
                model.module = size.module(len(genes), width)
            if linear_term is not None:
                model.linear_term = LocalFactorModel(len(genes), **linear_term)
            if compounds is not None:
                model.compound_head = CompoundHead(**compounds).eval()
        model.knows_genes = knows_genes
        # The number of edges is not a setting.
        for key in ("edges", "edge_weights"):
            if key in tensors:
                buffer = getattr(model.module, key)
                setattr(model.module, key, buffer.new_empty(tensors[key].shape))
        parts = model._extra_parts()
        prefixes = tuple(f"{part}." for part in parts)
        network = {k: v for k, v in tensors.items() if not k.startswith(prefixes)}
        load_weights(model.module, network, name)
        for part, module in parts.items():
            load_weights(module, tensors, name, prefix=f"{part}.")
        try:
            check_graph(model.module.edges, model.module.edge_weights, model.module.n_genes)
        except ValueError as error:
            raise ValueError(f"The graph of checkpoint {name!r} is damaged. {error}") from error
        model._summarise()
        model.provenance = config
        return model


def _check_observed(observed: torch.Tensor, first: int) -> None:
    """Raise an error for a sample without an observed gene, which has no mean."""
    empty = torch.nonzero(~observed.any(1)).flatten()
    if len(empty):
        raise ValueError(
            f"Sample {first + int(empty[0])} (counted from 0) has no observed gene to pool over; "
            "drop it, or choose other genes=."
        )


def _observed(expression: torch.Tensor, place: np.ndarray) -> np.ndarray:
    """Return log TPM with ``NaN`` where a gene is missing or not among those at ``place``."""
    values = np.full(expression.shape, np.nan, dtype=np.float32)
    chosen = expression[:, torch.from_numpy(place)].numpy()
    values[:, place] = np.where(chosen == MISSING, np.float32(np.nan), chosen)
    return values
