"""Virtual instrument: the public class. A model of its own, which reads donor embeddings."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi.data.fields import CategoricalObsField, ObsmField

from cfm._adata import warn_user
from cfm._arguments import NOT_NEGATIVE, checks_arguments
from cfm._docs import fill_docs
from cfm.data._matrix import get_matrix, read_rows, to_dense
from cfm.hub import Checkpoint, load_safetensors, load_torch
from cfm.hub._checkpoint import sha256_of_file, validate_config
from cfm.hub._resolve import reads_checkpoint
from cfm.models._base import TEXTS, PretrainedModel, check_column, load_weights
from cfm.models._training import Recipe, Training, TrainingPlan, TrainingRun, held_out_studies
from cfm.models.pulsar._data import read_cells
from cfm.models.pulsar._instrument_module import (
    InstrumentModule,
    InstrumentSize,
    changed_cells,
    instrument_losses,
)
from cfm.models.pulsar._model import Pulsar
from cfm.models.pulsar._training import TensorStream

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_REP_KEY, _DONOR_KEY, _CONDITION_KEY = "donors", "donor", "condition"
_NAMES_FILE, _TABLE, _MODULE = "conditions.txt", "conditions", "module."


@dataclass(frozen=True, kw_only=True)
class InstrumentRecipe(Recipe):
    """How a virtual instrument is trained: on donors who are there with and without a condition.

    The loss is the mean squared error of the embedding under the condition; its curves, and the
    error of leaving the donor as it is, are in ``history``.

    Parameters
    ----------
    control
        Value of the registered condition that means none; must be given. A donor's rows with it
        are averaged; donors without such a row are left out.
    validation_share
        Share of the donors that is held out, at least one if there are three.
    batch_size
        Pairs per batch.
    lr, weight_decay
        Of AdamW; warm-up over 5 % of the steps, then linear decay.
    max_epochs, max_steps, checkpoint_every
        As of :class:`cfm.models.base.Recipe`; an epoch goes through the pairs.
    """

    max_epochs: int | None = 200
    batch_size: int = 64
    control: str | None = None
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.01


class VirtualInstrument(PretrainedModel):
    """Donors under a condition, such as a cytokine: from the embedding of the donor without it.

    Parameters
    ----------
    adata
        Donors, some with and some without a condition, registered with :meth:`setup_anndata`.
    conditions
        Table with a row of numbers per condition, such as embeddings of the proteins.
        Conditions that were never seen can be predicted by their row.
    size
        Sizes of the network; by default as published, with the widths of the data.
    seed
        Seed of the initial weights.
    **sizes
        Single numbers to change in the size: ``hidden_dim``, ``dropout``, …

    Attributes
    ----------
    conditions
        The table, or ``None``; :meth:`add_conditions` extends it.

    Notes
    -----
    The virtual instrument of Pang et al., PULSAR, bioRxiv 2025.11.24.685470: the condition scales
    and shifts features of the donor, and the change that comes out is added to the donor's own
    embedding. Its authors published the network, but no weights.

    Examples
    --------
    >>> import cfm, pandas as pd, numpy as np
    >>> table = pd.DataFrame(np.eye(3), index=["IFNB1", "IL6", "TNF"])
    >>> model = cfm.models.VirtualInstrument(conditions=table, donor_dim=16, hidden_dim=8)
    >>> donors = np.zeros((2, 16), dtype=np.float32)
    >>> model.predict(donors, "IL6").shape
    (2, 16)
    """

    module: InstrumentModule
    Recipe = InstrumentRecipe

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
    @fill_docs(TEXTS)
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
        %(register_fields)s

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
            ObsmField(_REP_KEY, use_rep),
            CategoricalObsField(_DONOR_KEY, donor_key),
            CategoricalObsField(_CONDITION_KEY, condition_key),
        ]
        cls._register(adata, fields, setup_method_args, **kwargs)

    def _registered_rep(self) -> str:
        return str(self.adata_manager.data_registry[_REP_KEY].attr_key)

    def add_conditions(self, table: pd.DataFrame) -> None:
        """Add conditions, a row each, by their names; existing ones are replaced."""
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
                f"The model does not have the conditions {unknown[:5]}; it has "
                f"{known[:5].tolist()}. Add them with add_conditions(table), a row each."
            )
        return self.conditions.loc[list(names)].to_numpy(np.float32)

    def vocabulary_share(self, adata: AnnData) -> float:
        """Return 1.0: the model reads embeddings, not genes."""
        return 1.0

    @contextmanager
    def _training(self, run: TrainingRun) -> Iterator[Training]:
        recipe: InstrumentRecipe = run.recipe
        *arrays, donors = self._pairs(recipe.control)
        out = np.isin(donors, held_out_studies(donors, recipe.validation_share, run.seed))
        tensors = [torch.from_numpy(a) for a in arrays]
        settings: dict[str, Any] = {"seed": run.seed, **run.layout}
        training = TensorStream(*(t[~out] for t in tensors), **settings)
        checks = None
        if out.any():
            checks = TensorStream(*(t[out] for t in tensors), fixed=True, **settings)
        run.count_steps(training.n_batches)
        plan = TrainingPlan(self.module, partial(instrument_losses, self.module), **run.schedule)
        yield Training(plan, training, checks)
        facts = {k: v for k, v in self.provenance.items() if k == "use_rep"}
        self.mark_trained(
            np.array([], dtype=object),
            **facts,
            training_seed=run.seed,
            max_steps=run.n_steps,
            n_pairs=int((~out).sum()),
            training_donors=sorted(set(donors[~out].astype(str))),
        )

    def _pairs(self, control: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return donors before, condition vectors, donors after, and names of the donors."""
        self._require_own_data()
        if control is None:
            raise ValueError("control= must name the condition that means none.")
        embedded = read_cells(self.adata, self._registered_rep(), self.size.donor_dim)
        donor, condition = (self.registered_categories(k) for k in (_DONOR_KEY, _CONDITION_KEY))
        if control not in condition:
            raise KeyError(
                f"control={control!r} is no condition of the data; they have "
                f"{sorted(set(condition))[:10]}."
            )
        seen = sorted(set(condition) - {control})
        vectors = dict(zip(seen, self._vectors(seen), strict=True)) if seen else {}
        own = {
            d: embedded[(donor == d) & (condition == control)].mean(axis=0)
            for d in sorted(set(donor[condition == control]))
        }
        pairs = [i for i in range(len(donor)) if condition[i] != control and donor[i] in own]
        lost = len(set(donor)) - len(set(donor[pairs]))
        if not pairs:
            raise ValueError(
                f"No donor is there both with {control!r} and with a condition; paired donors are "
                "expected: check donor_key, which must name the person and not the sample."
            )
        if lost:
            warn_user(
                f"{lost} of {len(set(donor))} donors are not there both with {control!r} and with "
                "a condition, and are left out."
            )
        return (
            np.stack([own[donor[i]] for i in pairs]),
            np.stack([vectors[condition[i]] for i in pairs]),
            embedded[pairs],
            donor[pairs],
        )

    @torch.no_grad()
    def predict(self, donors: np.ndarray, condition: str | np.ndarray) -> np.ndarray:
        """Predict donor embeddings under a condition.

        Parameters
        ----------
        donors
            ``(n, donor_dim)`` embeddings without it.
        condition
            Name of a known condition, or its vector ``(condition_dim,)``.

        Returns
        -------
        ``(n, donor_dim)`` float32.

        Raises
        ------
        KeyError, ValueError
            If the condition is unknown, or widths do not fit.
        """
        vector = self._vectors([condition])[0] if isinstance(condition, str) else condition
        self.module.eval()
        x = torch.as_tensor(np.require(donors, np.float32, "W"), device=self.device)
        c = torch.as_tensor(np.require(vector, np.float32, "W"), device=self.device)
        return self.module(x, c.expand(len(x), -1)).cpu().numpy()

    @checks_arguments()
    def simulate(
        self,
        adata: AnnData,
        perturbation: Sequence[str],
        *,
        layer: str | None = None,
        groupby: str | None = None,
        batch_size: int = 64,
        seed: int = 0,
        encoder: Pulsar | str | Path | None = None,
    ) -> AnnData:
        """Predict donors, or their cells, under conditions.

        See :func:`cfm.tl.simulate_perturbation`.

        Parameters
        ----------
        adata
            Donors, ``X`` their embeddings, as :func:`cfm.tl.embed_donors` makes them. With
            ``encoder``, cells, ``X`` what represents them.
        perturbation
            Known conditions; the changes of several are added.
        layer
            Layer with the embeddings instead of ``X``.
        groupby
            Of cells the column of ``obs`` with their donor; the cells given are the donor's set.
            Not used for donors.
        seed
            Not used: nothing is random.
        batch_size
            Donors at a time.
        encoder
            The Pulsar whose donor embeddings this instrument was trained on, or its name. It
            embeds the donor, and its decoder turns the change of the embedding into one of the
            cells, which is added to them.

        Returns
        -------
        AnnData, donors by embedding or cells by representation, float32.

        Raises
        ------
        KeyError
            If a condition or the column is unknown.
        ValueError
            If embeddings or representations are of another width, or ``encoder`` has no decoder.
        """
        self._vectors(perturbation)
        if encoder is not None:
            return self._simulate_cells(adata, perturbation, layer, groupby, encoder)
        matrix = get_matrix(adata, layer=layer)
        if matrix.shape[1] != self.size.donor_dim:
            raise ValueError(
                f"X has {matrix.shape[1]} columns; the model reads donor embeddings of "
                f"{self.size.donor_dim}. Of donors made by cfm.tl.embed_donors pass "
                "AnnData(donors.obsm['X_pulsar'], obs=donors.obs)."
            )
        out = np.empty(matrix.shape, dtype=np.float32)
        for start in range(0, adata.n_obs, batch_size):
            rows = np.arange(start, min(start + batch_size, adata.n_obs))
            x = to_dense(read_rows(matrix, rows), np.float32)
            out[rows] = self._changed(x, perturbation)
        return AnnData(out, obs=adata.obs[[]], var=adata.var[[]])

    def _changed(self, donors: np.ndarray, conditions: Sequence[str]) -> np.ndarray:
        """Add the changes of several conditions to donor embeddings."""
        return donors + sum(self.predict(donors, name) - donors for name in conditions)

    def _simulate_cells(
        self,
        adata: AnnData,
        conditions: Sequence[str],
        layer: str | None,
        groupby: str | None,
        encoder: Pulsar | str | Path,
    ) -> AnnData:
        """Predict cells from the change of their donor."""
        model = Pulsar.from_pretrained(encoder) if isinstance(encoder, str | Path) else encoder
        if not isinstance(model, Pulsar):
            raise TypeError(f"encoder= is a {type(model).__name__}; expected a Pulsar.")
        if groupby is None:
            raise ValueError("groupby= must name the column of obs with the donor of each cell.")
        check_column(adata, groupby)
        matrix = get_matrix(adata, layer=layer)
        widths = matrix.shape[1], model.size.dim
        if widths != (model.size.input_dim, self.size.donor_dim):
            raise ValueError(
                f"X has {widths[0]} columns and the encoder's donor embeddings {widths[1]}; "
                f"expected {model.size.input_dim}, what the encoder reads, and "
                f"{self.size.donor_dim}, what the instrument was trained on."
            )
        made = changed_cells(
            model.module,
            to_dense(read_rows(matrix, np.arange(adata.n_obs)), np.float32),
            adata.obs[groupby].astype(str).to_numpy(dtype=object),
            lambda donors: self._changed(donors, conditions),
        )
        return AnnData(made, obs=adata.obs[[]], var=adata.var[[]])

    @classmethod
    @reads_checkpoint
    @fill_docs(TEXTS)
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
        %(adata_to_attach)s
        %(device)s
        conditions
            What represents each condition, which the authors' state dict does not hold.

        Raises
        ------
        ValueError
            If the file is damaged, not safe to read, or of another model.
        """
        model = cls._load_from(source, None, device)
        if conditions is not None:
            model.add_conditions(conditions)
        if adata is not None:
            model.attach(adata)
            read_cells(adata, model._registered_rep(), model.size.donor_dim)
        return model

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Return whether this is a single file: the authors' class has no other layout."""
        return path.is_file()

    @classmethod
    def _read_published(cls, path: Path, name: str, **published: Any) -> Checkpoint:
        return read_published(path)

    def _contents(self) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, str]]:
        tensors = {_MODULE + k: v for k, v in self.module.state_dict().items()}
        files = {}
        if self.conditions is not None:
            tensors[_TABLE] = torch.from_numpy(self.conditions.to_numpy(np.float32, copy=True))
            files[_NAMES_FILE] = "\n".join(self.conditions.index) + "\n"
        return tensors, {"size": vars(self.size)}, files

    @classmethod
    def _from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        config, tensors = dict(checkpoint.config), dict(checkpoint.tensors)
        table = tensors.pop(_TABLE, None)
        names = checkpoint.files.get(_NAMES_FILE, "").splitlines()
        with validate_config("VirtualInstrument", checkpoint.name, tensors):
            if (0 if table is None else len(table)) != len(names):
                raise ValueError(f"found {len(names)} names of conditions")
            if table is not None and not (table.is_floating_point() and table.ndim == 2):
                raise ValueError(f"found conditions of {table.dtype} and {table.ndim} dimensions")
            model = cls(size=InstrumentSize(**config.pop("size")))
        network = {k.removeprefix(_MODULE): v for k, v in tensors.items()}
        load_weights(model.module, network, checkpoint.name)
        if table is not None:
            model.add_conditions(pd.DataFrame(table.float().numpy(), index=names))
        model.provenance = config
        return model


def read_published(path: Path) -> Checkpoint:
    """Read a state dict of the authors' class, whose sizes are read off."""
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
    return Checkpoint(
        name=path.stem,
        path=path,
        model="VirtualInstrument",
        config={"size": vars(size)},
        tensors={_MODULE + k: v for k, v in state.items()},
        sha256=sha256_of_file(path),
    )


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
