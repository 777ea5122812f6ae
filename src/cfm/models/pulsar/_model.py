"""PULSAR: the public class."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS
from scvi.data.fields import CategoricalObsField, LayerField, ObsmField

from cfm._adata import warn_user
from cfm._arguments import check_whole, checks_arguments, named_size
from cfm._docs import fill_docs
from cfm.hub._checkpoint import validate_config
from cfm.models._base import TEXTS, Precision, PretrainedModel, check_column, load_weights
from cfm.models._training import Training, TrainingRun
from cfm.models.pulsar._data import (
    Donors,
    constant_within,
    mean_over_draws,
    read_donors,
    represent,
    warn_out_of_scope,
)
from cfm.models.pulsar._head import (
    HeadRecipe,
    Task,
    check_head,
    fit_head,
    head_answers,
    read_targets,
)
from cfm.models.pulsar._importance import (
    CellImportance,
    attention_importance,
    gradient_importance,
    removal_effects,
)
from cfm.models.pulsar._module import SIZES, PulsarModule, PulsarSize
from cfm.models.pulsar._projection import (
    N_COMPONENTS,
    PREFIX,
    CellProjection,
    check_counts,
    projection_contents,
    stored_projection,
)
from cfm.models.pulsar._published import read_published
from cfm.models.pulsar._training import PulsarRecipe, label_numbers, pretraining

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from anndata import AnnData
    from scvi.data import AnnDataManager

    from cfm.hub import Checkpoint

Method = Literal["attention", "gradient"]
Pooling = Literal["auto", "cls", "moments", "both"]

#: Names of the registered fields.
_CELLS_KEY, _DONOR_KEY = "cells", "donor"
#: Representation and column that are read where nothing else is known.
USUAL_REP, USUAL_DONOR = "X_uce", "donor_id"
#: Cells of a donor that the released model was trained with.
N_CELLS = 1024
#: Weight of moments beside the network's token.
_MOMENT_WEIGHT = 2.0
#: Share of unknown cells from which on donors are warned about.
_UNKNOWN = 0.5


@dataclass(frozen=True)
class DonorEmbeddings:
    """Embeddings of donors.

    Attributes
    ----------
    donors
        ``(n_donors,)`` names, sorted.
    embedding
        ``(n_donors, n)`` float32, the mean over draws; ``n`` is ``dim``, with ``pooling="moments"``
        twice ``input_dim``, and with ``"both"`` their sum.
    spread
        ``(n_donors,)`` float32, root of the mean squared distance of single draws from their
        mean (with one degree of freedom less); 0 where all cells are used, ``NaN`` with one draw.
    n_cells, n_used
        ``(n_donors,)`` int64, cells of a donor, and cells in a draw.
    unknown
        ``(n_donors,)`` float32, share of a donor's cells that lie outside of the reference of the
        model's :class:`CellProjection`; ``None`` for models that read a representation.
    """

    donors: pd.Index
    embedding: np.ndarray
    spread: np.ndarray
    n_cells: np.ndarray
    n_used: np.ndarray
    unknown: np.ndarray | None = None


class Pulsar(PretrainedModel):
    """Foundation model of donors: the cells of a donor, a set, become one embedding.

    A model trained here reads the raw counts of cells, through a :class:`CellProjection` that is
    saved with it, or any representation in ``obsm``; the released models read that of
    :class:`cfm.models.UCE`. The model has a token for the donor that reads all of its cells.
    Neither the order of cells nor other donors change an embedding.

    Parameters
    ----------
    adata
        Cells of donors, registered with :meth:`setup_anndata`; their representation sets
        ``input_dim``. To counts a projection is fitted.
    size
        ``"mini"``, ``"base"`` (as released, without the parts that are never used),
        ``"released"``, or a ``PulsarSize``.
    projection
        A :class:`CellProjection` of other cells, instead of one that is fitted to ``adata``.
    seed
        Seed of the initial weights.
    **sizes
        Single numbers to change in the size, such as ``dim`` and ``encoder_layers``.

    Attributes
    ----------
    module
        The network.
    size
        Its sizes.
    projection
        The projection of raw counts; ``None`` for a model that reads a representation.
    head
        What :meth:`train_head` trained: ``{"task": …, "outputs": [names]}``; ``None`` without a
        head.

    Notes
    -----
    Pang et al., PULSAR, bioRxiv 2025.11.24.685470; :meth:`from_pretrained` reads files in the
    authors' layout, and gives the numbers of their code for small ones with random weights. What
    differs from the released code: padding is hidden, a donor's cells are not drawn with
    replacement, attention can be read out, and it can be trained.

    Examples
    --------
    >>> import cfm
    >>> cells = cfm.datasets.toy_donors(n_donors=6, n_cells=30)
    >>> cfm.models.Pulsar.setup_anndata(cells, donor_key="donor_id")
    >>> model = cfm.models.Pulsar(cells, size="mini")
    >>> model.get_latent_representation().shape
    (6, 64)
    """

    module: PulsarModule
    Recipe = PulsarRecipe
    least_agreement = 0.99  # of differences between donors

    def __init__(
        self,
        adata: AnnData | None = None,
        *,
        size: str | PulsarSize = "mini",
        projection: CellProjection | None = None,
        seed: int = 0,
        **sizes: Any,
    ) -> None:
        super().__init__(adata)
        self.projection = projection
        cells = None
        if adata is not None:
            if projection is None and self._registered_rep() is None:
                self.projection = CellProjection.fit(
                    adata,
                    layer=self._registered_layer(),
                    study_key=self._registered_column(REGISTRY_KEYS.BATCH_KEY),
                    n_components=sizes.get("input_dim", N_COMPONENTS),
                )
            cells = represent(adata, **self._registered_reading(None))
            width = sizes.setdefault("input_dim", cells.shape[1])
            if width != cells.shape[1]:
                raise ValueError(
                    f"input_dim={width}, but the registered cells have {cells.shape[1]} columns."
                )
        elif projection is not None:
            sizes.setdefault("input_dim", projection.n_components)
        self.size = named_size(size, SIZES, sizes)
        self.head: dict[str, Any] | None = None
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.module = PulsarModule(self.size)
        if cells is not None and self.size.standardised:
            self.module.input_mean.copy_(torch.from_numpy(cells.mean(axis=0)))
            spread = cells.std(axis=0)
            spread = np.where(spread > 0, spread, 1.0)
            self.module.input_scale.copy_(torch.from_numpy(spread))
        if adata is not None:
            self._remember_names()
        self._summarise()

    def _summarise(self) -> None:
        """Set the summary that scvi-tools prints."""
        n = sum(p.numel() for p in self.module.parameters())
        self._model_summary_string = (
            f"PULSAR: cells of {self.size.input_dim} numbers, width {self.size.dim}, "
            f"{self.size.encoder_layers} + {self.size.decoder_layers} layers, {n:,} parameters"
        )

    @classmethod
    @fill_docs(TEXTS)
    def setup_anndata(
        cls,
        adata: AnnData,
        donor_key: str = USUAL_DONOR,
        use_rep: str | None = None,
        labels_key: str | None = None,
        study_key: str | None = None,
        layer: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Register cells of donors for training.

        Parameters
        ----------
        adata
            Cells; rows of a donor need not lie together.
        donor_key
            Column of ``obs`` with the donor.
        use_rep
            Name in ``obsm`` of what represents a cell, such as ``"X_pca"``. Without it the cells
            are given by their raw counts, through a :class:`cfm.models.CellProjection`: that of
            the model, or for a new model one that is fitted on these cells.
        labels_key
            Column of ``obs`` with what donors are to be aligned by, such as a disease; constant
            within a donor.
        study_key
            Column of ``obs`` with the study; training is judged on studies it has not seen, and
            a projection is fitted to differences within studies.
        layer
            Layer with raw counts instead of ``X``.
        %(register_fields)s

        Raises
        ------
        KeyError
            If the representation, the layer or a column does not exist.
        ValueError
            If values are missing or no counts, or a label or study varies within a donor.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        donors = read_donors(adata, donor_key, use_rep)
        cells: LayerField | ObsmField
        if use_rep is None:
            check_counts(adata, layer)
            cells = LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False)
        else:
            _refuse_layer(layer, use_rep)
            cells = ObsmField(_CELLS_KEY, use_rep)
        for key in (labels_key, study_key):
            if key is not None:
                check_column(adata, key)
                constant_within(adata, donors, key)
        fields = [
            cells,
            CategoricalObsField(_DONOR_KEY, donor_key),
            CategoricalObsField(REGISTRY_KEYS.LABELS_KEY, labels_key),
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, study_key),
        ]
        cls._register(adata, fields, setup_method_args, **kwargs)

    def attach(self, adata: AnnData) -> None:
        """Attach data that were registered with ``setup_anndata``, for further training."""
        manager = self._manager_of(adata)
        represent(adata, **self._registered_reading(self.size.input_dim, manager))
        super().attach(adata)
        self._remember_names()

    def _registered_rep(self, manager: AnnDataManager | None = None) -> str | None:
        """Return the name in ``obsm`` that was registered; ``None`` if counts were."""
        registry = (manager or self.adata_manager).data_registry
        return str(registry[_CELLS_KEY].attr_key) if _CELLS_KEY in registry else None

    def _registered_column(self, registry_key: str) -> str | None:
        """Return the column of ``obs`` that was registered; ``None`` if none was."""
        key = self.adata_manager.get_state_registry(registry_key).original_key
        return None if key.startswith("_scvi") else str(key)

    def _remember_names(self) -> None:
        """Store the names of the registered data, as defaults of later calls."""
        donor = self.adata_manager.get_state_registry(_DONOR_KEY).original_key
        rep = self._registered_rep()
        self.provenance |= {"donor_key": donor} | ({} if rep is None else {"use_rep": rep})

    def vocabulary_share(self, adata: AnnData) -> float:
        """Return the share of the genes of the projection; 1.0 for a representation."""
        return 1.0 if self.projection is None else self.projection.found_share(adata)

    def read_donors(
        self,
        adata: AnnData | None,
        donor_key: str | None,
        use_rep: str | None,
        layer: str | None = None,
    ) -> Donors:
        """Read donors of an AnnData, or of the model's own, and warn if it was not made for them.

        Parameters
        ----------
        adata
            Cells; the model's own data if not given.
        donor_key, use_rep
            Column of ``obs`` and name in ``obsm``; by default those that the model was trained
            with.
        layer
            Layer with counts instead of ``X``, for a model that reads them.
        """
        adata, layer = self._given_or_own(adata, layer)
        donor_key = donor_key or self.provenance.get("donor_key", USUAL_DONOR)
        if self.projection is not None:
            if use_rep is not None:
                raise ValueError(_own_projection(use_rep))
        else:
            _refuse_layer(layer, "a representation")
            use_rep = self._rep_of(adata, use_rep)
        donors = read_donors(
            adata,
            donor_key,
            use_rep,
            self.size.input_dim,
            projection=self.projection,
            layer=layer,
        )
        warn_out_of_scope(adata, self.provenance.get("scope"))
        return donors

    def _rep_of(self, adata: AnnData, use_rep: str | None) -> str:
        """Return the name in ``obsm`` to read: what is given, or that of the training data."""
        if use_rep is not None:
            return use_rep
        found = str(self.provenance.get("use_rep", USUAL_REP))
        if found != USUAL_REP and found not in adata.obsm:
            raise KeyError(
                f"adata.obsm has no {found!r}, which the model was trained on; it has "
                f"{sorted(adata.obsm)}: make it as for the training data, or name with "
                "use_rep= what holds it."
            )
        return found

    def _registered_donors(self) -> Donors:
        """Read the registered donors."""
        self._require_own_data()
        key = self.adata_manager.get_state_registry(_DONOR_KEY).original_key
        return read_donors(self.adata, key, **self._registered_reading(self.size.input_dim))

    def _registered_reading(
        self, width: int | None, manager: AnnDataManager | None = None
    ) -> dict[str, Any]:
        """Return how cells are read that were registered, by default those of the model.

        Raises
        ------
        ValueError
            If they were not registered as the model reads them.
        """
        rep = self._registered_rep(manager)
        if rep is not None and self.projection is not None:
            raise ValueError(_own_projection(rep))
        if rep is None and self.projection is None:
            raise ValueError(
                f"Counts are registered, but the model reads a representation of {width} numbers "
                f"a cell: pass its name in obsm, such as {USUAL_REP!r}, to "
                "Pulsar.setup_anndata(adata, use_rep=)."
            )
        return {
            "use_rep": rep,
            "width": width,
            "projection": self.projection,
            "layer": self._registered_layer(manager),
        }

    def _donor_values(self, registry_key: str, donors: Donors) -> np.ndarray:
        """Return a registered column by donor, ``(n_donors,)`` object; ``""`` if not given."""
        key = self._registered_column(registry_key)
        if key is None:
            return np.full(len(donors.names), "", dtype=object)
        values = constant_within(self.adata, donors, key)
        return np.array([str(v) for v in values], dtype=object)

    @checks_arguments()
    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        *,
        donor_key: str | None = None,
        use_rep: str | None = None,
        layer: str | None = None,
        n_cells: int | None = N_CELLS,
        n_draws: int = 1,
        seed: int = 0,
        pooling: Pooling = "auto",
        batch_size: int = 16,
        precision: Precision = "auto",
    ) -> np.ndarray:
        """Embed donors.

        Parameters
        ----------
        adata, donor_key, use_rep, layer, n_cells, n_draws, seed, pooling, batch_size, precision
            As for :meth:`get_donor_embeddings`.

        Returns
        -------
        The ``embedding`` of :meth:`get_donor_embeddings`, donors sorted by name.
        """
        return self.get_donor_embeddings(
            adata,
            donor_key=donor_key,
            use_rep=use_rep,
            layer=layer,
            n_cells=n_cells,
            n_draws=n_draws,
            seed=seed,
            pooling=pooling,
            batch_size=batch_size,
            precision=precision,
        ).embedding

    @checks_arguments()
    def get_donor_embeddings(
        self,
        adata: AnnData | None = None,
        *,
        donor_key: str | None = None,
        use_rep: str | None = None,
        layer: str | None = None,
        n_cells: int | None = N_CELLS,
        n_draws: int = 1,
        seed: int = 0,
        pooling: Pooling = "auto",
        batch_size: int = 16,
        precision: Precision = "auto",
    ) -> DonorEmbeddings:
        """Embed donors, with the spread of an embedding over draws of cells.

        Parameters
        ----------
        adata
            Cells of donors; need not be registered. The model's own data if not given.
        donor_key
            Column of ``obs`` with the donor; by default that of the training data, else
            ``"donor_id"``.
        use_rep
            Name in ``obsm`` of what represents a cell; by default that of the training data, else
            ``"X_uce"``. Of a model that reads counts through its own projection none.
        layer
            Layer with raw counts instead of ``X``, for a model that reads them.
        n_cells
            Cells to draw of a donor, without replacement; donors with fewer, and all with
            ``None``, are embedded whole. Time grows with its square.
        n_draws
            Draws to average over.
        seed
            Seed of the draws, which depend on it and on the names of donor and cells only.
        pooling
            ``"cls"`` is the network's token of the donor. ``"moments"`` needs no network: the mean
            and the log variance of each number that represents a cell, in the model's units (see
            :meth:`PulsarModule.moments`). ``"both"`` is twice the moments, by which both parts vary
            about as much between donors, and the token. ``"auto"`` is the default that the
            checkpoint records, else ``"cls"``; that of ``pulsar-mini`` is ``"both"``, since its
            network distinguishes donors of a new laboratory less well than moments do. Training
            makes ``"cls"`` the default.
        batch_size
            Donors at a time; the result does not depend on it.
        precision
            ``"float32"``, ``"bfloat16"``, or ``"auto"``: bfloat16 where the processor is fast at
            it and a trial, made once per weights, keeps the differences between made-up donors at
            a cosine similarity of 0.99 to float32.

        Returns
        -------
        DonorEmbeddings

        Raises
        ------
        KeyError
            If the column or the representation does not exist.
        ValueError
            If donor ids are missing, cells are ``NaN`` or of the wrong width, or their names are
            not unique; of a model that reads counts also if ``use_rep`` is given, too few of its
            genes are found, values are no counts, or these are bulk samples; with
            moments also if the model does not standardise its input.

        Warns
        -----
        UserWarning
            If donors have few cells, are of a tissue that the model was not made for, or over
            half of the cells of a donor are unknown.
        """
        if pooling == "auto":
            pooling = self.provenance.get("pooling", "cls")
        donors = self.read_donors(adata, donor_key, use_rep, layer)
        draws = list(donors.draws(n_cells, n_draws, seed))
        rows = [rows for _, rows in draws]
        parts = []
        if pooling in ("moments", "both"):
            weight = _MOMENT_WEIGHT if pooling == "both" else 1.0
            parts.append(weight * self.module.moments(donors.cells, rows))
        if pooling != "moments":
            parts.append(self._embed(donors, rows, batch_size, precision))
        embedded = np.hstack(parts)
        mean, spread = mean_over_draws(embedded, np.array([donor for donor, _ in draws]))
        used = donors.n_cells if n_cells is None else np.minimum(donors.n_cells, n_cells)
        return DonorEmbeddings(
            donors=donors.names,
            embedding=mean.astype(np.float32),
            spread=np.where(used == donors.n_cells, 0.0, spread).astype(np.float32),
            n_cells=donors.n_cells,
            n_used=used,
            unknown=self._unknown_share(donors),
        )

    def _unknown_share(self, donors: Donors) -> np.ndarray | None:
        """Return the share of unknown cells of each donor, and warn of high ones."""
        if self.projection is None:
            return None
        unknown = self.projection.unknown(np.asarray(donors.cells))
        share = np.array([unknown[rows].mean() for rows in donors.rows], dtype=np.float32)
        n = int((share > _UNKNOWN).sum())
        if n:
            warn_user(
                f"In {n} of {len(share)} donors over half of the cells are unknown: farther from "
                "the cells that the model was fitted on than 95 % of such cells are. They may be "
                "of another tissue, state, kit or species, or have too few of the genes; train "
                "a Pulsar on these cells instead."
            )
        return share

    def _embed(
        self,
        donors: Donors,
        draws: list[np.ndarray],
        batch_size: int = 16,
        precision: Precision = "auto",
    ) -> np.ndarray:
        """Embed draws of cells, ``(n_draws, dim)`` float32."""
        dtype = self.inference_dtype(precision)
        return self.module.embed_draws(donors.cells, draws, batch_size=batch_size, dtype=dtype)

    @checks_arguments()
    def predict(
        self,
        adata: AnnData | None = None,
        *,
        donor_key: str | None = None,
        use_rep: str | None = None,
        layer: str | None = None,
        n_cells: int | None = N_CELLS,
        n_draws: int = 1,
        seed: int = 0,
        batch_size: int = 16,
        precision: Precision = "auto",
    ) -> pd.DataFrame:
        """Predict classes or values of donors with the head.

        Parameters
        ----------
        adata, donor_key, use_rep, layer, n_cells, n_draws, seed, batch_size, precision
            As for :meth:`get_donor_embeddings`; the head reads the network's token of the donor,
            the mean over draws.

        Returns
        -------
        DataFrame
            Donors by outputs of the head, float32. For classes probabilities, which sum to 1 over
            several classes; a single one is the probability of yes.

        Raises
        ------
        ValueError
            If the model has no head, or as :meth:`get_donor_embeddings`.
        """
        if self.head is None:
            raise ValueError("This model has no head; train one with train_head().")
        found = self.get_donor_embeddings(
            adata,
            donor_key=donor_key,
            use_rep=use_rep,
            layer=layer,
            n_cells=n_cells,
            n_draws=n_draws,
            seed=seed,
            pooling="cls",
            batch_size=batch_size,
            precision=precision,
        )
        answers = head_answers(self.module, found.embedding, self.head["task"])
        return pd.DataFrame(answers, index=found.donors, columns=self.head["outputs"])

    @checks_arguments()
    def get_cell_importance(
        self,
        adata: AnnData | Donors | None = None,
        *,
        donor_key: str | None = None,
        use_rep: str | None = None,
        layer: str | None = None,
        method: Method = "attention",
        output: str | None = None,
        n_cells: int = 1024,
        seed: int = 0,
    ) -> CellImportance:
        """Return how much each cell counts for its donor.

        Parameters
        ----------
        adata, donor_key, use_rep, layer
            As for :meth:`get_donor_embeddings`; or donors that :meth:`read_donors` read.
        method
            ``"attention"`` is what the donor's token attends to, the mean over heads and layers.
            ``"gradient"`` is gradient times input, from the mean of all cells: of an output of
            the head, or without ``output`` of how far the donor's embedding lies from the mean of
            the donors, in that direction. Neither is a proof; see ``removal`` of
            :func:`cfm.tl.cell_importance`.
        output
            Output of the head to explain, for ``"gradient"``.
        n_cells
            Cells looked at together; donors with more are split at random into parts of about
            this size, as the model was trained on draws of them.
        seed
            Seed of the parts.

        Returns
        -------
        CellImportance

        Raises
        ------
        KeyError
            If the head has no such output, or as :meth:`get_donor_embeddings`.
        ValueError
            If the method is unknown, or ``output`` does not go with it.
        """
        place = self._output_place(output, method)
        donors = adata
        if not isinstance(donors, Donors):
            donors = self.read_donors(donors, donor_key, use_rep, layer)
        if method == "attention":
            cells = attention_importance(self.module, donors, n_cells, seed)
        else:
            cells = gradient_importance(self.module, donors, n_cells, seed, place)
        return CellImportance(donors.names, cells)

    def _output_place(self, output: str | None, method: str) -> int | None:
        if output is None:
            return None
        if method != "gradient":
            raise ValueError("output= goes with method='gradient'; attention has no outputs.")
        if self.head is None:
            raise ValueError("This model has no head; train one with train_head().")
        if output not in self.head["outputs"]:
            raise KeyError(f"The head has no output {output!r}; it has {self.head['outputs']}.")
        return int(self.head["outputs"].index(output))

    @checks_arguments()
    def get_removal_effects(
        self,
        donors: Donors,
        groups: np.ndarray,
        *,
        n_cells: int = 1024,
        n_random: int = 3,
        seed: int = 0,
    ) -> list[tuple[int, str, float, float]]:
        """Return how far a donor's embedding moves without the cells of a group.

        Parameters
        ----------
        donors
            What :meth:`read_donors` returned.
        groups
            ``(n_cells,)`` text, the group of each cell; ``""`` for none.
        n_cells
            Cells of a donor that are looked at, a draw of them if there are more.
        n_random
            Draws of as many cells at random, to compare with.
        seed
            Seed of the draws.

        Returns
        -------
        For each donor and group: the donor, the group, the Euclidean distance and that without as
        many random cells; ``NaN`` where no cells would be left.
        """
        return removal_effects(
            self.module, donors, groups, n_cells=n_cells, n_random=n_random, seed=seed
        )

    @contextmanager
    def _training(self, run: TrainingRun) -> Iterator[Training]:
        recipe: PulsarRecipe = run.recipe
        if not (recipe.reconstruction_weight or recipe.contrastive_weight):
            raise ValueError("The weights of the losses must not both be 0.")
        if recipe.reconstruction_weight and not len(self.module.decoder):
            raise ValueError(
                "This model has no decoder, so it cannot reconstruct cells; pass "
                "reconstruction_weight=0."
            )
        donors = self._registered_donors()
        if len(donors.names) < 2:
            raise ValueError(
                f"The data have {len(donors.names)} donor; at least two are needed to train."
            )
        labels = label_numbers(self._donor_values(REGISTRY_KEYS.LABELS_KEY, donors))
        studies = self._donor_values(REGISTRY_KEYS.BATCH_KEY, donors)
        if not self.size.masked_input:  # published weights may lack what reconstruction needs
            self.module.add_masked_input()
            self.size = self.module.size
            self._summarise()
        with pretraining(self.module, run, donors, labels, studies) as training:
            yield training
        self._record_training(studies, run)
        if self.head is not None:
            self.head = self.module.head = None
            warn_user("The encoder has new weights, so its head is removed; call train_head again.")

    def train_head(
        self, target: str | Sequence[str], task: Task = "classification", **training: Any
    ) -> None:
        """Train a head on the donors of the registered data, for :meth:`predict`.

        To measure its accuracy use :func:`cfm.tl.probe` on embedded donors, which scores held-out
        donors and simpler heads.

        Parameters
        ----------
        target
            Column of ``obs``, constant within a donor; donors without a value are left out. For
            regression also several columns, such as proteins in plasma: each is an output.
        task
            ``"classification"`` (cross-entropy, classes weigh the same) or ``"regression"`` (mean
            squared error).
        **training
            Arguments of :meth:`train`, and settings of :class:`~cfm.models.pulsar.HeadRecipe`.

        Raises
        ------
        KeyError
            If there is no such column.
        TypeError
            If there is no setting of a name.
        ValueError
            If the model has no data, the target varies within a donor or does not fit the task, a
            class has one donor only, or a number is out of its range.
        KeyboardInterrupt
            If training is interrupted. The model then keeps what it has learned.
        """
        recipe = HeadRecipe(task=task)
        names = [target] if isinstance(target, str) else list(target)
        recipe = recipe.changed(target=target if isinstance(target, str) else names)
        run = TrainingRun(self, recipe, **training)
        frozen = run.recipe.frozen_layers
        n_frozen = None
        if frozen != "all":
            n_frozen = check_whole("frozen_layers", frozen, 0, self.size.encoder_layers)
        donors = self._registered_donors()
        columns = {name: constant_within(self.adata, donors, name) for name in names}
        targets = read_targets(columns, task)
        studies = self._donor_values(REGISTRY_KEYS.BATCH_KEY, donors)
        with torch.random.fork_rng():
            torch.manual_seed(run.seed)
            self.module.set_head(len(targets.outputs))
        self.head = {"task": task, "outputs": targets.outputs}
        with fit_head(
            self.module,
            run,
            donors,
            targets,
            studies,
            n_frozen=n_frozen,
            embed=lambda draws: self._embed(donors, draws),
        ) as prepared:
            run.fit(prepared)
        self._record_training(studies[targets.known], run)
        run.raise_if_interrupted()

    def _record_training(self, studies: np.ndarray, run: TrainingRun) -> None:
        """Record a training; what the registered data are called is kept."""
        kept = {k: v for k, v in self.provenance.items() if k in ("donor_key", "use_rep")}
        self.mark_trained(studies, **kept, training_seed=run.seed, **run.facts)

    @classmethod
    def _read_published(cls, path: Path, name: str, **published: Any) -> Checkpoint:
        return read_published(path, name)

    def _contents(self) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, str]]:
        config: dict[str, Any] = {"size": vars(self.size), "head": self.head}
        tensors = dict(self.module.state_dict())
        if self.projection is None:
            return tensors, config, {}
        arrays, settings, files = projection_contents(self.projection)
        return tensors | arrays, config | settings, files

    @classmethod
    def _from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        config, name = dict(checkpoint.config), checkpoint.name
        network = {k: v for k, v in checkpoint.tensors.items() if not k.startswith(PREFIX)}
        with validate_config("PULSAR", name, network):
            model = cls(size=PulsarSize(**config.pop("size")))
            model.head = config.pop("head")
            if model.head is not None:
                check_head(model.head)
                model.module.set_head(len(model.head["outputs"]))
        load_weights(model.module, network, name)
        model._summarise()
        model.projection = stored_projection(checkpoint, model.size.input_dim)
        config.pop("radius", None)
        model.provenance = config
        return model


def _own_projection(use_rep: str) -> str:
    return (
        "This model reads raw counts through a projection of its own, so it takes no "
        f"use_rep={use_rep!r}; leave it out. To embed donors by that representation train a model "
        f"on it: Pulsar.setup_anndata(adata, donor_key, use_rep={use_rep!r})."
    )


def _refuse_layer(layer: str | None, rep: str) -> None:
    if layer is not None:
        raise ValueError(
            f"layer={layer!r} goes with a model that reads raw counts; this one reads {rep} of "
            "obsm, so leave it out."
        )
