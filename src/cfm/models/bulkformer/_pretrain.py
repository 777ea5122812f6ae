"""Training of BulkFormer, from scratch or from published weights: what goes in, and the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS

from cfm._arguments import BELOW_1, PART, SHARE, checks_arguments
from cfm.data._row_order import BLOCK_SIZE
from cfm.models._base import PretrainedModel
from cfm.models._lightning import held_out_studies
from cfm.models._run import TrainingRun
from cfm.models.bulkformer._constants import MISSING
from cfm.models.bulkformer._core import BulkFormerCore
from cfm.models.bulkformer._linear_fit import choose_settings, choose_weight, fit_local_factors
from cfm.models.bulkformer._reading import ExpressionReader, expression_blocks
from cfm.models.bulkformer._training import MaskedExpressionPlan, SampleStream

if TYPE_CHECKING:
    from pathlib import Path

_MAX_EPOCHS = 30


class Trainable(BulkFormerCore):
    """A BulkFormer that can be trained."""

    @checks_arguments(mask_share=PART, validation_share=BELOW_1, redraw_interval=0)
    def train(
        self,
        max_epochs: int | None = None,
        *,
        max_steps: int | None = None,
        mask_share: float = 0.15,
        validation_share: float = 0.1,
        balanced: bool = False,
        batch_size: int = 8,
        accumulate_grad_batches: int = 1,
        lr: float = 5e-4,
        weight_decay: float = 0.01,
        redraw_interval: int = 1000,
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
        """Train on hidden expression: from scratch, or further from loaded weights.

        A part of the observed genes of each sample is hidden and predicted from the rest; the
        loss is the mean squared error of log TPM. A model that was never trained starts as the
        mean of each gene. The curves, of the network without a linear term, are in ``history``.
        A linear term stays as it was; fit it again.

        Parameters
        ----------
        max_epochs
            Passes over the data; 30 unless ``max_steps`` is given.
        max_steps
            Optimiser steps at most.
        mask_share
            Share of the observed genes that is hidden.
        validation_share
            Share of the studies that is held out, at least one if there are three; without
            ``study_key`` share of the samples.
        balanced
            Draw samples of a study of ``n`` with a weight of one over the root of ``n``, so that
            a few large studies do not fill the batches.
        batch_size
            Samples per batch.
        accumulate_grad_batches
            Batches per optimiser step.
        lr
            Peak learning rate; warm-up over 5 % of the steps, then linear decay. The published
            models were trained with 1e-4.
        weight_decay
            Of AdamW.
        redraw_interval
            Steps after which the random features of the attention are drawn anew; 0 keeps them.
        recompute
            Compute the layers again in the backward pass instead of keeping their activations:
            a third slower, and memory for one layer instead of all.
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
        ValueError
            If the model has no data or too few samples, the matrix is not log TPM, or a number
            is out of its range.
        KeyboardInterrupt
            If training is interrupted. The model then keeps what it has learned.
        """
        run = TrainingRun(locals())
        reader = self._registered_expression()
        studies = self.registered_categories(REGISTRY_KEYS.BATCH_KEY)
        held_out = self._held_out(studies, validation_share, seed)
        training, checks = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        if not self.is_trained_:
            self.module.start_from(torch.from_numpy(reader.mean(training)))
        stream = SampleStream(
            reader.read,
            training,
            batch_size=batch_size,
            mask_share=mask_share,
            seed=seed,
            weights=_root_weights(studies[training]) if balanced else None,
            expect=reader.expect,
            **run.layout,
        )
        check = None
        if len(checks):
            check = SampleStream(
                reader.read,
                checks,
                batch_size=batch_size,
                mask_share=mask_share,
                seed=seed + 1,
                fixed=True,
                expect=reader.expect,
                **run.layout,
            )
        n_steps = run.count_steps(stream.n_batches, default_epochs=_MAX_EPOCHS)
        plan = MaskedExpressionPlan(
            self.module,
            lr=lr,
            weight_decay=weight_decay,
            n_steps=n_steps,
            redraw_interval=redraw_interval,
            seed=seed,
        )
        self.module.recompute = recompute
        try:
            run.fit(plan, stream, check)
        finally:
            self.module.recompute = False
        self.trained_here(studies, training_seed=seed, max_steps=n_steps)
        run.raise_if_interrupted()

    @checks_arguments(weight=SHARE, validation_share=BELOW_1)
    def fit_linear_term(
        self,
        n_factors: int = 192,
        *,
        group_key: str | None = None,
        weight: float | None = None,
        validation_share: float = 0.1,
        seed: int = 0,
    ) -> None:
        """Fit a linear gene-gene term that is blended with the network's predictions.

        A Gaussian of the training samples most like the sample at hand, in closed form (see
        ``LocalFactors``). It changes predicted expression, not embeddings. How local it is, and
        how far it is trusted beside the network, is chosen on studies predicted without their own
        samples.

        Parameters
        ----------
        n_factors
            Directions in which genes vary together; fewer if there are fewer samples.
        group_key
            Column of ``obs`` with groups of like samples, such as a table or a tissue; by default
            the registered study.
        weight
            How far it is trusted beside the network: 1 predicts with it alone, 0 with the
            network alone. Chosen on held-out studies if not given.
        validation_share, seed
            As in :meth:`train`, so that the network is judged on studies it was not trained on.

        Raises
        ------
        KeyError
            If the column does not exist.
        ValueError
            If the model has no data, the matrix is not log TPM, or the weight is not in 0 to 1.
        """
        reader = self._registered_expression()
        studies = self.registered_categories(REGISTRY_KEYS.BATCH_KEY)
        labels = studies
        if group_key is not None:
            if group_key not in self.adata.obs:
                raise KeyError(
                    f"adata.obs has no column {group_key!r}; it has "
                    f"{self.adata.obs.columns.tolist()}."
                )
            labels = self.adata.obs[group_key].astype(str).to_numpy(dtype=object)
        values = reader.read(np.arange(len(studies)))
        _, groups = np.unique(labels.astype(str), return_inverse=True)
        term = fit_local_factors(
            torch.where(values == MISSING, torch.nan, values).numpy(),
            groups.ravel(),
            n_factors=n_factors,
        )
        self.module.linear_term = None
        held_out = self._held_out(studies, validation_share, seed)
        choose_settings(term, values, studies, seed=seed)
        if weight is None:
            self.module.eval()
            choose_weight(term, self.module.predict, values, studies, held_out, seed=seed)
        else:
            term.weight.fill_(weight)
        self.module.linear_term = term.to(self.device)
        # The network is as it was, so what is known of it and of compounds stays.
        kept = ("training_studies", "started_from")
        facts = {k: v for k, v in self.provenance.items() if k not in kept}
        PretrainedModel.trained_here(self, studies, **facts)

    def _registered_expression(self) -> ExpressionReader:
        """Check the registered data, and return what reads their rows."""
        if self.adata is None:
            raise ValueError(
                "The model has no data; give it some with from_pretrained(name, adata=adata) "
                "after BulkFormer.setup_anndata(adata, …)."
            )
        self.require_genes()
        layer = self._registered_layer()
        reader = ExpressionReader(self.adata, self.vocabulary, layer=layer)
        for _ in expression_blocks(self.adata, layer=layer):
            pass  # checks every sample once
        return reader

    def _held_out(self, studies: np.ndarray, share: float, seed: int) -> np.ndarray:
        """Choose what training is judged on, ``(n,)`` bool: studies, or samples without them."""
        if (studies != "").any():
            return np.isin(studies, held_out_studies(studies, share, seed))
        names = np.arange(len(studies)).astype(str).astype(object)
        # np.isin compares each with each where they are objects
        return pd.Index(names).isin(held_out_studies(names, share, seed))


def _root_weights(studies: np.ndarray) -> np.ndarray:
    """Return one over the root of the size of each sample's study."""
    _, which, size = np.unique(studies, return_inverse=True, return_counts=True)
    return 1.0 / np.sqrt(size[which.ravel()])
