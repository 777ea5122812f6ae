"""Pretraining of CellPulse: what goes in, and the run itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from cfm._arguments import BELOW_1, SHARE, checks_arguments
from cfm.data import ProfileMatrix
from cfm.data._warn import warn_user
from cfm.models._lightning import held_out_studies
from cfm.models._run import TrainingRun
from cfm.models.cellpulse._core import SAMPLE_KEY, CellPulseCore
from cfm.models.cellpulse._factors import GeneFactors, compress
from cfm.models.cellpulse._signed_sets import read_signed_sets
from cfm.models.cellpulse._stream import Batch, Ingredient, ProfileStream
from cfm.models.cellpulse._training import (
    PretrainingPlan,
    fit_correction_weights,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cfm.data import ProfileSource

_EPOCH = 25  # steps between two points of the training curves
_LINEAR_STEPS = 80
_VALIDATION_BATCHES = 16


class Pretrainable(CellPulseCore):
    """A CellPulse that can be pretrained."""

    #: The end of a training compresses the gene factors that it began with.
    _training_can_be_repeated = False

    @checks_arguments(
        source_share=SHARE,
        signed_set_share=SHARE,
        validation_share=BELOW_1,
        n_linear_steps=0,
        n_unchanged=0,
    )
    def train(
        self,
        max_steps: int = 500,
        *,
        sources: Mapping[str, ProfileSource] | None = None,
        source_share: float = 0.3,
        signed_set_share: float = 0.3,
        validation_share: float = 0.15,
        batch_size: int = 24,
        tokens_per_profile: int = 256,
        lr: float = 1e-3,
        n_linear_steps: int | None = None,
        n_unchanged: int = 16,
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
        """Pretrain on hidden directions and magnitudes.

        First the relevance of the gene factors is fitted, each profile being predicted without
        the factors of its own study; then the transformer learns what the linear term cannot say.
        At the end held-out studies decide how much of the transformer's correction is used
        (``module.correction_weight``), and the factors are compressed to the model's size. The
        curves are in ``history``.

        Parameters
        ----------
        max_steps
            Training steps in all.
        sources
            Further profiles by name of the study, such as :class:`cfm.data.ContrastPairs`; drawn
            on the fly.
        source_share, signed_set_share
            Share of the batches from ``sources`` and from the signed sets; the rest are the
            registered contrasts.
        validation_share
            Share of the registered studies that is held out, at least one if there are three.
        batch_size
            Profiles per step.
        tokens_per_profile
            Tokens drawn from each profile's strongest effects per step.
        lr
            Peak learning rate.
        n_linear_steps
            Steps for the linear term, before those of the transformer; 0 leaves it as it is. By
            default a fifth of ``max_steps``, at most 80.
        n_unchanged
            Genes that do not move, added to each profile.
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
        ValueError
            If the model has no data, a number is out of its range, or ``n_linear_steps`` leaves
            none for the transformer, whose weights would stay random.
        KeyboardInterrupt
            If training is interrupted. The model then keeps what it has learned and can be used,
            saved or trained further.
        """
        if n_linear_steps is None:
            n_linear_steps = min(_LINEAR_STEPS, max_steps // 5)
        if n_linear_steps >= max_steps:
            raise ValueError(
                f"n_linear_steps={n_linear_steps} of max_steps={max_steps} leave none for the "
                "transformer, whose weights would stay random; give more steps in all, or fewer "
                "for the linear term."
            )
        run = TrainingRun(locals())
        effects, studies = self.registered_profiles()
        held_out = held_out_studies(studies, validation_share, seed)
        validation = np.isin(studies, held_out)
        alignment = self.vocabulary.align(self.vocabulary.genes)
        if (studies == "").all():
            warn_user(
                "The data were registered without study_key: each contrast is predicted from gene "
                "factors that it helped to make, and nothing is held out to check. Register the "
                "study of each contrast."
            )
        sample = self.registered_categories(SAMPLE_KEY)
        alone = np.arange(len(sample)).astype(str).astype(object)
        # One name in two studies means two samples.
        group = pd.factorize(np.where(sample == "", alone, studies + "|" + sample))[0]

        def matrix(rows: np.ndarray) -> ProfileMatrix:
            part = effects[rows] if isinstance(effects, np.ndarray) else effects.only(rows)
            return ProfileMatrix(
                part, self.vocabulary.genes, study=studies[rows], group=group[rows]
            )

        share = 1.0 - (source_share if sources else 0.0)
        share -= signed_set_share if self.signed_sets is not None else 0.0
        if share <= 0:
            raise ValueError("source_share and signed_set_share leave nothing for the contrasts.")
        ingredients = [Ingredient(matrix(~validation), alignment, share)]
        for name, source in (sources or {}).items():
            if name in held_out:
                continue
            each = source_share / len(sources or {})
            where = self.vocabulary.align(source.var_names)
            ingredients.append(Ingredient(source, where, each, study=name))
        if self.signed_sets is not None:
            sets = ProfileMatrix(
                read_signed_sets(self.signed_sets), self.signed_sets.var_names, has_magnitude=False
            )
            where = self.vocabulary.align(sets.var_names)
            ingredients.append(Ingredient(sets, where, signed_set_share, knows_magnitude=False))

        n_factors = self.module.gene_factors.shape[1]
        factors = self._gene_factors or GeneFactors(
            self.module.gene_factors.cpu().numpy(), np.full(n_factors, "", dtype=object)
        )

        settings: dict[str, Any] = {"n_tokens": tokens_per_profile, "n_unchanged": n_unchanged}
        training = ProfileStream(
            ingredients,
            self.tokenizer,
            factors,
            batch_size=batch_size,
            n_processes=run.n_processes,
            n_batches=_EPOCH,
            n_linear_batches=n_linear_steps,
            seed=seed,
            **settings,
        )
        checks: list[Batch] = []
        if validation.any():
            check = ProfileStream(
                [Ingredient(matrix(validation), alignment, 1.0)],
                self.tokenizer,
                factors,
                batch_size=batch_size * run.n_processes,  # each process judges by all
                n_batches=_VALIDATION_BATCHES,
                n_linear_batches=_VALIDATION_BATCHES,  # whole profiles, as the model will meet them
                seed=seed + 1,
                **settings,
            )
            checks = list(check)
        run.count_steps(training.n_batches, default_epochs=1)
        plan = PretrainingPlan(self.module, lr=lr, n_steps=max_steps, n_linear_steps=n_linear_steps)
        try:
            run.fit(plan, training, checks)
        finally:
            for parameter in self.module.parameters():
                parameter.requires_grad_(True)
        if checks:
            device = self.module.gene_factors.device
            fit_correction_weights(self.module, [_moved(b, device) for b in checks])
        self.compress_factors()
        self.module.eval()
        self.trained_here(studies, training_seed=seed, max_steps=max_steps)
        run.raise_if_interrupted()

    def compress_factors(self) -> None:
        """Reduce the gene factors to ``size.n_factors``; what reads them is rotated along."""
        values = self.module.scaled_factors().detach().cpu().numpy()
        rank = min(self.size.n_factors, values.shape[1])
        _, rotation = compress(values, rank)
        rotated = torch.from_numpy(rotation).to(self.module.gene_factors.device)
        with torch.random.fork_rng(devices=[]):  # new layers are made, and filled at once
            self.module.rotate_factors(rotated)
        self._gene_factors = None
        self._summarise()


def _moved(batch: Batch, device: torch.device) -> Batch:
    """Move a batch to a device."""
    hidden, target, *rest = batch
    return Batch(hidden.to(device), target.to(device), *(t.to(device) for t in rest))
