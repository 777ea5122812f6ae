"""Pretraining of CellPulse: losses and optimiser, the sources of profiles, and the run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
import torch

from cfm._adata import warn_user
from cfm._arguments import BELOW_1, SHARE
from cfm.data import ProfileMatrix
from cfm.models._training import Recipe, Training, TrainingPlan, held_out_studies, scheduled
from cfm.models.cellpulse._data import ProfileStream, WeightedSource, read_signed_sets
from cfm.models.cellpulse._gene_factors import GeneFactors
from cfm.models.cellpulse._module import DOWN, UNCHANGED, UP, mean_or_zero

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from cfm.models._training import TrainingRun
    from cfm.models.cellpulse._data import Batch
    from cfm.models.cellpulse._module import CellPulseModule

#: Steps between two points of the training curves.
_EPOCH = 25
_VALIDATION_BATCHES = 16
#: Steps for the linear term at most, by default.
_LINEAR_STEPS = 80
#: Peak learning rate of the linear term, and weight decay of the transformer.
LINEAR_LR, WEIGHT_DECAY = 0.03, 0.05
#: Weights of the losses beside the direction loss.
LOSS_WEIGHTS = {"direction": 1.0, "magnitude": 0.2, "summary": 0.2, "agreement": 0.1}
#: Weights of the transformer's correction that are tried on held-out studies.
CORRECTION_GRID = (0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)


@dataclass(frozen=True, kw_only=True)
class CellPulseRecipe(Recipe):
    """How a CellPulse is trained: on hidden directions and magnitudes.

    First the relevance of the gene factors is fitted, each profile being predicted without the
    factors of its own study; then the transformer is fitted to what is left. At the end held-out
    studies decide how much of the transformer's correction is used (``module.correction_weight``),
    and the factors are compressed to the model's size. Profiles are drawn on the fly; an epoch has
    25 steps.

    Parameters
    ----------
    sources
        Further profiles by name of the study, such as :class:`cfm.data.ContrastPairs`.
    source_share, signed_set_share
        Share of the batches from ``sources`` and from the signed sets; the rest are the registered
        contrasts.
    tokens_per_profile
        Tokens drawn from each profile's strongest effects per step.
    n_linear_steps
        Steps for the linear term, before those of the transformer; 0 leaves it as it is. By
        default a fifth of all, at most 80.
    n_unchanged
        Genes that do not move, added to each profile.
    max_epochs, max_steps, batch_size, lr, validation_share, checkpoint_every
        As of :class:`cfm.models.base.Recipe`.
    """

    max_steps: int | None = 500
    batch_size: int = 24
    validation_share: Annotated[float, BELOW_1] = 0.15
    sources: Mapping[str, Any] | None = None
    source_share: Annotated[float, SHARE] = 0.3
    signed_set_share: Annotated[float, SHARE] = 0.3
    tokens_per_profile: int = 256
    n_linear_steps: Annotated[int | None, 0] = None
    n_unchanged: Annotated[int, 0] = 16


class PretrainingPlan(TrainingPlan):
    """Masked direction and magnitude, after the relevance of the gene factors has been fitted.

    The first ``n_linear_steps`` fit the linear term alone; it is then frozen, and the transformer
    is fitted to what is left.

    Parameters
    ----------
    n_linear_steps
        Steps for the linear term.
    module, **settings
        See :class:`cfm.models.base.TrainingPlan`.
    """

    def __init__(self, module: CellPulseModule, *, n_linear_steps: int, **settings: Any) -> None:
        super().__init__(module, weight_decay=WEIGHT_DECAY, **settings)
        self.n_linear_steps = n_linear_steps

    def linear_parameters(self) -> list[torch.nn.Parameter]:
        """Parameters of the linear term."""
        m = self.module
        return [m.log_relevance, m.linear.log_ridge, m.linear_weight]

    def configure_optimizers(self) -> Any:
        """AdamW; the learning rate of one part is 0 while the other is trained."""
        linear = self.linear_parameters()
        ids = {id(p) for p in linear}
        rest = [p for p in self.module.parameters() if id(p) not in ids]
        optimizer = torch.optim.AdamW(
            [
                {"params": linear, "lr": LINEAR_LR, "weight_decay": 0.0},
                {"params": rest, "lr": self.lr, "weight_decay": self.weight_decay},
            ]
        )
        n_linear, n_rest = self.n_linear_steps, max(1, self.n_steps - self.n_linear_steps)

        def linear_rate(step: int) -> float:
            return float(step < n_linear)

        def rest_rate(step: int) -> float:
            if step < n_linear:
                return 0.0
            done = (step - n_linear) / n_rest
            warm = 0.1
            return done / warm if done < warm else max(0.0, (1.0 - done) / (1.0 - warm))

        return scheduled(optimizer, [linear_rate, rest_rate])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step on one batch."""
        if self.global_step < self.n_linear_steps:
            loss = self.module.linear_loss(
                batch.tokens, batch.target, batch.masked, batch.factor_mask
            )
            self.write("train", {"linear_loss": loss}, batch_idx, len(batch.groups))
            return loss
        losses = self.losses(batch)
        self.write("train", losses, batch_idx, len(batch.groups))
        return losses["loss"]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Freeze the linear term once its steps are done."""
        super().on_train_batch_start(batch, batch_idx)
        if self.global_step >= self.n_linear_steps:
            for parameter in self.linear_parameters():
                parameter.requires_grad_(False)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Losses and direction accuracy on studies that are not trained on."""
        losses = self.losses(batch)
        encoded = self.module.encode(batch.tokens, batch.factor_mask)
        logits, _ = self.module.predict_tokens(encoded)
        moved = batch.masked & (batch.target.state != UNCHANGED)
        right = (logits[..., UP] > logits[..., DOWN]) == (batch.target.state == UP)
        accuracy = {"direction_accuracy": mean_or_zero(right[moved].float())}
        self.write("validation", losses | accuracy, batch_idx, len(batch.groups))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the parts of the loss by name, and ``loss``."""
        tokens, target, masked, groups, mask = batch
        losses = self.module.losses(tokens, target, masked, groups=groups, factor_mask=mask)
        total = torch.stack([LOSS_WEIGHTS[k] * v for k, v in losses.items()]).sum()
        return {f"{k}_loss": v for k, v in losses.items()} | {"loss": total}


@torch.no_grad()
def fit_correction_weights(module: CellPulseModule, batches: Sequence[Batch]) -> None:
    """Choose how much of the transformer's corrections to use, on batches of held-out studies.

    Stores in the module the weights of :data:`CORRECTION_GRID` with the fewest wrong directions
    and the smallest absolute error of the magnitudes of masked tokens, the smaller one if equal.
    """
    module.eval()
    direction = torch.zeros(len(CORRECTION_GRID))
    size = torch.zeros(len(CORRECTION_GRID))
    for tokens, target, masked, _, mask in batches:
        encoded = module.encode(tokens, mask)
        moved = masked & (target.state != UNCHANGED)
        sized = masked & ~torch.isnan(target.magnitude)
        up = target.state[moved] == UP
        for i, weight in enumerate(CORRECTION_GRID):
            module.correction_weight.fill_(weight)
            module.size_correction_weight.fill_(weight)
            logits, magnitude = module.predict_tokens(encoded)
            odds = (logits[..., UP] - logits[..., DOWN])[moved]
            direction[i] += mean_or_zero(((odds > 0) != up).float()).cpu()
            error = (magnitude[sized] - target.magnitude[sized]).abs()
            size[i] += mean_or_zero(error).cpu()
    module.correction_weight.fill_(CORRECTION_GRID[int(direction.argmin())])
    module.size_correction_weight.fill_(CORRECTION_GRID[int(size.argmin())])


@contextmanager
def pretraining(model: Any, run: TrainingRun, *, sample_key: str) -> Iterator[Training]:
    """Pretrain a CellPulse on its registered contrasts; see :class:`CellPulseRecipe`.

    Parameters
    ----------
    model
        A CellPulse with data.
    run
        The training.
    sample_key
        Registry key of the column with the infected sample.
    """
    recipe: CellPulseRecipe = run.recipe
    module = model.module
    n_steps = run.count_steps(_EPOCH)
    n_linear_steps = recipe.n_linear_steps
    if n_linear_steps is None:
        n_linear_steps = min(_LINEAR_STEPS, n_steps // 5)
    if n_linear_steps >= n_steps:
        raise ValueError(
            f"n_linear_steps={n_linear_steps} of max_steps={n_steps} leave none for the "
            "transformer, whose weights would stay random; give more steps in all, or fewer "
            "for the linear term."
        )
    effects, studies = model.registered_profiles()
    held_out = held_out_studies(studies, recipe.validation_share, run.seed)
    validation = np.isin(studies, held_out)
    if (studies == "").all():
        warn_user(
            "The data were registered without study_key: each contrast is predicted from gene "
            "factors that it helped to make, and nothing is held out to check. Register the "
            "study of each contrast."
        )
    samples = model.registered_categories(sample_key)
    alone = np.arange(len(samples)).astype(str).astype(object)
    # one name in two studies means two samples
    group = pd.factorize(np.where(samples == "", alone, studies + "|" + samples))[0]
    genes = model.vocabulary.genes

    def contrasts(rows: np.ndarray, share: float = 1.0) -> WeightedSource:
        part = effects[rows] if isinstance(effects, np.ndarray) else effects.only(rows)
        matrix = ProfileMatrix(part, genes, study=studies[rows], group=group[rows])
        return WeightedSource(matrix, model.vocabulary.align(genes), share)

    further = recipe.sources or {}
    share = 1.0 - (recipe.source_share if further else 0.0)
    share -= recipe.signed_set_share if model.signed_sets is not None else 0.0
    if share <= 0:
        raise ValueError("source_share and signed_set_share leave nothing for the contrasts.")
    sources = [contrasts(~validation, share)]
    for name, source in further.items():
        if name not in held_out:
            where = model.vocabulary.align(source.var_names)
            each = recipe.source_share / len(further)
            sources.append(WeightedSource(source, where, each, study=name))
    if model.signed_sets is not None:
        names = model.signed_sets.var_names
        matrix = ProfileMatrix(read_signed_sets(model.signed_sets), names, has_magnitude=False)
        where = model.vocabulary.align(matrix.var_names)
        of_sets = recipe.signed_set_share
        sources.append(WeightedSource(matrix, where, of_sets, has_magnitude=False))

    settings: dict[str, Any] = {
        "n_tokens": recipe.tokens_per_profile,
        "n_unchanged": recipe.n_unchanged,
    }
    factors = model.fitted_factors
    if factors is None:  # compressed ones are of no study
        values = module.gene_factors.cpu().numpy()
        factors = GeneFactors(values, np.full(values.shape[1], "", dtype=object))
    training = ProfileStream(
        sources,
        model.tokenizer,
        factors,
        batch_size=recipe.batch_size,
        n_processes=run.n_processes,
        n_batches=_EPOCH,
        n_linear_batches=n_linear_steps,
        seed=run.seed,
        **settings,
    )
    checks: list[Batch] = []
    if validation.any():
        check = ProfileStream(
            [contrasts(validation)],
            model.tokenizer,
            factors,
            batch_size=recipe.batch_size * run.n_processes,  # each process has all of it
            n_batches=_VALIDATION_BATCHES,
            n_linear_batches=_VALIDATION_BATCHES,  # whole profiles, as in use
            seed=run.seed + 1,
            **settings,
        )
        checks = list(check)
    plan = PretrainingPlan(module, n_linear_steps=n_linear_steps, **run.schedule)
    try:
        yield Training(plan, training, checks)
    finally:
        for parameter in module.parameters():
            parameter.requires_grad_(True)
    if checks:
        device = model.device
        fit_correction_weights(module, [batch.to(device) for batch in checks])
    model.compress_factors()
    module.eval()
    model.mark_trained(studies, training_seed=run.seed, max_steps=n_steps)
