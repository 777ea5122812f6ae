"""Training of CellVQ: hidden counts through the code of a cell, and the properties of cells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfm._adata import warn_user
from cfm._arguments import NOT_NEGATIVE, SHARE, Range, check_number
from cfm.data._counts import TARGET_SUM
from cfm.data._row_order import BLOCK_SIZE
from cfm.models._training import Recipe, Training, TrainingPlan
from cfm.models.cellvq._additions import EPS, CentredProjection, ExpressionCodes, spread_cells
from cfm.models.cellvq._data import STUDY, Batch, CellStream, levels_of, split_rows, spread_rows
from cfm.nn._distributed import (
    all_gather_int,
    common_numbers,
    means_over_processes,
    process_number,
    summed,
)
from cfm.nn._genes import zinb_nll

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from cfm.models._training import TrainingRun
    from cfm.models.cellvq._data import CellReader, Tokens
    from cfm.models.cellvq._model import CellVQ
    from cfm.models.cellvq._module import CellVQModule
    from cfm.nn._soft_codes import Quantised, SoftCodes

Schedule = Literal["geometric", "cosine"]

#: Cells that codes and heads on expression are fitted to: at least, at most, values in memory.
_FITTED_AT_LEAST, _FITTED_AT_MOST, _FITTED_VALUES = 500, 5000, 30_000_000
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


@dataclass(frozen=True, kw_only=True)
class CellVQRecipe(Recipe):
    """How a CellVQ is trained: on counts that are held back and registered properties.

    The encoder sees a random part of the genes that a cell expresses. From that, and from the code
    that the quantiser gives the cell, the decoder predicts the rest: the counts of the genes that
    were held back and the zeros, by a zero-inflated negative binomial whose mean, in counts per
    10,000, is scaled by the counts of the cell. Of some cells it sees the code alone, so that codes
    describe the cell. The property heads read the embedding of the seen genes.
    AdamW in one cycle (up over 10 % of the steps, then down by a cosine), clipping at 1.0.
    Registered properties (``labels_keys``) that the model has no head for get one.

    Every epoch adds to ``history`` the parts of the loss of training and validation
    (``train_reconstruction``, ``validation_reconstruction`` in nats per count, …), and of up to
    ``n_validation`` whole cells, those of the validation if there are any, ``perplexity`` (over how
    many codes they are spread), ``n_live_codes`` (how many they use) and ``live_codes`` (that
    number as a share of all codes).

    With ``expression_codes`` (the ``mini`` size) the codes are clusters of up to 5,000 training
    cells, made before the first step and again only with ``code_label_weight``. They are not
    trained, and depend on the seed only by the cells that are held out. The settings of the
    quantiser (``schedule``, ``last_temperature``, ``anneal_share``, ``separation_weight``,
    ``balance_weight``) then have no influence.

    An open recipe: published are the task, the kinds of the losses and the quantiser. The shares,
    the weights and the schedule are ours, as is the decoder that sees the code.

    Parameters
    ----------
    freeze
        ``"encoder"`` trains the property heads and the decoder only: codes and embeddings of cells
        stay as they are. With ``reconstruction_weight=0`` the heads alone.
    keep_share
        Share of the expressed genes that the encoder sees, or the bounds between which it is drawn
        for each cell.
    code_only_share
        Probability that the decoder sees the code of a cell and none of its genes.
    schedule
        How the temperature of the quantiser falls from 1: ``"cosine"`` or ``"geometric"``. The
        temperature is also the share of the cells that bypass the quantiser, until 0.02.
    last_temperature
        What it falls to.
    anneal_share
        Share of the steps after which it is there.
    reconstruction_weight, separation_weight, balance_weight
        Weights of three terms: the counts; the separation of codes (mean of the largest cosine of a
        code to another); their balance (1 − the entropy of the mean probabilities of a batch over
        its largest value; not in the paper).
    property_weight
        Weight of the cross-entropy of the heads, or weights by name of the head.
    code_label_weight
        Weight of the same properties predicted from the code alone, so that labels shape the codes.
        These heads are for training only; those of the model read the embedding. With
        ``expression_codes``, where cells are clustered, the spread of labels beside that of
        expression.
    class_weights
        Weigh cells so that the classes of a property count alike, however many cells they have.
    head_input
        What a property is read from after the training. ``"best"``: from expression, by linear
        discriminant analysis of the training cells, unless the head on the embedding names more
        held-out cells right. ``"embedding"``: by the head, as published.
    n_validation
        Held-out cells, spread over all of them, on which each epoch is judged.
    weight_decay
        Of AdamW, on matrices.
    block_size
        Neighbouring rows that are shuffled together where there are more than 8,192; 1 shuffles
        each row alone, which is slow on disk.
    max_epochs, max_steps, batch_size, lr, validation_share, checkpoint_every
        As of :class:`cfm.models.base.Recipe`.
    """

    max_epochs: int | None = 100
    max_steps: int | None = 1000
    lr: float = 3e-3
    freeze: Literal["encoder"] | None = None
    keep_share: float | tuple[float, float] = (0.1, 0.5)
    code_only_share: Annotated[float, SHARE] = 0.8
    schedule: Schedule = "cosine"
    last_temperature: Annotated[float, Range(0, 1, "low")] = 0.02
    anneal_share: Annotated[float, Range(0, 1, "low")] = 0.8
    reconstruction_weight: Annotated[float, NOT_NEGATIVE] = 1.0
    separation_weight: Annotated[float, NOT_NEGATIVE] = 0.1
    balance_weight: Annotated[float, NOT_NEGATIVE] = 0.0
    property_weight: float | Mapping[str, float] = 1.0
    code_label_weight: Annotated[float, NOT_NEGATIVE] = 0.0
    class_weights: bool = False
    head_input: Literal["best", "embedding"] = "best"
    n_validation: int = 512
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.01
    block_size: int = BLOCK_SIZE

    def __post_init__(self) -> None:
        super().__post_init__()
        keep = self.keep_share
        bounds = tuple(keep) if isinstance(keep, tuple | list) else (keep, keep)
        if len(bounds) != 2 or not 0.0 < bounds[0] <= bounds[1] <= 1.0:
            raise ValueError(
                "keep_share must be a share above 0 and at most 1, or two such bounds, the smaller "
                f"first; found {keep}."
            )
        object.__setattr__(self, "keep_share", bounds)


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
        Cells, and the part of them that the encoder sees.
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
    found = encoded.quantised if batch.position is None else batch.position
    quantised = module.quantize(found, temperature=temperature)
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
    logits = module.classify(encoded.embedding)
    by_code = [head(quantised.vector) for head in code_heads] if weights.code_labels else []
    for i, name in enumerate(module.property_heads.classes):
        label = batch.labels[:, i]
        if not weights.properties[i] or not any(all_gather_int(int((label >= 0).sum()))):
            continue
        classes = weights.classes[i] if weights.classes else None
        loss, accuracy = property_loss(logits[name], label, classes)
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
        n = sum(all_gather_int(len(quantised.probability)))
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
    positions
        ``(n, code_dim)`` of these cells, where codes are read from expression, else ``None``.
    examples
        All tokens of the cells on which the projection to the codes is centred.
    frozen
        Parts of the network that stay, with their running statistics.
    schedule, last_temperature, anneal_share
        How the temperature falls from 1, to what, and over which share of the steps; it stays
        there afterwards. With ``schedule=None`` it is 0: the nearest code is taken.
    **settings
        See :class:`cfm.models.base.TrainingPlan`.
    """

    decays_vectors = False

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
        positions: Tensor | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(module, **settings)
        self.weights = weights
        self.code_heads = nn.ModuleList(code_heads)
        self.checked = checked
        self.positions = positions
        self.examples = examples
        self.frozen = list(frozen)
        self.schedule = schedule
        self.last_temperature = last_temperature
        self.anneal_share = anneal_share
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

    def losses(self, batch: Batch, temperature: float = 0.0) -> dict[str, Tensor]:
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
        if self.positions is not None:
            return self.module.quantize(self.positions.to(self.device)).code
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
    quantiser = cast("SoftCodes", module.quantiser)
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
    found = [module.encode_cells(*tokens.to(device)).quantised for tokens in cells]
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


@contextmanager
def training_of(model: CellVQ, run: TrainingRun) -> Iterator[Training]:
    """Train a CellVQ on its registered data; see :class:`CellVQRecipe`.

    Parameters
    ----------
    model
        A CellVQ with data.
    run
        The training.
    """
    recipe: CellVQRecipe = run.recipe
    module, seed, frozen = model.module, run.seed, recipe.freeze is not None
    reader = model.registered_reader()
    labels = training_labels(model, seed)
    weights = loss_weights(module, labels, recipe)
    studies = model.registered_categories(STUDY)
    training, validation = split_rows(
        reader.expressing(), studies, recipe.validation_share, recipe.n_validation, seed
    )
    is_learned = (labels[training] >= 0).any(axis=0) & (np.array(weights.properties) > 0)
    learned = [name for name, yes in zip(model.properties, is_learned, strict=True) if yes]
    if recipe.class_weights:
        n_classes = [len(names) for names in model.properties.values()]
        weights = weights.balanced(labels[training], n_classes)
    # a loaded model counts as trained also after a training of it failed
    fresh = not (model.is_trained_ or model.checkpoint_sha256 or model.provenance)
    codes = None
    if isinstance(module.quantiser, ExpressionCodes):
        unmade = not bool(module.quantiser.share.any())
        if not frozen and (unmade or recipe.code_label_weight):
            rows, genes = fitted_part(reader, training)
            used = labels[rows][:, np.array(weights.properties, dtype=float) > 0]
            counts = reader.dense_counts(rows, genes)
            module.quantiser.start(counts, genes, used, recipe.code_label_weight)
        codes = module.quantiser.reader(reader.measured)
    settings: dict[str, Any] = {
        "keep_share": recipe.keep_share,
        "code_only_share": recipe.code_only_share,
        "codes": codes,
        **run.layout,
    }
    batches = CellStream(reader, labels, training, seed=seed, **settings)
    checks = None
    if len(validation):
        checks = CellStream(reader, labels, validation, seed=seed + 1, fixed=True, **settings)
    n_steps = run.count_steps(batches.n_batches)
    frozen_parts = encoder_parts(module) if frozen else []
    counted = validation if len(validation) else spread_rows(training, recipe.n_validation)
    examples = reader.whole_cells(spread_rows(training, _EXAMPLES), recipe.batch_size)
    plan = CellVQPlan(
        module,
        weights=weights,
        code_heads=code_heads(module, seed) if weights.code_labels else [],
        examples=examples,
        checked=reader.whole_cells(counted, recipe.batch_size),
        positions=None if codes is None else reader.positions(codes, counted),
        frozen=frozen_parts,
        schedule=None if frozen or codes is not None else recipe.schedule,
        last_temperature=recipe.last_temperature,
        anneal_share=recipe.anneal_share,
        **run.schedule,
    )
    projection: Any = nullcontext()
    if not frozen:
        if fresh and module.code_term is not None:
            module.code_term.start(reader.mean_expression(training).to(model.device))
        if fresh and module.expression_term is not None:
            module.expression_term.start([cells.to(model.device) for cells in examples])
        if codes is None:
            projection = centred_projection(module, examples, fresh=fresh)
    for name in module.property_heads.expression():
        if name in learned:  # by a linear head; expression is tried again after the training
            model.set_properties({name: model.properties[name]}, seed=seed)
    with without_gradients(frozen_parts), projection:
        yield Training(plan, batches, checks)
    answers = measure_confidence(module, plan.checked, learned)
    for name in learned if recipe.head_input == "best" else ():
        column = labels[:, list(model.properties).index(name)]
        right = balanced_accuracy(answers[name], column[counted]) if len(validation) else 0.0
        read_expression_if_better(model, name, reader, column, studies, training, validation, right)
    model.mark_trained(
        studies, training_seed=seed, max_steps=n_steps, n_training_cells=len(training)
    )
    if not frozen and codes is None:
        warn_of_collapse(plan.perplexities, len(counted), model.size.n_codes)


def training_labels(model: CellVQ, seed: int) -> np.ndarray:
    """Return classes ``(n, n_heads)`` int64, −1 = unknown; make heads for new properties.

    Raises
    ------
    KeyError
        If cells have a class that a head does not have.
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
                f"adata.obs[{name!r}] has classes that the head {name!r} does not have "
                f"({unknown[:5]}; it has {classes[:5]}, …): rename them, or begin a new "
                f"head with model.set_properties({{{name!r}: [...]}})."
            )
        out[:, i] = pd.Index(classes).get_indexer(pd.Index(found[name]))
    return out


def loss_weights(module: CellVQModule, labels: np.ndarray, recipe: CellVQRecipe) -> Weights:
    """Return the weights of the losses of a recipe.

    Raises
    ------
    KeyError
        If ``property_weight`` names a head that does not exist.
    ValueError
        If the weight of a property is negative, or nothing is left to train.
    """
    names, by_name = list(module.property_heads.classes), recipe.property_weight
    if isinstance(by_name, float | int):
        by_name = dict.fromkeys(names, float(by_name))
    unknown = [name for name in by_name if name not in names]
    if unknown:
        raise KeyError(f"property_weight names no heads {unknown}; there are {names}.")
    properties = tuple(by_name.get(name, 1.0) for name in names)
    reconstruction = recipe.reconstruction_weight
    fixed = recipe.freeze is not None or module.size.expression_codes
    separation, balance, code_labels = (
        0.0 if fixed else getattr(recipe, name)
        for name in ("separation_weight", "balance_weight", "code_label_weight")
    )
    for weight in properties:
        check_number("property_weight", weight, 0)
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
def measure_confidence(
    module: CellVQModule, cells: Iterable[Tokens], names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Set the confidence levels of heads from whole cells, best held-out ones.

    Levels of heads that were not trained stay.

    Returns
    -------
    By name the class of each cell, ``(n_cells,)`` int64.
    """
    module.eval()
    heads, device = module.property_heads, module.position_embedding.weight.device
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for tokens in cells if names else ():
        logits = heads(module.encode_cells(*tokens.to(device)).embedding.float())
        for name, parts in found.items():
            parts.append(torch.softmax(logits[name], dim=-1).cpu().numpy())
    out = {name: np.concatenate(parts) for name, parts in found.items()}
    for name, probability in out.items():
        heads.set_confidence_levels(name, probability.max(axis=1))
    return {name: probability.argmax(axis=1) for name, probability in out.items()}


def fitted_part(reader: CellReader, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which of the rows to fit expression to, ascending, and the measured genes."""
    genes = np.flatnonzero(reader.measured)
    most = max(_FITTED_AT_LEAST, min(_FITTED_AT_MOST, _FITTED_VALUES // len(genes)))
    return np.sort(spread_rows(rows, most)), genes


def balanced_accuracy(answers: np.ndarray, truth: np.ndarray) -> float:
    """Return the share of right answers, a mean over classes; cells of −1 do not count."""
    classes = np.unique(truth[truth >= 0])
    return float(np.mean([(answers[truth == k] == k).mean() for k in classes] or [0.0]))


def read_expression_if_better(
    model: CellVQ,
    name: str,
    reader: CellReader,
    labels: np.ndarray,
    studies: np.ndarray,
    training: np.ndarray,
    validation: np.ndarray,
    right: float,
) -> None:
    """Replace a head by one on expression if it is as accurate on held-out cells.

    Parameters
    ----------
    model
        A CellVQ after its training.
    name
        Property.
    reader
        Of the registered data.
    labels, studies
        ``(n_cells,)`` classes, −1 = unknown, and studies.
    training, validation
        Rows. If none are held out, expression is read.
    right
        Balanced accuracy of the linear head on the validation cells.
    """
    known = training[labels[training] >= 0]
    known, genes = fitted_part(reader, known[np.argsort(labels[known], kind="stable")])
    classes = np.array(model.properties[name])
    if len(np.unique(labels[known])) < len(classes) or len(classes) < 2:
        return  # a class without a cell, or one class
    heads = model.module.property_heads
    index = list(model.properties).index(name)
    linear = heads[index]
    levels = heads.confidence_levels.get(name)
    heads.fit_expression(
        name,
        reader.dense_counts(known, genes),
        classes[labels[known]],
        genes=genes,
        n_genes=model.module.n_genes,
        studies=studies[known],
    )
    judged = validation[labels[validation] >= 0]
    if not len(judged):
        return
    head: Any = heads[index]
    answers = head.predict(reader.cells(judged).values, reader.measured).argmax(axis=1)
    if balanced_accuracy(answers, labels[judged]) < right:
        heads.put(name, linear)
        if levels is not None:
            heads.confidence_levels[name] = levels
