"""Training of CellVQ: hidden counts through the code of a cell, and the properties of cells."""

from __future__ import annotations

import math
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfm.data._counts import TARGET_SUM
from cfm.data._warn import warn_user
from cfm.models._training import TrainingPlan
from cfm.models.cellvq._additions import EPS, CentredProjection, spread_cells
from cfm.models.cellvq._data import STUDY, Batch, CellStream, levels_of, split_rows, spread_rows
from cfm.nn._distributed import (
    common_numbers,
    means_over_processes,
    numbers_of_all,
    process_number,
    summed,
)
from cfm.nn._zinb import zinb_nll

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from cfm.models._training import TrainingRun
    from cfm.models.cellvq._data import Tokens
    from cfm.models.cellvq._model import CellVQ
    from cfm.models.cellvq._module import CellVQModule
    from cfm.nn._soft_codes import Quantised

Schedule = Literal["geometric", "cosine"]

_MAX_EPOCHS = 100
#: Optimiser steps without a number of epochs or steps.
_MAX_STEPS = 1000
#: Cells on which the projection to the codes is centred when training starts.
_EXAMPLES = 256
#: One cycle: share of the steps that warms up, and first and last rate as shares of the peak.
_WARM_UP, _FIRST_RATE, _LAST_RATE = 0.1, 1 / 25, 1e-3
#: Codes have collapsed if their perplexity is below this, or below this share of the codes that
#: the checked cells could use, over the last epochs.
_LEAST_PERPLEXITY, _LEAST_SHARE, _LAST_EPOCHS = 2.0, 0.005, 3
#: Codes whose nearest other code is searched in a step: for all 4,096 that would take longer than
#: the rest of the step.
_CODES_AT_ONCE = 512


@dataclass(frozen=True)
class Weights:
    """Weights of the terms of the loss; a term with weight 0 is not computed.

    Attributes
    ----------
    reconstruction, separation, balance
        Of the counts, of codes that are close, and of codes that are not used.
    properties
        Of each property head, in the order of the heads.
    code_labels
        Of the same properties, predicted from the code alone by heads for training only.
    classes
        ``(n_classes,)`` of the classes of each property, or ``None`` if all have the same weight.
    """

    reconstruction: float
    separation: float
    balance: float
    properties: tuple[float, ...] = ()
    code_labels: float = 0.0
    classes: tuple[Tensor | None, ...] = field(default=(), repr=False)

    def balanced(self, labels: np.ndarray, n_classes: Iterable[int]) -> Weights:
        """Return weights with which the classes of a property count the same, however frequent.

        Parameters
        ----------
        labels
            ``(n_cells, n_properties)`` of the training cells; −1 = unknown.
        n_classes
            Of each property.
        """
        classes: list[Tensor | None] = []
        for column, n in zip(labels.T, n_classes, strict=True):
            counts = np.bincount(column[column >= 0], minlength=n).astype(np.float64)
            present = counts > 0
            weight = np.where(present, counts.sum() / np.maximum(counts, 1), 0.0)
            weight /= max(1, int(present.sum()))
            classes.append(torch.from_numpy(weight.astype(np.float32)) if present.any() else None)
        return replace(self, classes=tuple(classes))


def training_losses(
    module: CellVQModule,
    batch: Batch,
    *,
    weights: Weights,
    temperature: float,
    code_heads: Sequence[nn.Module] = (),
) -> dict[str, Tensor]:
    r"""Return the losses of a batch.

    .. math::
        L = w_r \langle -\log \mathrm{ZINB}(x_{cg}; s_c \mu_{cg}, \theta_{cg}, \pi_{cg}) \rangle
            + w_s \frac{1}{K} \sum_k \max_{j \ne k} c_k^\top c_j
            + w_b \Big(1 - \frac{H(\bar{A})}{\log K}\Big)
            + \sum_p w_p \langle -\log q_p(y_{cp}) \rangle
            + w_l \sum_p w_p \langle -\log q^{code}_p(y_{cp}) \rangle

    The first mean is over the hidden counts (zeros, and expressed genes that the encoder does not
    see), :math:`\mu` is in counts per 10,000 and :math:`s_c` the counts of the cell over 10,000;
    :math:`\bar{A}` is the mean over the batch of the probabilities of the codes. The second mean
    is over up to 512 codes, drawn anew in each training step, against all codes.

    Parameters
    ----------
    module
        The network.
    batch
        Cells of which the encoder sees a part.
    weights
        Of the terms.
    temperature
        Of the quantiser; 0 takes the nearest code.
    code_heads
        Heads on the code, for :attr:`Weights.code_labels`.

    Returns
    -------
    ``loss``, and the parts that were computed, over the cells of all processes that train
    together: ``reconstruction`` in nats per count, ``separation``, ``balance``,
    ``property_<name>`` in nats per labelled cell, ``accuracy_<name>`` over labelled cells, and the
    same for the code alone, ``code_property_<name>`` and ``code_accuracy_<name>``.
    """
    encoded = module.encode_cells(batch.values, batch.gene_ids, batch.padding)
    parts: dict[str, Tensor] = {}
    total = encoded.embedding.sum() * 0.0
    quantised = module.quantize(encoded.maximum, temperature=temperature)
    if weights.reconstruction:
        parts["reconstruction"] = reconstruction_loss(
            module, batch, encoded.states, quantised.vector
        )
        total = total + weights.reconstruction * parts["reconstruction"]
    if weights.separation:
        parts["separation"] = separation_loss(quantised.codebook, all_codes=not module.training)
        total = total + weights.separation * parts["separation"]
    if weights.balance and quantised.probability is not None:
        parts["balance"] = balance_loss(quantised)
        total = total + weights.balance * parts["balance"]
    logits = list(module.classify(encoded.embedding).values())
    by_code = [head(quantised.vector) for head in code_heads] if weights.code_labels else []
    for i, name in enumerate(module.property_heads.classes):
        label = batch.labels[:, i]
        if not weights.properties[i] or not any(numbers_of_all(int((label >= 0).sum()))):
            continue
        classes = weights.classes[i] if weights.classes else None
        loss, accuracy = property_loss(logits[i], label, classes)
        parts[f"property_{name}"], parts[f"accuracy_{name}"] = loss, accuracy
        total = total + weights.properties[i] * loss
        if by_code:
            loss, accuracy = property_loss(by_code[i], label, classes)
            parts[f"code_property_{name}"], parts[f"code_accuracy_{name}"] = loss, accuracy
            total = total + weights.code_labels * weights.properties[i] * loss
    return {"loss": total} | parts


def property_loss(logits: Tensor, label: Tensor, classes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy and the accuracy over labelled cells.

    Parameters
    ----------
    logits
        ``(b, n_classes)``.
    label
        ``(b,)`` int64; −1 = unknown.
    classes
        ``(n_classes,)``, weight of the cells of a class.
    """
    known = label >= 0
    found, label = logits[known].float(), label[known]
    weight = None if classes is None else classes.to(found.device)
    entropy = F.cross_entropy(found, label, weight=weight, reduction="sum")
    n = len(label) if weight is None else weight[label].sum()
    right = (found.detach().argmax(-1) == label).float().sum()
    loss, accuracy = means_over_processes((entropy, n), (right, len(label)))
    return loss, accuracy


def separation_loss(codes: Tensor, *, all_codes: bool) -> Tensor:
    """Return the mean of the largest cosine of a code to another one.

    Parameters
    ----------
    codes
        ``(n_codes, code_dim)`` of unit length.
    all_codes
        Use all of them, not up to 512 that are drawn.
    """
    rows = torch.arange(len(codes), device=codes.device)
    if not all_codes and len(codes) > _CODES_AT_ONCE:
        with common_numbers(codes.device) as generator:  # the same in all processes
            rows = torch.randperm(len(codes), generator=generator, device=codes.device)
        rows = rows[:_CODES_AT_ONCE]
    nearest = []
    for part in rows.split(_CODES_AT_ONCE):
        cosine = codes.detach()[part] @ codes.detach().T
        cosine[torch.arange(len(part), device=codes.device), part] = -torch.inf
        nearest.append(cosine.argmax(dim=-1))
    return (codes[rows] * codes[torch.cat(nearest)]).sum(-1).mean()


def reconstruction_loss(
    module: CellVQModule, batch: Batch, states: Tensor, vector: Tensor
) -> Tensor:
    """Return the negative log likelihood of the hidden counts, in nats per count."""
    unseen = batch.padding | batch.code_only.unsqueeze(1)
    mean, dispersion, dropout = module.decode(states, batch.gene_ids, unseen, vector=vector)
    scale = (batch.total / TARGET_SUM).unsqueeze(1)
    nll = zinb_nll(batch.counts, mean * scale, dispersion, dropout)
    total = torch.where(batch.hidden, nll, 0.0).sum()
    return means_over_processes((total, batch.hidden.sum()))[0]


def balance_loss(quantised: Quantised) -> Tensor:
    """Return 1 less the relative entropy of the codes of a batch: 0 if uniform, 1 if one code."""
    if quantised.probability is None:
        raise ValueError("There are no probabilities; the nearest codes were used.")
    used = quantised.probability.mean(0)
    if process_number()[1] > 1:
        n = sum(numbers_of_all(len(quantised.probability)))
        used = summed(quantised.probability.sum(0)) / n
    entropy = -(used * used.clamp(min=1e-12).log()).sum()
    return 1.0 - entropy / math.log(len(used))


def perplexity(codes: Tensor, n_codes: int) -> tuple[float, int]:
    """Return the effective number of codes that cells use, and the number of codes in use.

    Parameters
    ----------
    codes
        ``(n,)`` int64.
    n_codes
        Number of codes of the model.

    Returns
    -------
    perplexity
        Exponential of the entropy of the shares of the codes: ``k`` for ``k`` equal shares.
    live
        Number of codes that at least one cell has.
    """
    counts = torch.bincount(codes.cpu(), minlength=n_codes).double()
    shares = counts[counts > 0] / counts.sum()
    return float((-(shares * shares.log()).sum()).exp()), int((counts > 0).sum())


class CellVQPlan(TrainingPlan):
    """Losses of CellVQ; AdamW in one cycle; codes of cells after every epoch.

    Parameters
    ----------
    module
        The network.
    weights
        Of the terms of the loss.
    code_heads
        Heads on the code; not part of the model.
    checked
        All tokens of the cells whose codes are counted.
    examples
        All tokens of the cells on which the projection to the codes is centred.
    frozen
        Parts of the network that stay, with their running statistics.
    schedule, last_temperature, anneal_share
        How the temperature falls from 1, to what, and over which share of the steps; it stays
        there afterwards. With ``schedule=None`` it is 0: the nearest code is taken.
    lr, weight_decay
        Peak rate, and decay of matrices.
    n_steps
        Optimiser steps in all.
    """

    readers = ("validation_step", "codes")

    def __init__(
        self,
        module: CellVQModule,
        *,
        weights: Weights,
        code_heads: Sequence[nn.Module],
        checked: Sequence[Tokens],
        examples: Sequence[Tokens],
        frozen: Sequence[nn.Module | nn.Parameter],
        schedule: Schedule | None,
        last_temperature: float,
        anneal_share: float,
        lr: float,
        weight_decay: float,
        n_steps: int,
    ) -> None:
        super().__init__(module)
        self.weights = weights
        self.code_heads = nn.ModuleList(code_heads)
        self.checked = checked
        self.examples = examples
        self.frozen = list(frozen)
        self.schedule = schedule
        self.last_temperature = last_temperature
        self.anneal_share = anneal_share
        self.lr = lr
        self.weight_decay = weight_decay
        self.n_steps = n_steps
        #: Perplexity after each epoch.
        self.perplexities: list[float] = []

    def temperature(self, step: int) -> float:
        """Return the temperature of a step."""
        if self.schedule is None:
            return 0.0
        done = min(1.0, step / max(1.0, self.anneal_share * self.n_steps))
        if self.schedule == "geometric":
            return float(self.last_temperature**done)
        last = self.last_temperature
        return last + (1.0 - last) * 0.5 * (1.0 + math.cos(math.pi * done))

    def rate(self, step: int) -> float:
        """Return the learning rate of a step as a share of the peak: one cycle of cosines."""
        warm_up = max(1, round(_WARM_UP * self.n_steps))
        if step < warm_up:
            low, high, done = _FIRST_RATE, 1.0, (step + 1) / warm_up
        else:
            low, high = 1.0, _LAST_RATE
            done = min(1.0, (step - warm_up + 1) / max(1, self.n_steps - warm_up))
        return low + (high - low) * 0.5 * (1.0 - math.cos(math.pi * done))

    def configure_optimizers(self) -> Any:
        """Return AdamW with its schedule."""
        trained = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=self.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def own_state(self) -> dict[str, Any]:
        """Return the perplexities so far."""
        return {"perplexities": self.perplexities}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Restore :meth:`own_state`."""
        self.perplexities = list(state["perplexities"])

    def on_train_start(self) -> None:
        """Put frozen parts into evaluation mode, without dropout or running statistics."""
        super().on_train_start()
        self.freeze_parts()

    def freeze_parts(self) -> None:
        """Put frozen parts into evaluation mode."""
        for part in self.frozen:
            if isinstance(part, nn.Module):
                part.eval()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step on one batch.

        Raises
        ------
        ValueError
            If the loss is not a finite number.
        """
        temperature = self.temperature(self.global_step)
        found = self.losses(batch, temperature)
        loss = float(found["loss"].detach())
        if not math.isfinite(loss):
            raise ValueError(
                f"The loss became {loss} in step {self.global_step + 1} of {self.n_steps}, so "
                "training was stopped; load or make the model again and train with a smaller lr, "
                "or with precision='32-true'."
            )
        self.write("train", found, batch_idx, len(batch.total))
        self.add("train", "temperature", torch.tensor(temperature), 1)
        return found["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the losses of held-out cells, with the nearest code."""
        found = self.losses(batch, 0.0)
        self.write("validation", found, batch_idx, len(batch.total))

    def losses(self, batch: Batch, temperature: float) -> dict[str, Tensor]:
        """Return the losses of a batch."""
        return training_losses(
            self.module,
            batch,
            weights=self.weights,
            temperature=temperature,
            code_heads=list(self.code_heads),
        )

    def on_train_epoch_end(self) -> None:
        """Count the codes of the cells that are checked."""
        super().on_train_epoch_end()
        codes = self.codes()
        found, live = perplexity(codes, self.module.quantiser.n_codes)
        self.perplexities.append(found)
        self.log("perplexity", found)
        self.log("n_live_codes", float(live))
        self.log("live_codes", live / self.module.quantiser.n_codes)

    @torch.no_grad()
    def codes(self) -> Tensor:
        """Return the nearest codes of the cells that are checked, ``(n,)`` int64."""
        self.module.eval()
        projection = self.module.quantiser.proj
        pooled = pooled_cells(self.module, self.checked)
        if isinstance(projection, CentredProjection):
            with projection.centred_on(pooled_cells(self.module, self.examples)):
                found = self.module.quantize(pooled).code
        else:
            found = self.module.quantize(pooled).code
        self.module.train()
        self.freeze_parts()
        return found


def warn_of_collapse(perplexities: Sequence[float], n_cells: int, n_codes: int) -> bool:
    """Warn if the codes have collapsed: cells of all kinds share very few.

    Parameters
    ----------
    perplexities
        After each epoch.
    n_cells
        Number of the cells.
    n_codes
        Number of codes of the model.

    Warns
    -----
    UserWarning
        If the perplexity of the last three epochs (or of all, if there are fewer) is below 2, or
        below 0.5 % of the codes that so many cells could use.
    """
    last = perplexities[-_LAST_EPOCHS:]
    possible = min(n_cells, n_codes)
    least = max(_LEAST_PERPLEXITY, _LEAST_SHARE * possible)
    if not last or possible <= _LEAST_PERPLEXITY or max(last) >= least:
        return False
    warn_user(
        f"The codes have collapsed: over the last {len(last)} epochs {n_cells} cells had a "
        f"perplexity of {max(last):.2f} at most, of {n_codes} codes, so codes do not "
        "separate cells. Train for longer or with a smaller lr, let the temperature fall later "
        "(anneal_share=1.0) or less far (last_temperature=0.05), show the decoder the code alone "
        "more often (code_only_share=0.8), or balance the use of the codes (balance_weight=0.1)."
    )
    return True


@contextmanager
def centred_projection(
    module: CellVQModule, cells: Sequence[Tokens], *, fresh: bool
) -> Iterator[None]:
    """Train with a :class:`CentredProjection` to the codes, then make it a plain one again.

    Parameters
    ----------
    module
        The network.
    cells
        All tokens of some cells.
    fresh
        The network was never trained: spread the cells with :func:`spread_cells` first.
        Otherwise cells stay where they are.
    """
    quantiser = module.quantiser
    plain = quantiser.proj
    pooled = pooled_cells(module, cells)
    if fresh:
        spread_cells(plain, pooled)
    with torch.no_grad():
        found = plain(pooled)
        mean, variance = found.mean(0), found.var(0, unbiased=False)
    # too few cells, or cells that are the same, cannot be scaled
    scalable = bool((variance > EPS).all())
    centred = CentredProjection(plain, mean, variance, keep=not fresh) if scalable else None
    try:
        if centred is not None:
            quantiser.add_module("proj", centred)
        yield
    finally:
        if centred is not None:
            centred.centre_on(pooled_cells(module, cells))
            quantiser.proj = centred.fold()


@torch.no_grad()
def pooled_cells(module: CellVQModule, cells: Iterable[Tokens]) -> Tensor:
    """Return the maxima of cells, ``(n, dim)``, which are quantised, in evaluation mode."""
    training = module.training
    module.eval()
    device = module.position_embedding.weight.device
    found = [module.encode_cells(*tokens.to(device)).maximum for tokens in cells]
    module.train(training)
    return torch.cat(found)


@contextmanager
def without_gradients(parts: Sequence[nn.Module | nn.Parameter]) -> Iterator[None]:
    """Compute no gradients of some parts within the context."""
    parameters = [
        p
        for part in parts
        for p in (part.parameters() if isinstance(part, nn.Module) else [part])
        if p.requires_grad
    ]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def check_keep_share(keep: tuple[float, float]) -> None:
    """Check the ``keep_share`` that :meth:`CellVQ.train` takes.

    Raises
    ------
    ValueError
        If it is out of its range.
    """
    if len(keep) != 2 or not 0.0 < keep[0] <= keep[1] <= 1.0:
        raise ValueError(
            f"keep_share must be a share above 0 and at most 1, or two such bounds, the smaller "
            f"first; found {keep}."
        )


def fit(model: CellVQ, run: TrainingRun) -> None:
    """Train a CellVQ on its registered data; see :meth:`CellVQ.train`.

    Parameters
    ----------
    model
        A CellVQ with data.
    run
        With the arguments of ``train``.
    """
    given, module = run.arguments, model.module
    seed, batch_size, frozen = given["seed"], given["batch_size"], given["freeze"] is not None
    keep = given["keep_share"]
    keep = (keep, keep) if isinstance(keep, float | int) else keep
    check_keep_share(keep)
    reader = model.registered_reader()
    labels = training_labels(model, seed)
    weights = loss_weights(module, labels, given)
    studies = model.registered_categories(STUDY)
    training, validation = split_rows(
        reader.expressing(), studies, given["validation_share"], given["n_validation"], seed
    )
    if given["class_weights"]:
        n_classes = [len(names) for names in model.properties.values()]
        weights = weights.balanced(labels[training], n_classes)
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "keep_share": keep,
        "code_only_share": given["code_only_share"],
        **run.layout,
    }
    batches = CellStream(reader, labels, training, seed=seed, **settings)
    checks = None
    if len(validation):
        checks = CellStream(reader, labels, validation, seed=seed + 1, fixed=True, **settings)
    n_steps = run.count_steps(
        batches.n_batches, default_epochs=_MAX_EPOCHS, default_steps=_MAX_STEPS
    )
    frozen_parts = encoder_parts(module) if frozen else []
    counted = validation if len(validation) else spread_rows(training, given["n_validation"])
    examples = reader.whole_cells(spread_rows(training, _EXAMPLES), batch_size)
    plan = CellVQPlan(
        module,
        weights=weights,
        code_heads=code_heads(module, seed) if weights.code_labels else [],
        examples=examples,
        checked=reader.whole_cells(counted, batch_size),
        frozen=frozen_parts,
        schedule=None if frozen else given["schedule"],
        last_temperature=given["last_temperature"],
        anneal_share=given["anneal_share"],
        lr=given["lr"],
        weight_decay=given["weight_decay"],
        n_steps=n_steps,
    )
    projection: Any = nullcontext()
    if not frozen:
        # a loaded model counts as trained also after a training of it failed
        fresh = not (model.is_trained_ or model.checkpoint_sha256 or model.provenance)
        if fresh and module.code_term is not None:
            module.code_term.start(reader.mean_expression(training).to(model.device))
        if fresh and module.expression_term is not None:
            module.expression_term.start([cells.to(model.device) for cells in examples])
        projection = centred_projection(module, examples, fresh=fresh)
    with without_gradients(frozen_parts), projection:
        run.fit(plan, batches, checks)
    is_learned = (labels[training] >= 0).any(axis=0) & (np.array(weights.properties) > 0)
    learned = [name for name, yes in zip(model.properties, is_learned, strict=True) if yes]
    measure_confidence(module, plan.checked, learned)
    model.trained_here(
        studies, training_seed=seed, max_steps=n_steps, n_training_cells=len(training)
    )
    if not frozen:
        warn_of_collapse(plan.perplexities, len(counted), model.size.n_codes)
    run.raise_if_interrupted()


def training_labels(model: CellVQ, seed: int) -> np.ndarray:
    """Return classes ``(n, n_heads)`` int64, −1 = unknown; make heads for new properties.

    Raises
    ------
    KeyError
        If cells have a class that a head does not know.
    """
    found = model.registered_labels()
    new = {k: levels_of(v) for k, v in found.items() if k not in model.properties}
    if new:
        model.set_properties(new, seed=seed)
    out = np.full((model.adata.n_obs, len(model.properties)), -1, dtype=np.int64)
    for i, (name, classes) in enumerate(model.properties.items()):
        if name not in found:
            continue
        unknown = sorted(set(found[name]) - {"", *classes})
        if unknown:
            raise KeyError(
                f"adata.obs[{name!r}] has classes that the head {name!r} does not know "
                f"({unknown[:5]}; it knows {classes[:5]}, …): rename them, or begin a new "
                f"head with model.set_properties({{{name!r}: [...]}})."
            )
        out[:, i] = pd.Index(classes).get_indexer(pd.Index(found[name]))
    return out


def loss_weights(module: CellVQModule, labels: np.ndarray, given: Mapping[str, Any]) -> Weights:
    """Return the weights of the losses from the arguments of ``train``.

    Raises
    ------
    KeyError
        If ``property_weight`` names a head that does not exist.
    ValueError
        If a weight is negative, or nothing is left to train.
    """
    names, by_name = list(module.property_heads.classes), given["property_weight"]
    if isinstance(by_name, float | int):
        by_name = dict.fromkeys(names, float(by_name))
    unknown = [name for name in by_name if name not in names]
    if unknown:
        raise KeyError(f"property_weight names no heads {unknown}; there are {names}.")
    properties = tuple(by_name.get(name, 1.0) for name in names)
    reconstruction = given["reconstruction_weight"]
    separation, balance, code_labels = (
        0.0 if given["freeze"] else given[name]
        for name in ("separation_weight", "balance_weight", "code_label_weight")
    )
    numbers = (reconstruction, separation, balance, code_labels, *properties)
    if not all(np.isfinite(w) and w >= 0 for w in numbers):
        raise ValueError(f"Weights of the loss must be at least 0; found {numbers}.")
    learned = (labels >= 0).any(axis=0) & (np.array(properties) > 0)
    if not reconstruction and not learned.any():
        raise ValueError(
            "There is nothing to train: reconstruction_weight=0, and no registered property "
            "has a weight; register labels_keys= with setup_anndata, or give it one."
        )
    return Weights(reconstruction, separation, balance, properties, code_labels)


def code_heads(module: CellVQModule, seed: int) -> list[nn.Module]:
    """Return new heads on the code, one per property, for training only."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        n_classes = [len(names) for names in module.property_heads.classes.values()]
        return [nn.Linear(module.size.dim, n) for n in n_classes]


def encoder_parts(module: CellVQModule) -> list[nn.Module | nn.Parameter]:
    """Return the parts that embeddings and codes depend on: all but decoder and heads."""
    trained = (module.decoder, module.code_term, module.property_heads)
    parts: list[nn.Module | nn.Parameter] = [
        part for part in module.children() if not any(part is other for other in trained)
    ]
    return [*parts, *module.parameters(recurse=False)]


@torch.inference_mode()
def measure_confidence(module: CellVQModule, cells: Iterable[Tokens], names: Sequence[str]) -> None:
    """Set the confidence levels of heads from whole cells, best held-out ones; drop all others."""
    module.eval()
    heads, device = module.property_heads, module.position_embedding.weight.device
    heads.confidence_levels = {}
    if not names:
        return
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for tokens in cells:
        logits = heads(module.encode_cells(*tokens.to(device)).embedding.float())
        for name, parts in found.items():
            parts.append(torch.softmax(logits[name], dim=-1).amax(dim=-1).cpu().numpy())
    for name, parts in found.items():
        heads.set_confidence_levels(name, np.concatenate(parts))
