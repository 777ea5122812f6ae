"""Virtual instrument: the public class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from anndata import AnnData

from cfm._arguments import BELOW_1, checks_arguments
from cfm.data._matrix import get_matrix, read_rows, to_dense
from cfm.data._warn import warn_user
from cfm.models._base import check_column
from cfm.models._training import TrainingRun, held_out_studies
from cfm.models.pulsar._decoded_cells import changed_cells
from cfm.models.pulsar._donors import read_cells
from cfm.models.pulsar._instrument_core import CONDITION_KEY, DONOR_KEY, InstrumentCore
from cfm.models.pulsar._model import Pulsar
from cfm.models.pulsar._plan import StepPlan, TensorStream
from cfm.nn._distributed import means_over_processes

if TYPE_CHECKING:
    from collections.abc import Sequence


class VirtualInstrument(InstrumentCore):
    """Donors under a condition, such as a cytokine: from the embedding of the donor without it.

    Parameters
    ----------
    adata
        Donors, some with and some without a condition, registered with :meth:`setup_anndata`.
    conditions
        What represents each condition: a table with a row per condition, such as embeddings of
        the proteins. Conditions that were never seen can be predicted by their row.
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

    @checks_arguments(validation_share=BELOW_1)
    def train(
        self,
        control: str,
        *,
        max_epochs: int = 200,
        validation_share: float = 0.1,
        batch_size: int = 64,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        accelerator: str = "auto",
        devices: int | str = 1,
        num_nodes: int = 1,
        strategy: str = "auto",
        precision: str = "auto",
        checkpoint_dir: str | Path | None = None,
        checkpoint_every: int = 500,
        enable_progress_bar: bool | None = None,
        seed: int = 0,
        **trainer_kwargs: Any,
    ) -> None:
        """Learn what conditions do to donors who are there with and without them.

        The loss is the mean squared error of the embedding under the condition; its curves, and
        the error of leaving the donor as it is, are in ``history``.

        Parameters
        ----------
        control
            Value of the registered condition that means none. A donor's rows with it are
            averaged; donors without such a row are left out.
        max_epochs
            Passes over the pairs.
        validation_share
            Share of the donors that is held out, at least one if there are three.
        batch_size
            Pairs per batch.
        lr, weight_decay
            Of AdamW; warm-up over 5 % of the steps, then linear decay.
        accelerator, devices, num_nodes, strategy
            As in Lightning: how many devices on how many machines train together, each with
            batches of ``batch_size``; see the guide on training.
        precision
            ``"auto"``: bfloat16 on a GPU that is fast at it, else float32. Or ``"float32"``,
            ``"bfloat16"``, or a name of Lightning's.
        checkpoint_dir
            Folder in which the state of the training is kept, so that the same call goes on where
            it was after a kill, to the same weights; see the guide on training.
        checkpoint_every
            Optimiser steps between two states.
        enable_progress_bar
            By default as ``scvi.settings.verbosity`` says.
        seed
            Seed of the whole run.
        **trainer_kwargs
            For :class:`scvi.train.Trainer`.

        Raises
        ------
        KeyError
            If a condition of the data is not in ``conditions``, or ``control`` is not in the data.
        ValueError
            If the model has no data, or no donor is there with and without a condition.
        KeyboardInterrupt
            If training is interrupted. The model then keeps what it has learned.
        """
        run = TrainingRun(locals())
        before, condition, after, donors = self._pairs(control)
        out = np.isin(donors, held_out_studies(donors, validation_share, seed))
        tensors = [torch.from_numpy(a) for a in (before, condition, after)]
        settings: dict[str, Any] = {"batch_size": batch_size, "n_processes": run.n_processes}
        training = TensorStream(*(t[~out] for t in tensors), seed=seed, **settings)
        checks = None
        if out.any():
            checks = TensorStream(*(t[out] for t in tensors), seed=seed, fixed=True, **settings)
        n_steps = run.count_steps(training.n_batches, default_epochs=max_epochs)
        plan = StepPlan(
            self.module, self._losses, lr=lr, weight_decay=weight_decay, n_steps=n_steps
        )
        run.fit(plan, training, checks)
        facts = {k: v for k, v in self.provenance.items() if k == "use_rep"}
        self.trained_here(
            np.array([], dtype=object),
            **facts,
            training_seed=seed,
            n_pairs=int((~out).sum()),
            training_donors=sorted(set(donors[~out].astype(str))),
        )
        run.raise_if_interrupted()

    def _losses(self, batch: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        before, condition, after = batch
        error = (self.module(before, condition) - after).square()
        unchanged = (before - after).square()
        parts = ((part.sum(), part.numel()) for part in (error, unchanged))
        return dict(zip(("loss", "unchanged"), means_over_processes(*parts), strict=True))

    def _pairs(self, control: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return donors before, condition vectors, donors after, and names of the donors."""
        if self.adata is None:
            raise ValueError(
                "The model has no data; give it some: VirtualInstrument(adata, conditions=table) "
                "after VirtualInstrument.setup_anndata(adata, …)."
            )
        embedded = read_cells(self.adata, self._registered_rep(), self.size.donor_dim)
        donor, condition = (self.registered_categories(k) for k in (DONOR_KEY, CONDITION_KEY))
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
        """Say what donors, or their cells, would be under conditions.

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
        """Say what cells would be, by the change of their donor."""
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
