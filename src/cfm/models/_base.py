"""The base class of the models: setup, checkpoints, devices, precision, training."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from io import StringIO
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, Self, cast, get_args

import numpy as np
import pandas as pd
import torch
import xxhash
from anndata import AnnData
from safetensors.torch import save as save_tensors
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.model.base import BaseModelClass

from cfm._adata import check_tables, load_tables, require_anndata, warn_user
from cfm._arguments import ABOVE_0, check_choice, checks_arguments
from cfm._docs import fill_docs
from cfm.data import GeneVocabulary
from cfm.data._matrix import in_memory_frame
from cfm.hub import load_checkpoint, resolve, save_checkpoint
from cfm.hub._resolve import CONFIG_NAME, checkpoint_name, reads_checkpoint
from cfm.models._load import CLASSES, FROM_OUTSIDE, Layout, published_model
from cfm.models._training import TrainingRun
from cfm.nn._distributed import on_rank_zero
from cfm.nn._kernels import fast_bfloat16

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from cfm.hub import Checkpoint
    from cfm.models._training import Recipe, Training


Precision = Literal["auto", "float32", "bfloat16"]

#: Parameter texts of the models.
TEXTS = {
    "adata_to_attach": """
adata
    Data to attach for further training, registered with ``setup_anndata``. Not needed to use the
    model.""",
    "device": """
device
    Device of the model; ``"auto"`` is a GPU if there is one.""",
    "register_fields": """
**kwargs
    For :meth:`scvi.data.AnnDataManager.register_fields`.""",
    "block_size": """
block_size
    Neighbouring rows that are shuffled together where there are more than 8,192; 1 shuffles each
    row alone, which is slow on disk.""",
    "perturbation_features": """
perturbation_features
    Table, targets by features, that describes each perturbation, such as embeddings of a gene or a
    compound. Any target in it can be predicted, also one that no training cell had. Standardised
    and stored with the model.""",
    "new_features": """
features
    Features of a perturbation that is not in the table of the model.""",
    "sources": """
groupby
    Column of ``obs`` with the sources, where the column that was registered is not there.""",
    "start": """
start
    ``"cell"`` or ``"noise"``; see above.""",
    "cell_seed": """
seed
    Each cell is drawn from this and its name.""",
    "counts_layer": """
layer
    Layer with the counts instead of ``X``.""",
    "perturbation_parts": """
perturbation
    Parts of the perturbation, without order; also combinations that were not in training.""",
}

#: Methods of scvi-tools that raise NotImplementedError, read scvi-tools' own files, train without
#: data in memory, or fail in one of the versions of scvi-tools that are tested.
NOT_OFFERED = (
    "convert_legacy_save",
    "differential_abundance",
    "get_normalized_expression",
    "get_normalized_function_name",
    "load_registry",
    "setup_annbatch",
    "update_setup_method_args",
    "view_registry",
    "view_setup_args",
    "view_setup_method_args",
)


class NotOffered:
    """An attribute that a class does not have, although a parent has it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> NoReturn:
        raise AttributeError(
            f"{owner.__name__!r} has no attribute {self._name!r}: scvi-tools' method of this name "
            "cannot work with this model."
        )


def list_offered(model: object) -> list[str]:
    """Return what ``dir`` lists of a model."""
    return sorted(set(object.__dir__(model)) - set(NOT_OFFERED))


class OfferedOnly(type(BaseModelClass)):  # type: ignore[misc]
    """Metaclass that takes what is :data:`NOT_OFFERED` away from a class."""

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> None:
        super().__init__(name, bases, namespace)
        if not any(isinstance(base, OfferedOnly) for base in bases):
            for missing in NOT_OFFERED:
                setattr(cls, missing, NotOffered(missing))

    def __dir__(cls) -> list[str]:
        return sorted(set(super().__dir__()) - set(NOT_OFFERED))


#: Text file of a checkpoint with the training curves, a column per curve.
HISTORY_FILE = "history.csv"
#: Registry of scvi-tools for a model without data.
_EMPTY_REGISTRY: dict[str, Any] = {"field_registries": {}, "setup_args": {}}
#: Text file of a checkpoint with the genes of the vocabulary, one a line.
GENES_FILE = "genes.txt"


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device for a name; ``"auto"`` takes a GPU if there is one.

    Raises
    ------
    ValueError
        If the device does not exist here.
    """
    if isinstance(device, torch.device):
        return device
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device={device!r} is not available here; use 'auto', 'cpu' or a device that torch "
            "can see."
        ) from error
    return found


class PretrainedModel(BaseModelClass, metaclass=OfferedOnly):
    """A scvi-tools model that saves to and loads from cfm checkpoints.

    Checkpoints are safetensors and JSON (:mod:`cfm.hub`), never pickles, so ``save`` and ``load``
    replace those of scvi-tools.

    Parameters
    ----------
    adata
        Data registered with ``setup_anndata``, or ``None`` for a model without data.

    Examples
    --------
    >>> import cfm
    >>> model = cfm.models.CellPulse.from_pretrained("cellpulse-mini", device="cpu")
    >>> isinstance(model, cfm.models.PretrainedModel), model.checkpoint_name
    (True, 'cellpulse-mini')
    >>> folder = model.save("ours")
    >>> cfm.models.CellPulse.load(folder).checkpoint_name
    'ours'
    """

    #: Names of the files in which others publish such weights; read by :meth:`_read_published`.
    published: ClassVar[Layout | None] = None
    #: Why published weights are not read, if there are some; for the error.
    not_read: ClassVar[str] = ""
    #: Cosine similarity to float32 from which ``precision="auto"`` uses bfloat16.
    least_agreement: ClassVar[float] = 0.999
    vocabulary: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        CLASSES[cls.__name__] = cls
        if (layout := vars(cls).get("published")) is not None:
            FROM_OUTSIDE[cls.__name__] = layout

    def __init__(self, adata: AnnData | None = None) -> None:
        if adata is None:
            super().__init__(registry=dict(_EMPTY_REGISTRY))
            self._adata = None
            self._adata_manager = None
        else:
            super().__init__(adata)
        #: Name of the checkpoint that the weights come from; empty if trained here.
        self.checkpoint_name = ""
        self.checkpoint_sha256 = ""
        self._sha256_of_digest = ("", "")
        self.card: str | None = None
        #: How and on which studies the weights were trained, JSON types.
        self.provenance: dict[str, Any] = {}
        self._loaded_history: dict[str, str] = {}

    __dir__ = list_offered

    @staticmethod
    def _get_setup_method_args(**setup_locals: Any) -> dict[str, Any]:
        # called first by each setup_anndata, before obs is read
        adata = setup_locals["adata"]
        require_anndata(adata)
        if adata.is_view:
            raise ValueError(
                "adata is a view of another AnnData, and registered fields are written to it; "
                "pass a copy: adata = adata.copy()."
            )
        load_tables(adata)
        check_tables(adata, setup_locals.values(), one_kind=True)
        return cast("dict[str, Any]", BaseModelClass._get_setup_method_args(**setup_locals))

    @property
    def checkpoint_sha256(self) -> str:
        """SHA-256 of the checkpoint that the weights come from; empty if trained here.

        It is set when the model is complete; a digest of the loaded weights is stored with it, so
        that later changes are found.
        """
        return self._checkpoint_sha256

    @checkpoint_sha256.setter
    def checkpoint_sha256(self, sha256: str) -> None:
        self._checkpoint_sha256 = sha256
        self._loaded_digest = self.weights_digest() if sha256 else ""

    def weights_digest(self) -> str:
        """Return a fast digest of weights, settings and genes as they are now; no SHA-256."""
        tensors, config, files = self._contents()
        about = json.dumps([config, files], sort_keys=True, default=str)
        digest = xxhash.xxh3_128(about.encode())
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            # as bytes, for NumPy has no bfloat16
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(flat.numpy().data)
        return digest.hexdigest()

    def weights_record(self) -> dict[str, str]:
        """Return the record of the weights that tools store with their results.

        Returns
        -------
        ``model``
            Name of the checkpoint, with a note if the weights were changed since they were loaded;
            of a model that was made or trained here that of its class.
        ``sha256``
            SHA-256 of the checkpoint; of weights that were changed or trained here that of the
            file that :meth:`save` would write.
        """
        digest = self.weights_digest()
        if self.checkpoint_sha256 and digest == self._loaded_digest:
            return {"model": self.checkpoint_name, "sha256": self.checkpoint_sha256}
        if self._sha256_of_digest[0] != digest:
            self._sha256_of_digest = digest, sha256_of_weights(self._contents()[0])
        name = self.checkpoint_name or type(self).__name__
        changed = ", weights changed in memory" if self.checkpoint_sha256 else ""
        return {"model": name + changed, "sha256": self._sha256_of_digest[1]}

    @checks_arguments()
    def inference_dtype(self, precision: Precision = "auto") -> torch.dtype:
        """Return the dtype of matrix products, chosen from device and setting.

        Parameters
        ----------
        precision
            ``"float32"``, ``"bfloat16"``, or ``"auto"``: bfloat16 where the device multiplies it in
            hardware and, in a trial once per weights, embeddings have at least
            :attr:`least_agreement` as cosine similarity to float32. Models without a trial use
            float32.

        Warns
        -----
        UserWarning
            If ``"auto"`` falls back to float32 because of the trial.
        """
        check_choice("precision", precision, get_args(Precision))
        trial: Any = getattr(self.module, "bfloat16_agreement", None)
        if precision != "auto":
            return torch.float32 if precision == "float32" else torch.bfloat16
        if trial is None or not fast_bfloat16(self.device):
            return torch.float32
        found = trial()
        if found >= self.least_agreement:
            return torch.bfloat16
        warn_user(
            f"In bfloat16 these weights give embeddings at a cosine similarity of only {found:.4f} "
            f"to float32 (expected at least {self.least_agreement}), so float32 is used; pass "
            "precision='float32' to skip the trial."
        )
        return torch.float32

    @property
    def history(self) -> dict[str, pd.DataFrame] | None:
        """Training curves by name, a row per epoch; of a loaded model those it came with."""
        if self.history_ or not self._loaded_history:
            return cast("dict[str, pd.DataFrame] | None", self.history_)
        (text,) = self._loaded_history.values()
        table = pd.read_csv(StringIO(text), index_col=0)
        return {name: table[[name]].dropna() for name in table.columns}

    @classmethod
    @reads_checkpoint
    @fill_docs(TEXTS)
    def from_pretrained(
        cls, source: str | Path, adata: AnnData | None = None, *, device: str = "auto"
    ) -> Self:
        """Load a model by name, folder or ``hf://org/name``.

        Parameters
        ----------
        source
            Name of a bundled or registered checkpoint (:func:`cfm.hub.list_checkpoints`), a
            local folder, also with files as the authors of the model release them, or
            ``hf://org/name`` on the Hugging Face hub.
        %(adata_to_attach)s
        %(device)s

        Raises
        ------
        ValueError
            If the checkpoint is damaged, is not safe to read, or belongs to another model.
        """
        return cls._load_from(source, adata, device)

    @classmethod
    def _load_from(
        cls, source: str | Path, adata: AnnData | None, device: str, **published: Any
    ) -> Self:
        """Load a model; ``published`` are arguments for the authors' files, ``None`` by default."""
        path = resolve(source)
        given = {name: value for name, value in published.items() if value is not None}
        if cls.recognises(path):
            checkpoint = cls._read_published(path, checkpoint_name(source), **given)
            return cls._made(checkpoint, adata, device)
        if given:
            raise ValueError(
                f"{', '.join(f'{name}=' for name in given)} is for the authors' files; the "
                f"checkpoint {str(source)!r} contains its own."
            )
        if cls.not_read and not (path / CONFIG_NAME).is_file():
            raise ValueError(
                f"{path} holds no checkpoint that {cls.__name__}.save wrote (no {CONFIG_NAME}). "
                f"{cls.not_read}; train a model here, or load one of cfm.hub.list_checkpoints()."
            )
        checkpoint = load_checkpoint(source)
        if checkpoint.model != cls.__name__:
            raise ValueError(
                f"Checkpoint {checkpoint.name!r} holds a {checkpoint.model or 'nameless'} model; "
                f"expected {cls.__name__}. Load it with cfm.models.load_model."
            )
        return cls._made(checkpoint, adata, device)

    @classmethod
    def _made(cls, checkpoint: Checkpoint, adata: AnnData | None, device: str) -> Self:
        """Return the model of a checkpoint, ready for use."""
        model = cls._from_checkpoint(checkpoint)
        if adata is not None:
            model.attach(adata)
        model.checkpoint_name = checkpoint.name
        model.checkpoint_sha256 = checkpoint.sha256
        model.card = checkpoint.card
        history = checkpoint.files.get(HISTORY_FILE)
        model._loaded_history = {} if history is None else {HISTORY_FILE: history}
        model.is_trained_ = True
        model.to_device(device)
        model.module.eval()
        return model

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Return whether a folder or file holds weights as this model's authors publish them."""
        return published_model(path) == cls.__name__

    @classmethod
    def _read_published(cls, path: Path, name: str, **published: Any) -> Checkpoint:
        """Return published weights in the form of a checkpoint of this package."""
        raise NotImplementedError

    @classmethod
    def load(
        cls, dir_path: str | Path, adata: AnnData | None = None, *, device: str = "auto"
    ) -> Self:
        """Load what :meth:`save` wrote; the same as :meth:`from_pretrained`."""
        return cls.from_pretrained(dir_path, adata, device=device)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.module.parameters()).device

    def to_device(self, device: str | int | torch.device) -> None:
        """Move the model; ``"auto"`` takes a GPU if there is one."""
        name = f"cuda:{device}" if isinstance(device, int) else device
        with torch.inference_mode(False):  # weights that can be trained
            self.module.to(resolve_device(name))

    def vocabulary_share(self, adata: AnnData) -> float:
        """Return the share of the model's genes that ``adata`` measures."""
        return float(self.vocabulary.align(adata.var_names).found_share)

    @classmethod
    def _register(
        cls, adata: AnnData, fields: list[Any], setup_method_args: dict[str, Any], **kwargs: Any
    ) -> None:
        """Register fields of an AnnData with scvi-tools."""
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    def registered_categories(self, key: str) -> np.ndarray:
        """Return a registered column of ``obs`` as ``(n,)`` object; all ``""`` if not given."""
        state = self.adata_manager.get_state_registry(key)
        if state.original_key.startswith("_scvi"):
            return np.full(self.adata.n_obs, "", dtype=object)
        return self.adata.obs[state.original_key].astype(str).to_numpy(dtype=object)

    def attach(self, adata: AnnData) -> None:
        """Attach data that were registered with ``setup_anndata``, for further training."""
        manager = self._manager_of(adata)
        self._adata = adata
        self._adata_manager = manager
        self._register_manager_for_instance(manager)
        self.registry_ = manager.registry
        self.summary_stats = manager.summary_stats

    def _manager_of(self, adata: AnnData) -> AnnDataManager:
        """Return what ``setup_anndata`` registered last for these data."""
        return self._get_most_recent_anndata_manager(adata, required=True)

    def _require_own_data(self) -> None:
        """Raise a ``ValueError`` if the model has no data."""
        if self.adata is None:
            name = type(self).__name__
            raise ValueError(
                f"The model has no data; give it some with {name}.from_pretrained(name, "
                f"adata=adata) after {name}.setup_anndata(adata, …)."
            )

    def _vocabulary_of(
        self, adata: AnnData | None, vocabulary: Sequence[str] | GeneVocabulary | None
    ) -> GeneVocabulary:
        """Return the genes of a new model: those given, else those of its data.

        Raises
        ------
        ValueError
            If there are neither.
        """
        if isinstance(vocabulary, GeneVocabulary):
            return vocabulary
        names = adata.var_names if vocabulary is None and adata is not None else vocabulary
        if names is None:
            name = type(self).__name__
            raise ValueError(
                f"{name} needs adata or vocabulary for its genes; found neither. To use a trained "
                f"model, call {name}.from_pretrained(name)."
            )
        return GeneVocabulary(list(names))

    def _registered_layer(self, manager: AnnDataManager | None = None) -> str | None:
        """Return the layer that was registered, ``None`` for ``X`` and for what is in ``obsm``."""
        registry = (manager or self.adata_manager).data_registry
        entry = registry.get(REGISTRY_KEYS.X_KEY)
        return entry.attr_key if entry is not None and entry.attr_name == "layers" else None

    def _given_or_own(
        self, adata: AnnData | None, layer: str | None = None
    ) -> tuple[AnnData, str | None]:
        """Return the given AnnData and layer, or the model's own as they were registered."""
        if adata is not None:
            require_anndata(adata)
            return adata, layer
        if self.adata is None:
            raise ValueError("The model has no data of its own; pass adata.")
        return self.adata, self._registered_layer() if layer is None else layer

    def mark_trained(self, studies: np.ndarray, **facts: Any) -> None:
        """Record that the weights are no longer those of the checkpoint they came from.

        Parameters
        ----------
        studies
            Studies that were trained on; they join those of the checkpoint.
        **facts
            Further entries of ``provenance``, all JSON types. Other entries of the checkpoint and
            its card are dropped; its name and SHA-256 are kept as ``started_from``.
        """
        seen = set(self.provenance.get("training_studies", [])) | set(studies) - {""}
        kept: dict[str, Any] = {"training_studies": sorted(str(s) for s in seen)}
        if self.checkpoint_sha256:
            kept["started_from"] = {
                "name": self.checkpoint_name,
                "sha256": self.checkpoint_sha256,
            }
        elif "started_from" in self.provenance:
            kept["started_from"] = self.provenance["started_from"]
        self.provenance = kept | facts
        self.checkpoint_name = self.checkpoint_sha256 = ""
        self.card = None

    #: Settings of a training, and their defaults; models that are not trained have none.
    Recipe: ClassVar[type[Recipe] | None] = None

    @checks_arguments(lr=ABOVE_0)
    def train(
        self,
        max_epochs: int | None = None,
        *,
        max_steps: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        accelerator: str = "auto",
        devices: int | str | list[int] = 1,
        precision: str = "auto",
        checkpoint_dir: str | Path | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        """Train on the registered data: from scratch, or further from loaded weights.

        The ``Recipe`` of the class, such as :class:`cfm.models.bulkformer.BulkFormerRecipe`, states
        what is learned and lists the settings. The curves are in ``history``.

        Parameters
        ----------
        max_epochs
            Passes over the data.
        max_steps
            Optimiser steps at most. Without either the recipe's bounds hold.
        batch_size
            Rows per batch and process; the recipe's by default.
        lr
            Peak learning rate; the recipe's by default.
        accelerator, devices
            As in Lightning: on what kind of device, and how many train together, each with batches
            of ``batch_size``; see the guide on training.
        precision
            ``"auto"``: bfloat16 on a GPU that is fast at it, else float32. Or ``"float32"``,
            ``"bfloat16"``, or a name of Lightning's.
        checkpoint_dir
            Folder in which the state of the training is kept, so that the same call goes on where
            it was after a kill, to the same weights; see the guide on training.
        seed
            Seed of the whole run.
        **settings
            Of the recipe, by name; and for :class:`scvi.train.Trainer`, such as ``num_nodes``,
            ``strategy``, ``accumulate_grad_batches``, ``enable_progress_bar`` (by
            default by ``scvi.settings.verbosity``) or ``callbacks``.

        Raises
        ------
        TypeError
            If there is no setting of a name, or the model is not trained here.
        KeyError
            If the data have a class or condition that a loaded model does not have.
        ValueError
            If the model has no data, they are not what it reads, or a setting is out of its range.
        KeyboardInterrupt
            If training is interrupted. The model then keeps what it has learned, and can be used,
            saved or trained further.
        """
        if self.Recipe is None:
            raise TypeError(
                f"{type(self).__name__} is used as its authors trained it and is not trained here."
            )
        self._require_own_data()
        run = TrainingRun(
            self,
            self.Recipe(),
            max_epochs=max_epochs,
            max_steps=max_steps,
            batch_size=batch_size,
            lr=lr,
            accelerator=accelerator,
            devices=devices,
            precision=precision,
            checkpoint_dir=checkpoint_dir,
            seed=seed,
            **settings,
        )
        with self._training(run) as training:
            run.fit(training)
        run.raise_if_interrupted()

    def _training(self, run: TrainingRun) -> AbstractContextManager[Training]:
        """Return a context that prepares a training, and completes the model after it."""
        raise NotImplementedError

    @checks_arguments()
    def save(
        self,
        dir_path: str | Path,
        *,
        overwrite: bool = False,
        card: str | None = None,
        compact: bool = False,
        **kwargs: Any,
    ) -> Path:
        """Save weights, what they need to be used, and provenance as a cfm checkpoint.

        Processes that train together must all call this: the first one writes, the others wait.

        Parameters
        ----------
        dir_path
            Folder to make.
        overwrite
            Replace a checkpoint that is there.
        card
            Model card (Markdown); the loaded one by default.
        compact
            Store large tables in float16: about half the size, and results differ a little.
        **kwargs
            None are taken: data are never saved with the model.

        Returns
        -------
        The folder.

        Raises
        ------
        FileExistsError
            If there is something and ``overwrite`` is not set.
        TypeError
            If there is another argument.
        """
        if kwargs:
            raise TypeError(
                f"save() does not take {sorted(kwargs)}; cfm checkpoints hold the model only. "
                "Save data with adata.write_h5ad."
            )
        tensors, config, files = self._contents()
        return on_rank_zero(
            lambda: save_checkpoint(
                dir_path,
                self._compacted(tensors) if compact else tensors,
                self.provenance | config,
                model=type(self).__name__,
                files=files | self._history_file(),
                card=card if card is not None else self.card,
                overwrite=overwrite,
            )
        )

    def _genes_file(self) -> dict[str, str]:
        """Return the genes of the vocabulary as a text file of a checkpoint."""
        return {GENES_FILE: "\n".join(self.vocabulary.genes) + "\n"}

    @abstractmethod
    def _contents(self) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, str]]:
        """Return what a checkpoint holds: tensors, settings, and text files by name."""

    def _compacted(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return tensors as a compact checkpoint stores them: matrices in float16."""
        return {
            k: v.half() if v.is_floating_point() and v.ndim > 1 else v for k, v in tensors.items()
        }

    def _history_file(self) -> dict[str, str]:
        """Training curves as a text file, a column per curve; nothing if never trained here."""
        if not self.history_:
            return self._loaded_history
        curves = [frame.rename(columns=str) for frame in self.history_.values()]
        table = pd.concat(curves, axis=1).dropna(how="all")
        return {HISTORY_FILE: table.to_csv(float_format="%.6g")}

    @classmethod
    @abstractmethod
    def _from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Return the model of a verified checkpoint, on the CPU and without data."""


def stored_genes(checkpoint: Checkpoint) -> GeneVocabulary:
    """Return the vocabulary of a checkpoint; ``KeyError`` without a file of genes."""
    return GeneVocabulary(checkpoint.files[GENES_FILE].splitlines())


def sha256_of_weights(tensors: dict[str, torch.Tensor]) -> str:
    """Return the SHA-256 of the file of weights that a checkpoint would have."""
    # safetensors takes no tensors that share memory
    own = {
        name: t.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, t in tensors.items()
    }
    return hashlib.sha256(save_tensors(own, metadata={"format": "pt"})).hexdigest()


def check_column(adata: AnnData, key: str) -> None:
    """Check that a column of ``obs`` exists and has no missing values.

    Raises
    ------
    KeyError, ValueError
        If it does not, or has some.
    """
    if key not in adata.obs:
        raise KeyError(f"adata.obs has no column {key!r}; it has {adata.obs.columns.tolist()}.")
    missing = int(in_memory_frame(adata.obs[[key]])[key].isna().sum())
    if missing:
        raise ValueError(
            f"adata.obs[{key!r}] is missing in {missing} of {adata.n_obs} rows; fill it in, or "
            "drop those rows."
        )


def check_weights(
    module: torch.nn.Module, tensors: dict[str, torch.Tensor], name: str, *, prefix: str = ""
) -> dict[str, torch.Tensor]:
    """Check that weights fit a module, which may be on the ``meta`` device.

    Parameters
    ----------
    module
        Where they are to go.
    tensors
        Weights by name; those that do not start with ``prefix`` are ignored.
    name
        Of the checkpoint, for the error.

    Returns
    -------
    The weights by the module's own names.

    Raises
    ------
    ValueError
        If names, shapes or kinds of numbers differ from the module's.
    """
    found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    state = module.state_dict()
    expected = {k: tuple(v.shape) for k, v in state.items()}
    wrong = [
        f"{k}: found {tuple(found[k].shape) if k in found else 'nothing'}, expected {shape}"
        for k, shape in expected.items()
        if k not in found or tuple(found[k].shape) != shape
    ]
    wrong += [
        f"{k}: found {tuple(found[k].shape)}, expected nothing" for k in found.keys() - expected
    ]
    # compact checkpoints have fewer bits, never another kind of numbers
    wrong += [
        f"{k}: found {found[k].dtype}, expected {v.dtype}"
        for k, v in state.items()
        if k in found and _kind(found[k]) != _kind(v)
    ]
    if wrong:
        raise ValueError(
            f"The weights of checkpoint {name!r} do not fit the sizes in its config.json "
            f"({'; '.join(wrong[:3])}{' …' if len(wrong) > 3 else ''}). It may be damaged or from "
            "another version; download it again."
        )
    return found


def _kind(tensor: torch.Tensor) -> tuple[bool, bool]:
    """Return whether a tensor is floating-point, and whether it is bool."""
    return tensor.is_floating_point(), tensor.dtype == torch.bool


def load_weights(
    module: torch.nn.Module,
    tensors: dict[str, torch.Tensor],
    name: str,
    *,
    prefix: str = "",
    copy: bool = True,
) -> None:
    """Give a module, which may be on the ``meta`` device, its weights, on the CPU.

    Parameters
    ----------
    module, tensors, name, prefix
        As for :func:`check_weights`, which raises where they do not fit. Weights take the
        module's dtypes.
    copy
        Whether weights are copied. Those of a checkpoint are read from its file when they are
        used, so copies are safe where that file is written over; very large ones are not copied.
    """
    found = check_weights(module, tensors, name, prefix=prefix)
    dtypes = {k: v.dtype for k, v in module.state_dict().items()}
    own = {k: v.to(dtypes[k], copy=copy) for k, v in found.items()}
    module.load_state_dict(own, assign=True)
