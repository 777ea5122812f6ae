"""Training of Lingshu-Cell: what goes in, and the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS

from cfm._arguments import BELOW_1, PART, checks_arguments
from cfm.data._row_order import BLOCK_SIZE
from cfm.data._warn import warn_user
from cfm.models._training import TrainingRun, held_out_studies
from cfm.models.lingshu._core import LingshuCore
from cfm.models.lingshu._fit_count_term import LEAST_CELLS, fit_count_term
from cfm.models.lingshu._levels import shown
from cfm.models.lingshu._quantiser import OVERFLOW, quantise
from cfm.models.lingshu._reading import CountReader
from cfm.models.lingshu._training import CellStream, DiffusionPlan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cfm.models.lingshu._conditions import Conditions

_MAX_EPOCHS = 100
#: Without a number of epochs or steps, training stops after so many steps.
_MAX_STEPS = 4000
#: The share of the steps that warms up, at most as many as published.
_WARM_UP, _LONGEST_WARM_UP = 0.05, 1000
#: Counts that any gene may be given beyond twice the largest that was seen of it.
_MARGIN = 5


class Trainable(LingshuCore):
    """A Lingshu-Cell that can be trained."""

    @checks_arguments(validation_share=BELOW_1, condition_dropout=BELOW_1, least_time=PART)
    def train(
        self,
        max_epochs: int | None = None,
        *,
        max_steps: int | None = None,
        validation_share: float = 0.1,
        n_validation: int = 512,
        count_term: bool | None = None,
        balanced: bool = False,
        condition_dropout: float = 0.1,
        stratified: bool = True,
        least_time: float = 1e-3,
        batch_size: int = 32,
        accumulate_grad_batches: int = 1,
        lr: float = 1e-3,
        last_lr: float = 2e-5,
        weight_decay: float = 0.1,
        average_width: float | None = 0.05,
        recompute: bool = False,
        accelerator: str = "auto",
        devices: int | str = 1,
        num_nodes: int = 1,
        strategy: str = "auto",
        precision: str = "auto",
        block_size: int = BLOCK_SIZE,
        checkpoint_dir: str | Path | None = None,
        checkpoint_every: int = 500,
        enable_progress_bar: bool | None = None,
        seed: int = 0,
        **trainer_kwargs: Any,
    ) -> None:
        """Train on hidden counts: from scratch, or further from loaded weights.

        A random share ``t`` of a cell's genes is hidden and predicted from the rest; the loss is
        their cross-entropy weighted by ``1 / t`` (eq. 2), per measured gene: a bound of the
        negative log likelihood of counts, in nats per gene. Genes that the data do not measure
        are hidden in any case and not judged. AdamW with β = (0.9, 0.95), clipping at 1.0,
        warm-up over 5 % of the steps (1,000 at most) and a cosine. Afterwards the model holds the
        running average of its weights, not the last ones. The curves are in ``history``.

        Parameters
        ----------
        max_epochs
            Passes over the data; by default 100, and 4,000 steps at most.
        max_steps
            Optimiser steps at most.
        validation_share
            Share of the studies that is held out, at least one if there are three; without
            ``study_key`` share of the cells.
        n_validation
            Held-out cells, spread over all of them, on which each epoch is judged.
        count_term
            Start from :meth:`fit_count_term`, which a model that knows depths, was never trained
            and has no term does by default. Without it a model learns from its own term, if it
            has one.
        balanced
            Draw cells of a combination of source, perturbation and study with ``n`` cells with a
            weight of one over the root of ``n``.
        condition_dropout
            Probability that a cell is shown without any of its conditions, and that each is
            withheld, so that cells can be embedded and generated without them. 0 as published.
        stratified
            Spread the shares ``t`` of a batch evenly; each alone is uniform as before.
        least_time
            Lower bound of ``t``.
        batch_size
            Cells per batch. Published: 256 over all devices.
        accumulate_grad_batches
            Batches per optimiser step.
        lr, last_lr
            Peak and last learning rate. Published: 1e-4 to 2e-4, and 2e-5.
        weight_decay
            Of AdamW, on matrices.
        average_width
            Relative width σ of the power-function average of the weights (Karras et al. 2024);
            0.05 as published, ``None`` keeps the last weights.
        recompute
            Compute the layers again in the backward pass instead of keeping their activations.
        accelerator, devices, num_nodes, strategy
            As in Lightning: how many devices on how many machines train together, each with
            batches of ``batch_size``; see the guide on training.
        precision
            ``"auto"``: bfloat16 on a GPU that is fast at it, else float32. Or ``"float32"``,
            ``"bfloat16"``, or a name of Lightning's.
        block_size
            Neighbouring rows that are shuffled together where there are more than 8,192; 1
            shuffles each row alone, which is slow on disk.
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
            If the data have a condition that a loaded model does not know.
        ValueError
            If the model has no data, they are no counts, or a number is out of its range.
        KeyboardInterrupt
            If training is interrupted. The model then keeps what it has learned.
        """
        run = TrainingRun(locals())
        read, reader = self._training_reader()
        studies = self.registered_categories("study")
        held_out = self._held_out(studies, validation_share, seed)
        training, checks = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        if len(checks) > n_validation:
            checks = checks[np.linspace(0, len(checks) - 1, n_validation).astype(np.int64)]
        if count_term is None:
            known = self.is_trained_ or self.module.count_term is not None
            count_term = self.size.depth and not known
        if count_term:
            self._fit_count_term(reader, training, seed)
        self._learn_ranges(reader, training)
        stream = CellStream(
            read,
            training,
            batch_size=batch_size,
            seed=seed,
            least_time=least_time,
            stratified=stratified,
            condition_dropout=condition_dropout,
            weights=self._root_weights(studies, training) if balanced else None,
            expect=reader.expect,
            **run.layout,
        )
        check = None
        if len(checks):
            check = CellStream(
                read,
                checks,
                batch_size=batch_size,
                seed=seed + 1,
                least_time=least_time,
                stratified=True,
                fixed=True,
                expect=reader.expect,
                **run.layout,
            )
        n_steps = run.count_steps(
            stream.n_batches, default_epochs=_MAX_EPOCHS, default_steps=_MAX_STEPS
        )
        plan = DiffusionPlan(
            self.module,
            lr=lr,
            last_lr=last_lr,
            weight_decay=weight_decay,
            warm_up=max(1, min(_LONGEST_WARM_UP, round(_WARM_UP * n_steps))),
            n_steps=n_steps,
            average_width=average_width,
        )
        self.module.trunk.recompute = recompute
        try:
            run.fit(plan, stream, check)
        finally:
            self.module.trunk.recompute = False
            plan.show_average(True)
        self.trained_here(studies, training_seed=seed, max_steps=n_steps)
        run.raise_if_interrupted()

    @checks_arguments()
    def fit_count_term(self, *, seed: int = 0) -> None:
        """Fit the distribution of counts that conditions alone give, in a minute and not in hours.

        Each gene's counts are negative binomial; their mean follows from the source of a cell, its
        perturbation and its depth. Effects that were not measured in a source are learned from
        other sources, those of perturbations that were measured nowhere from their features. The
        network, untrained, adds nothing to it; :meth:`train` then teaches it what genes say of
        each other. Weights that were trained without such a term do not fit beside it, so the
        scores of the network begin anew.

        Parameters
        ----------
        seed
            Of the rows that are read where there are too many.

        Raises
        ------
        ValueError
            If the model has no data, does not know depths (``depth=True``), or the data are no
            counts.

        Warns
        -----
        UserWarning
            If a perturbation has too few cells in every source, and no features: it is then taken
            to do nothing.
        """
        _, reader = self._training_reader()
        rows = np.arange(self.adata.n_obs)
        self._fit_count_term(reader, rows, seed)
        self._learn_ranges(reader, rows)
        self.is_trained_ = True
        self.trained_here(self.registered_categories("study"), count_term_seed=seed)

    def _fit_count_term(self, reader: CountReader, rows: np.ndarray, seed: int) -> None:
        if not self.size.depth:
            raise ValueError(
                "A count term needs the depth of each cell; make the model with depth=True."
            )
        described = self.perturbation_features
        term = fit_count_term(
            reader.counts,
            rows,
            self._conditions_of(self.adata.obs, None),
            n_genes=len(self.vocabulary),
            n_sources=len(self.levels.sources),
            n_parts=len(self.levels.perturbations),
            features=None if described is None else described.values.astype(np.float64),
            seed=seed,
        )
        pairs = zip(self.levels.perturbations, term.measured.tolist(), strict=True)
        silent = [name for name, measured in pairs if not measured]
        if silent and (described is None or len(silent) == len(term.measured)):
            warn_user(
                f"The effects of {len(silent)} perturbations are not known, as no source has "
                f"{LEAST_CELLS} cells of each and its parts: {shown(silent)}. Alone, the count "
                "term takes them to do nothing; leave them out, or give perturbation_features=."
            )
        self.module.set_count_term(term.to(self.device))

    def _training_reader(
        self,
    ) -> tuple[Callable[[np.ndarray], tuple[torch.Tensor, Conditions]], CountReader]:
        """Return how to read rows of the registered data."""
        if self.adata is None:
            raise ValueError(
                "The model has no data; give it some with from_pretrained(name, adata=adata) "
                "after LingshuCell.setup_anndata(adata, …)."
            )
        registered = self.adata_manager.data_registry[REGISTRY_KEYS.X_KEY]
        layer = registered.attr_key if registered.attr_name == "layers" else None
        reader = CountReader(self.adata, self.vocabulary, layer)
        conditions = self._conditions_of(self.adata.obs, None)

        def read(rows: np.ndarray) -> tuple[torch.Tensor, Conditions]:
            tokens, depth = reader.tokens(rows)
            told = conditions.rows(torch.from_numpy(rows))
            return torch.from_numpy(tokens), told._replace(depth=torch.from_numpy(depth))

        return read, reader

    def _learn_ranges(self, reader: CountReader, rows: np.ndarray) -> None:
        """Keep how deep cells are, of all and of each source, and how large each gene's counts."""
        largest = np.zeros(len(self.vocabulary), dtype=np.int64)
        depths = []
        for start in range(0, len(rows), 512):
            counts = reader.counts(rows[start : start + 512])
            depths.append(np.maximum(counts, 0).sum(axis=1))
            largest = np.maximum(largest, counts.max(axis=0))
        # Twice what was seen, as a cell may be made under conditions that none was seen under.
        limit = np.where(reader.measured, quantise(2 * largest + _MARGIN), OVERFLOW)
        known = self.module.largest
        found = torch.from_numpy(limit.astype(np.int16)).to(known.device)
        self.module.largest = torch.maximum(known, found) if self.is_trained_ else found
        quantiles = self.module.depth_quantiles
        if not self.size.depth or (self.is_trained_ and quantiles.any()):
            return
        depth = np.concatenate(depths)
        source = self._conditions_of(self.adata.obs, None).source.numpy()[rows]
        ranks = np.linspace(0.0, 1.0, quantiles.shape[1])
        for i in range(len(quantiles)):
            chosen = depth if i == 0 else depth[source == i]
            values = np.quantile(chosen if len(chosen) else depth, ranks)
            quantiles[i] = torch.from_numpy(values.astype(np.float32)).to(quantiles.device)

    def _held_out(self, studies: np.ndarray, share: float, seed: int) -> np.ndarray:
        """Choose what training is judged on, ``(n,)`` bool: studies, or cells without them."""
        if (studies != "").any():
            return np.isin(studies, held_out_studies(studies, share, seed))
        n = len(studies)
        out = np.zeros(n, dtype=bool)
        if share and n >= 3:
            size = min(max(1, round(share * n)), n - 1)
            out[np.random.default_rng(seed).choice(n, size=size, replace=False)] = True
        return out

    def _root_weights(self, studies: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return one over the root of the number of cells with the same conditions and study."""
        levels = self.levels
        keys = [k for k in (levels.source_key, levels.perturbation_key) if k is not None]
        table = self.adata.obs[keys].astype(str).assign(**{" study": studies}).iloc[rows]
        size = table.groupby(list(table.columns), sort=False).transform("size")
        return 1.0 / np.sqrt(size.to_numpy(dtype=np.float64))
