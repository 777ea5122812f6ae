"""Virtual instrument, AnnData side: conditions, registered donors, saving and loading."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import torch
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalObsField, ObsmField

from cfm.hub import load_safetensors, load_torch, resolve
from cfm.hub._format import sha256_of_file
from cfm.hub._replace import reads_checkpoint
from cfm.models._base import PretrainedModel, check_column, load_weights
from cfm.models._validate import validate_config
from cfm.models.pulsar._donors import read_cells
from cfm.models.pulsar._instrument_module import InstrumentModule, InstrumentSize

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

    from cfm.hub import Checkpoint

REP_KEY, DONOR_KEY, CONDITION_KEY = "donors", "donor", "condition"
_NAMES_FILE, _TABLE, _MODULE = "conditions.txt", "conditions", "module."
_PUBLISHED = re.compile(r".*instrument.*\.(pt|pth|ckpt|safetensors)", re.IGNORECASE)


class InstrumentCore(PretrainedModel):
    """Network, conditions and registered data; see :class:`VirtualInstrument`."""

    module: InstrumentModule

    def __init__(
        self,
        adata: AnnData | None = None,
        *,
        conditions: pd.DataFrame | None = None,
        size: InstrumentSize | None = None,
        seed: int = 0,
        **sizes: Any,
    ) -> None:
        super().__init__(adata)
        table = None if conditions is None else _check_table(conditions, None)
        if size is None:
            if adata is not None:
                width = read_cells(adata, self._registered_rep(), None).shape[1]
                sizes = {"donor_dim": width} | sizes
            if table is not None:
                sizes = {"condition_dim": table.shape[1]} | sizes
            if "donor_dim" in sizes:
                sizes.setdefault("output_dim", sizes["donor_dim"])
            size = InstrumentSize(**sizes)
        elif sizes:
            raise ValueError(f"size= was given, and {sorted(sizes)} beside it; give one or other.")
        self.size = size
        self.conditions: pd.DataFrame | None = None
        if table is not None:
            self.add_conditions(table)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.module = InstrumentModule(size)
        if adata is not None:
            self.provenance |= {"use_rep": self._registered_rep()}
        self._summarise()

    def _summarise(self) -> None:
        n = sum(p.numel() for p in self.module.parameters())
        self._model_summary_string = (
            f"VirtualInstrument: donors of {self.size.donor_dim} numbers, conditions of "
            f"{self.size.condition_dim}, {n:,} parameters"
        )

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        condition_key: str,
        donor_key: str = "donor_id",
        use_rep: str = "X_pulsar",
        **kwargs: Any,
    ) -> None:
        """Register donors for training.

        Parameters
        ----------
        adata
            A row per donor and condition, as :func:`cfm.tl.embed_donors` makes of samples.
        condition_key
            Column of ``obs`` with the condition; one value of it means none.
        donor_key
            Column of ``obs`` with the donor, who is there with and without conditions.
        use_rep
            Name in ``obsm`` of the embedding of a row.
        **kwargs
            For :meth:`scvi.data.AnnDataManager.register_fields`.

        Raises
        ------
        KeyError, ValueError
            If a column or the embedding does not exist, or has missing values.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        for key in (condition_key, donor_key):
            check_column(adata, key)
        read_cells(adata, use_rep, None)
        fields = [
            ObsmField(REP_KEY, use_rep),
            CategoricalObsField(DONOR_KEY, donor_key),
            CategoricalObsField(CONDITION_KEY, condition_key),
        ]
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    def _registered_rep(self) -> str:
        return str(self.adata_manager.data_registry[REP_KEY].attr_key)

    def add_conditions(self, table: pd.DataFrame) -> None:
        """Tell the model of conditions: a row each, by their names; known ones are replaced."""
        table = _check_table(table, self.size.condition_dim)
        if self.conditions is not None:
            known = self.conditions.drop(index=self.conditions.index.intersection(table.index))
            table = pd.concat([known.set_axis(table.columns, axis=1), table])
        self.conditions = table

    def _vectors(self, names: Sequence[str]) -> np.ndarray:
        """Return what represents conditions, ``(n, condition_dim)`` float32."""
        known = pd.Index([]) if self.conditions is None else self.conditions.index
        unknown = [n for n in names if n not in known]
        if unknown or self.conditions is None:
            raise KeyError(
                f"The model does not know the conditions {unknown[:5]}; it knows "
                f"{known[:5].tolist()}. Tell it of them with add_conditions(table), a row each."
            )
        return self.conditions.loc[list(names)].to_numpy(np.float32)

    def vocabulary_share(self, adata: AnnData) -> float:
        """Return 1.0: the model reads embeddings, not genes."""
        return 1.0

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a file is called as weights of a virtual instrument would be."""
        return path.is_file() and _PUBLISHED.fullmatch(path.name) is not None

    @classmethod
    @reads_checkpoint
    def from_pretrained(
        cls,
        source: str | Path,
        adata: AnnData | None = None,
        *,
        device: str = "auto",
        conditions: pd.DataFrame | None = None,
    ) -> Self:
        """Load a model by name, folder or ``hf://org/name``, or the authors' state dict.

        Parameters
        ----------
        source
            Name of a registered checkpoint, a folder that :meth:`save` wrote, or a file with a
            state dict of the authors' class (``.pt``, ``.safetensors``), whose sizes are read off.
        adata
            Data to attach for further training, registered with ``setup_anndata``.
        device
            Where the model runs; ``"auto"`` takes a GPU if there is one.
        conditions
            What represents each condition, which the authors' state dict does not hold.

        Raises
        ------
        ValueError
            If the file is damaged, not safe to read, or of another model.
        """
        path = resolve(source)
        if path.is_file():
            model = cls._from_file(path)
            model.to_device(device)
            model.module.eval()
        else:
            model = super().from_pretrained(source, device=device)
        if conditions is not None:
            model.add_conditions(conditions)
        if adata is not None:
            model.attach(adata)
            read_cells(adata, model._registered_rep(), model.size.donor_dim)
        return model

    @classmethod
    def _from_file(cls, path: Path) -> Self:
        read = load_safetensors if path.suffix == ".safetensors" else load_torch
        state = {k.removeprefix("module."): v for k, v in read(path).items()}
        if not all(isinstance(v, torch.Tensor) for v in state.values()):
            raise ValueError(f"{path} holds more than tensors; expected a state dict.")
        try:
            size = InstrumentSize(
                donor_dim=state["donor_net.0.weight"].shape[1],
                output_dim=state["output_net.4.weight"].shape[0],
                condition_dim=state["cond_to_gamma.0.weight"].shape[1],
                hidden_dim=state["donor_net.0.weight"].shape[0],
            )
        except (KeyError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{path} does not hold the weights of a virtual instrument ({error} is missing)."
            ) from error
        model = cls._filled(size, state, path.stem)
        model.checkpoint_name, model.checkpoint_sha256 = path.stem, sha256_of_file(path)
        model.is_trained_ = True
        return model

    @classmethod
    def _filled(cls, size: InstrumentSize, tensors: dict[str, torch.Tensor], name: str) -> Self:
        with validate_config("VirtualInstrument", name, tensors):
            model = cls(size=size)
        load_weights(model.module, tensors, name)
        return model

    def _contents(self) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, str]]:
        tensors = {_MODULE + k: v for k, v in self.module.state_dict().items()}
        files = {}
        if self.conditions is not None:
            tensors[_TABLE] = torch.from_numpy(self.conditions.to_numpy(np.float32, copy=True))
            files[_NAMES_FILE] = "\n".join(self.conditions.index) + "\n"
        return tensors, {"size": vars(self.size)}, files

    @classmethod
    def _from_checkpoint(cls, checkpoint: Checkpoint, adata: AnnData | None) -> Self:
        config = dict(checkpoint.config)
        tensors = dict(checkpoint.tensors)
        table = tensors.pop(_TABLE, None)
        names = checkpoint.files.get(_NAMES_FILE, "").splitlines()
        with validate_config("VirtualInstrument", checkpoint.name, tensors):
            size = InstrumentSize(**config.pop("size"))
            if (0 if table is None else len(table)) != len(names):
                raise ValueError(f"found {len(names)} names of conditions")
            if table is not None and not (table.is_floating_point() and table.ndim == 2):
                raise ValueError(f"found conditions of {table.dtype} and {table.ndim} dimensions")
        inside = {k.removeprefix(_MODULE): v for k, v in tensors.items()}
        model = cls._filled(size, inside, checkpoint.name)
        if table is not None:
            model.add_conditions(pd.DataFrame(table.float().numpy(), index=names))
        model.provenance = config
        if adata is not None:
            model.attach(adata)
        return model


def _check_table(table: pd.DataFrame, width: int | None) -> pd.DataFrame:
    """Check what represents conditions."""
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"conditions is a {type(table).__name__}; expected a DataFrame.")
    values = table.to_numpy(np.float32)
    names = table.index.astype(str)
    if names.has_duplicates or table.empty or any(n.splitlines() != [n] for n in names):
        raise ValueError("conditions must name each condition once, by a name of one line.")
    if width is not None and values.shape[1] != width:
        raise ValueError(
            f"conditions has {values.shape[1]} columns; the model reads {width} numbers of each."
        )
    if not np.isfinite(values).all():
        raise ValueError("conditions holds NaN or infinite values; drop those rows.")
    return pd.DataFrame(values, index=names)
