"""PULSAR, AnnData side: what it is made of, the data it is given, saving and loading."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalObsField, LayerField, ObsmField

from cfm.data import GeneVocabulary
from cfm.hub import resolve
from cfm.hub._replace import reads_checkpoint
from cfm.hub._resolve import checkpoint_name
from cfm.models._base import PretrainedModel, check_column, load_weights
from cfm.models._validate import validate_config
from cfm.models.pulsar._checkpoint import is_published, read_published
from cfm.models.pulsar._donors import Donors, read_donors, represent
from cfm.models.pulsar._module import PulsarModule
from cfm.models.pulsar._projection import (
    ARRAYS,
    GENES_FILE,
    N_COMPONENTS,
    CellProjection,
    check_counts,
)
from cfm.models.pulsar._scope import scope_of, warn_out_of_scope
from cfm.models.pulsar._sizes import PulsarSize, get_size

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from cfm.hub import Checkpoint

CELLS_KEY, DONOR_KEY = "cells", "donor"
#: What representation and column are taken where nothing else is known.
USUAL_REP, USUAL_DONOR = "X_uce", "donor_id"
#: What stands in front of the arrays of the projection in a checkpoint.
_PROJECTION = "projection."


class PulsarCore(PretrainedModel):
    """Network and registered data of a PULSAR; see :class:`Pulsar`."""

    module: PulsarModule

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
        #: What makes principal components of counts; ``None`` of models that read a representation.
        self.projection = projection
        cells = None
        if adata is not None:
            if projection is None and self._registered_rep() is None:
                self.projection = self._fit_projection(sizes.get("input_dim", N_COMPONENTS))
            cells = represent(adata, **self._own_reading(None))
            width = sizes.setdefault("input_dim", cells.shape[1])
            if width != cells.shape[1]:
                raise ValueError(
                    f"input_dim={width}, but the registered cells have {cells.shape[1]} columns."
                )
        elif projection is not None:
            sizes.setdefault("input_dim", projection.n_components)
        self.size = get_size(size, **sizes)
        #: What the head answers: ``{"task": …, "outputs": [names]}``; ``None`` without a head.
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
        """Set what scvi-tools shows of a model."""
        n = sum(p.numel() for p in self.module.parameters())
        self._model_summary_string = (
            f"PULSAR: cells of {self.size.input_dim} numbers, width {self.size.dim}, "
            f"{self.size.encoder_layers} + {self.size.decoder_layers} layers, {n:,} parameters"
        )

    @classmethod
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
        **kwargs
            For :meth:`scvi.data.AnnDataManager.register_fields`.

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
            cells = ObsmField(CELLS_KEY, use_rep)
        for key in (labels_key, study_key):
            if key is not None:
                check_column(adata, key)
                constant_within(adata, donors, key)
        fields = [
            cells,
            CategoricalObsField(DONOR_KEY, donor_key),
            CategoricalObsField(REGISTRY_KEYS.LABELS_KEY, labels_key),
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, study_key),
        ]
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    def attach(self, adata: AnnData) -> None:
        """Attach data that were registered with ``setup_anndata``, for further training."""
        super().attach(adata)
        represent(adata, **self._own_reading(self.size.input_dim))
        self._remember_names()

    def _registered_rep(self) -> str | None:
        """Return the name in ``obsm`` that was registered; ``None`` if counts were."""
        registry = self.adata_manager.data_registry
        return str(registry[CELLS_KEY].attr_key) if CELLS_KEY in registry else None

    def _registered_study(self) -> str | None:
        key = self.adata_manager.get_state_registry(REGISTRY_KEYS.BATCH_KEY).original_key
        return None if key.startswith("_scvi") else str(key)

    def _registered_layer(self) -> str | None:
        """Return the layer with counts that was registered; ``None`` for ``X``."""
        registry = self.adata_manager.data_registry
        counts = registry.get(REGISTRY_KEYS.X_KEY)
        return counts.attr_key if counts is not None and counts.attr_name == "layers" else None

    def _fit_projection(self, n_components: int) -> CellProjection:
        """Fit a projection to the registered cells."""
        return CellProjection.fit(
            self.adata,
            layer=self._registered_layer(),
            study_key=self._registered_study(),
            n_components=n_components,
        )

    def _remember_names(self) -> None:
        """Keep what the registered data are called, for calls that do not say."""
        donor = self.adata_manager.get_state_registry(DONOR_KEY).original_key
        rep = self._registered_rep()
        self.provenance |= {"donor_key": donor} | ({} if rep is None else {"use_rep": rep})

    def _own_donors(self) -> Donors:
        """Read the registered donors."""
        if self.adata is None:
            raise ValueError(
                "The model has no data; give it some with from_pretrained(name, adata=adata) "
                "after Pulsar.setup_anndata(adata, …)."
            )
        key = self.adata_manager.get_state_registry(DONOR_KEY).original_key
        return read_donors(self.adata, key, **self._own_reading(self.size.input_dim))

    def _own_reading(self, width: int | None) -> dict[str, Any]:
        """Return how the registered cells are read.

        Raises
        ------
        ValueError
            If they were not registered as the model reads them.
        """
        rep = self._registered_rep()
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
            "layer": self._registered_layer(),
        }

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
        own = adata is None
        adata = self._adata_or_own(adata)
        donor_key = donor_key or self.provenance.get("donor_key", USUAL_DONOR)
        if self.projection is not None:
            if use_rep is not None:
                raise ValueError(_own_projection(use_rep))
            layer = self._registered_layer() if own and layer is None else layer
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

    def vocabulary_share(self, adata: AnnData) -> float:
        """Return the share of the genes of the projection; 1.0 for a representation."""
        return 1.0 if self.projection is None else self.projection.found_share(adata)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a folder holds weights as the authors of PULSAR publish them."""
        return is_published(path)

    @classmethod
    @reads_checkpoint
    def from_pretrained(
        cls, source: str | Path, adata: AnnData | None = None, *, device: str = "auto"
    ) -> Self:
        """Load a model by name, folder or ``hf://org/name``.

        Parameters
        ----------
        source
            Name of a bundled or registered checkpoint, a folder that :meth:`save` wrote, or
            ``config.json`` and ``model.safetensors`` as the authors release them: a folder, or on
            the Hugging Face hub ``"hf://KuanP/PULSAR-pbmc"``.
        adata
            Data to attach for further training, registered with ``setup_anndata``.
        device
            Where the model runs; ``"auto"`` takes a GPU if there is one.

        Raises
        ------
        ValueError
            If files are missing or damaged, do not fit each other, or are of another model.
        """
        path = resolve(source)
        if not cls.recognises(path):
            return super().from_pretrained(source, adata, device=device)
        published = read_published(path)
        name = checkpoint_name(source)
        model = cls._filled(published.size, published.tensors, published.head, name)
        model.card = published.card
        scope = scope_of(name, published.card)
        model.provenance = {} if scope is None else {"scope": scope}
        model.checkpoint_name, model.checkpoint_sha256 = name, published.sha256
        model.is_trained_ = True
        if adata is not None:
            model.attach(adata)
        model.to_device(device)
        model.module.eval()
        return model

    @classmethod
    def _filled(
        cls,
        size: PulsarSize,
        tensors: dict[str, torch.Tensor],
        head: dict[str, Any] | None,
        name: str,
    ) -> Self:
        """Make a model of given weights, after checking that they fit."""
        n_outputs = 0 if head is None else len(head["outputs"])
        with validate_config("PULSAR", name, tensors):
            model = cls(size=size)
            if n_outputs:
                model.module.set_head(n_outputs)
                model.head = head
        load_weights(model.module, tensors, name)
        model._summarise()
        return model

    def _contents(self) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, str]]:
        config: dict[str, Any] = {"size": vars(self.size), "head": self.head}
        tensors = dict(self.module.state_dict())
        if self.projection is None:
            return tensors, config, {}
        for name in ARRAYS:
            tensors[_PROJECTION + name] = torch.from_numpy(getattr(self.projection, name))
        config["radius"] = self.projection.radius
        return tensors, config, {GENES_FILE: "\n".join(self.projection.genes.genes)}

    @classmethod
    def _from_checkpoint(cls, checkpoint: Checkpoint, adata: AnnData | None) -> Self:
        config = dict(checkpoint.config)
        with validate_config("PULSAR", checkpoint.name, checkpoint.tensors):
            size = PulsarSize(**config.pop("size"))
            head = config.pop("head")
            if head is not None and not _is_head(head):
                raise ValueError(f"found the head {str(head)[:200]}")
        stored = {k: v for k, v in checkpoint.tensors.items() if k.startswith(_PROJECTION)}
        tensors = {k: v for k, v in checkpoint.tensors.items() if k not in stored}
        model = cls._filled(size, tensors, head, checkpoint.name)
        if stored:
            arrays = {k.removeprefix(_PROJECTION): v.float().numpy() for k, v in stored.items()}
            model.projection = _stored_projection(
                checkpoint, arrays, config.pop("radius", None), size.input_dim
            )
        model.provenance = config
        if adata is not None:
            model.attach(adata)
        return model


def _stored_projection(
    checkpoint: Checkpoint, arrays: dict[str, np.ndarray], radius: object, width: int
) -> CellProjection:
    """Return the projection of a checkpoint.

    Raises
    ------
    ValueError
        If parts are missing or do not belong together.
    """
    try:
        if not isinstance(radius, int | float) or GENES_FILE not in checkpoint.files:
            raise ValueError(f"no radius, or no {GENES_FILE}")
        genes = GeneVocabulary(checkpoint.files[GENES_FILE].splitlines())
        made = CellProjection(genes, **arrays, radius=float(radius))
        if made.n_components != width:
            raise ValueError(f"{made.n_components} components, but the network reads {width}")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The projection of checkpoint {checkpoint.name!r} is damaged ({error}); download or "
            "save it again."
        ) from error
    return made


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


def _is_head(head: object) -> bool:
    """Whether something says what a head answers."""
    return (
        isinstance(head, dict)
        and head.get("task") in ("classification", "regression")
        and isinstance(head.get("outputs"), list)
        and bool(head["outputs"])
        and all(isinstance(name, str) for name in head["outputs"])
    )


def constant_within(adata: AnnData, donors: Donors, key: str) -> np.ndarray:
    """Return the value that a column of ``obs`` has for each donor, ``(n_donors,)``.

    Raises
    ------
    KeyError, ValueError
        If there is no such column, or it varies within a donor.
    """
    if key not in adata.obs:
        raise KeyError(f"adata.obs has no column {key!r}; it has {adata.obs.columns.tolist()}.")
    column = adata.obs[key]
    values = column.to_numpy(dtype=object)
    varying = [
        str(name)
        for name, rows in zip(donors.names, donors.rows, strict=True)
        if len(set(map(str, values[rows]))) > 1
    ]
    if varying:
        raise ValueError(
            f"adata.obs[{key!r}] has several values within {len(varying)} donors (such as "
            f"{varying[0]!r}); one per donor is expected: take donor and condition together as the "
            "donor, if they are separate samples."
        )
    return np.array([values[rows[0]] for rows in donors.rows], dtype=object)
