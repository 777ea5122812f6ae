"""Training of PULSAR, from scratch or from published weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS

from cfm._arguments import BELOW_1, PART, checks_arguments
from cfm.data._warn import warn_user
from cfm.models._training import TrainingRun, held_out_studies
from cfm.models.pulsar._apply import Applicable
from cfm.models.pulsar._core import constant_within
from cfm.models.pulsar._donors import Donors
from cfm.models.pulsar._objectives import Batch, pretraining_losses
from cfm.models.pulsar._plan import StepPlan
from cfm.models.pulsar._stream import PretrainingStream

if TYPE_CHECKING:
    from pathlib import Path

_MAX_EPOCHS = 100


class Trainable(Applicable):
    """A PULSAR that can be trained."""

    @checks_arguments(n_cells=2, keep_share=PART, mask_share=PART, validation_share=BELOW_1)
    def train(
        self,
        max_epochs: int | None = None,
        *,
        max_steps: int | None = None,
        n_cells: int = 512,
        keep_share: float = 0.15,
        mask_share: float = 0.85,
        reconstruction_weight: float = 1.0,
        contrastive_weight: float = 1.0,
        temperature: float = 0.1,
        validation_share: float = 0.1,
        batch_size: int = 16,
        lr: float = 3e-4,
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
        """Train on donors: from scratch, or further from loaded weights.

        Two draws are made of each donor. The encoder sees a few cells of a draw; of the others
        most elements are hidden, and the decoder reconstructs them from the donor embedding and
        what is left of each cell. The embeddings of the two draws are made to find each other
        among those of other donors, and where donors have labels (``labels_key``) those of the
        same label. The curves are in ``history``.

        Parameters
        ----------
        max_epochs
            Passes over the donors; 100 unless ``max_steps`` is given.
        max_steps
            Optimiser steps at most.
        n_cells
            Cells of a draw, fewer of donors with less than twice as many.
        keep_share
            Share of them that the encoder sees, at least one cell.
        mask_share
            Share of the elements of the other cells that is hidden.
        reconstruction_weight, contrastive_weight
            Weights of the two losses; the authors align to labels with 0.1 and 1.
        temperature
            Of the contrastive loss.
        validation_share
            Share of the studies that is held out, at least one if there are three; without
            ``study_key`` share of the donors.
        batch_size
            Donors per batch.
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
        ValueError
            If the model has no data, fewer than two donors, or a number is out of its range.
        KeyboardInterrupt
            If training is interrupted. The model then keeps what it has learned.

        Notes
        -----
        An open recipe: the authors published the weights of the losses and the shares, not the
        training code. Their masks hide correlated elements together; these hide random ones.
        """
        run = TrainingRun(locals())
        if min(reconstruction_weight, contrastive_weight) < 0 or not (
            reconstruction_weight or contrastive_weight
        ):
            raise ValueError("The weights of the losses must not be negative, nor both 0.")
        if reconstruction_weight and not len(self.module.decoder):
            raise ValueError(
                "This model has no decoder, so it cannot reconstruct cells; pass "
                "reconstruction_weight=0."
            )
        donors, labels, studies, held_out = self._training_donors(validation_share, seed)
        self._add_masked_input()
        settings: dict[str, Any] = {
            "batch_size": batch_size,
            "n_cells": n_cells,
            "labels": labels,
            "keep_share": keep_share,
            "mask_share": mask_share,
            "n_processes": run.n_processes,
        }
        stream = PretrainingStream(donors, np.flatnonzero(~held_out), seed=seed, **settings)
        checks = None
        if held_out.any():
            checks = PretrainingStream(
                donors, np.flatnonzero(held_out), seed=seed + 1, fixed=True, **settings
            )
        n_steps = run.count_steps(stream.n_batches, default_epochs=_MAX_EPOCHS)

        def losses(batch: Batch) -> dict[str, torch.Tensor]:
            return pretraining_losses(
                self.module,
                batch,
                reconstruction_weight=reconstruction_weight,
                contrastive_weight=contrastive_weight,
                temperature=temperature,
            )

        plan = StepPlan(self.module, losses, lr=lr, weight_decay=weight_decay, n_steps=n_steps)
        run.fit(plan, stream, checks)
        self._trained(
            studies, training_seed=seed, max_steps=n_steps, n_donors=int((~held_out).sum())
        )
        run.raise_if_interrupted()

    def _trained(self, studies: np.ndarray, **facts: Any) -> None:
        """Record a training; what the registered data are called is kept."""
        kept = {k: v for k, v in self.provenance.items() if k in ("donor_key", "use_rep")}
        self.trained_here(studies, **kept, **facts)

    def _training_donors(
        self, validation_share: float, seed: int
    ) -> tuple[Donors, np.ndarray, np.ndarray, np.ndarray]:
        """Return donors, their labels (−1 = none) and studies, and which are held out."""
        donors = self._own_donors()
        if len(donors.names) < 2:
            raise ValueError(
                f"The data have {len(donors.names)} donor; at least two are needed to train."
            )
        labels = self._of_donors(REGISTRY_KEYS.LABELS_KEY, donors)
        known, numbers = np.unique(labels.astype(str), return_inverse=True)
        numbers = numbers.astype(np.int64)
        numbers[labels == ""] = -1
        single = [str(k) for i, k in enumerate(known) if k and (numbers == i).sum() == 1]
        if single:
            warn_user(
                f"The label {', '.join(map(repr, single[:3]))} is present in one donor only: "
                "nothing can be aligned to it."
            )
        studies = self._of_donors(REGISTRY_KEYS.BATCH_KEY, donors)
        groups = studies if (studies != "").any() else donors.names.to_numpy(dtype=object)
        held_out = np.isin(groups, held_out_studies(groups, validation_share, seed))
        return donors, numbers, studies, held_out

    def _of_donors(self, registry_key: str, donors: Donors) -> np.ndarray:
        """Return a registered column by donor, ``(n_donors,)`` object; ``""`` if not given."""
        state = self.adata_manager.get_state_registry(registry_key)
        if state.original_key.startswith("_scvi"):
            return np.full(len(donors.names), "", dtype=object)
        values = constant_within(self.adata, donors, state.original_key)
        return np.array([str(v) for v in values], dtype=object)

    def _add_masked_input(self) -> None:
        """Give published weights the input network that reconstruction needs."""
        if not self.size.masked_input:
            self.module.add_masked_input()
            self.size = self.module.size
            self._summarise()
