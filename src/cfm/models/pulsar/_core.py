"""PULSAR, AnnData side: what it is made of, the data it is given, saving and loading."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalObsField, ObsmField

from cfm.hub import resolve
from cfm.hub._replace import reads_checkpoint
from cfm.hub._resolve import checkpoint_name
from cfm.models._base import PretrainedModel, check_column, load_weights
from cfm.models._validate import validate_config
from cfm.models.pulsar._checkpoint import is_published, read_published
from cfm.models.pulsar._donors import Donors, read_cells, read_donors
from cfm.models.pulsar._module import PulsarModule
from cfm.models.pulsar._scope import scope_of, warn_out_of_scope
from cfm.models.pulsar._sizes import PulsarSize, get_size

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from cfm.hub import Checkpoint

CELLS_KEY, DONOR_KEY = "cells", "donor"
#: What representation and column are taken where nothing else is known.
USUAL_REP, USUAL_DONOR = "X_uce", "donor_id"


class PulsarCore(PretrainedModel):
    """Network and registered data of a PULSAR; see :class:`Pulsar`."""

    module: PulsarModule

    def __init__(
        self,
        adata: AnnData | None = None,
        *,
        size: str | PulsarSize = "mini",
        seed: int = 0,
        **sizes: Any,
    ) -> None:
        super().__init__(adata)
        cells = None
        if adata is not None:
            cells = read_cells(adata, self._registered_rep(), None)
            width = sizes.setdefault("input_dim", cells.shape[1])
            if width != cells.shape[1]:
                raise ValueError(
                    f"input_dim={width}, but the registered cells have {cells.shape[1]} columns."
                )
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
        use_rep: str = USUAL_REP,
        labels_key: str | None = None,
        study_key: str | None = None,
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
            Name in ``obsm`` of what represents a cell.
        labels_key
            Column of ``obs`` with what donors are to be aligned by, such as a disease; constant
            within a donor.
        study_key
            Column of ``obs`` with the study; training is judged on studies it has not seen.
        **kwargs
            For :meth:`scvi.data.AnnDataManager.register_fields`.

        Raises
        ------
        KeyError
            If the representation or a column does not exist.
        ValueError
            If values are missing, or a label or study varies within a donor.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        donors = read_donors(adata, donor_key, use_rep, None)
        for key in (labels_key, study_key):
            if key is not None:
                check_column(adata, key)
                constant_within(adata, donors, key)
        fields = [
            ObsmField(CELLS_KEY, use_rep),
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
        read_cells(adata, self._registered_rep(), self.size.input_dim)
        self._remember_names()

    def _registered_rep(self) -> str:
        return str(self.adata_manager.data_registry[CELLS_KEY].attr_key)

    def _remember_names(self) -> None:
        """Keep what the registered data are called, for calls that do not say."""
        donor = self.adata_manager.get_state_registry(DONOR_KEY).original_key
        self.provenance |= {"donor_key": donor, "use_rep": self._registered_rep()}

    def read_donors(
        self, adata: AnnData | None, donor_key: str | None, use_rep: str | None
    ) -> Donors:
        """Read donors of an AnnData, or of the model's own, and warn if it was not made for them.

        Parameters
        ----------
        adata
            Cells; the model's own data if not given.
        donor_key, use_rep
            Column of ``obs`` and name in ``obsm``; by default those that the model was trained
            with.
        """
        adata = self._adata_or_own(adata)
        donor_key = donor_key or self.provenance.get("donor_key", USUAL_DONOR)
        if use_rep is None:
            use_rep = self.provenance.get("use_rep", USUAL_REP)
            if use_rep != USUAL_REP and use_rep not in adata.obsm:
                raise KeyError(
                    f"adata.obsm has no {use_rep!r}, which the model was trained on; it has "
                    f"{sorted(adata.obsm)}: make it as for the training data, or name with "
                    "use_rep= what holds it."
                )
        donors = read_donors(adata, donor_key, use_rep, self.size.input_dim)
        warn_out_of_scope(adata, self.provenance.get("scope"))
        return donors

    def vocabulary_share(self, adata: AnnData) -> float:
        """Return 1.0: the model reads a representation, not genes."""
        return 1.0

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
        config = {"size": vars(self.size), "head": self.head}
        return dict(self.module.state_dict()), config, {}

    @classmethod
    def _from_checkpoint(cls, checkpoint: Checkpoint, adata: AnnData | None) -> Self:
        config = dict(checkpoint.config)
        with validate_config("PULSAR", checkpoint.name, checkpoint.tensors):
            size = PulsarSize(**config.pop("size"))
            head = config.pop("head")
            if head is not None and not _is_head(head):
                raise ValueError(f"found the head {str(head)[:200]}")
        model = cls._filled(size, checkpoint.tensors, head, checkpoint.name)
        model.provenance = config
        if adata is not None:
            model.attach(adata)
        return model


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
