"""Training of CellVQ: what goes in, and the run."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scvi import REGISTRY_KEYS

from cfm._arguments import BELOW_1, SHARE, Range, checks_arguments
from cfm.data._row_order import BLOCK_SIZE
from cfm.models._training import TrainingRun
from cfm.models.cellvq._core import CellVQCore
from cfm.models.cellvq._objectives import Weights
from cfm.models.cellvq._reading import CellReader
from cfm.models.cellvq._setup import levels_of
from cfm.models.cellvq._start import cells_kept_apart
from cfm.models.cellvq._stream import (
    CellStream,
    cells_that_express,
    mean_expression,
    split_rows,
    spread_rows,
    whole_cells,
)
from cfm.models.cellvq._training import (
    CellVQPlan,
    Schedule,
    check_keep_share,
    warn_of_collapse,
    without_gradients,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from cfm.models.cellvq._reading import Tokens

_MAX_EPOCHS = 100
#: Without a number of epochs or steps, training stops after so many steps.
_MAX_STEPS = 1000
#: Cells by which the projection to the codes is centred when training starts.
_EXAMPLES = 256


class Trainable(CellVQCore):
    """A CellVQ that can be trained."""

    @checks_arguments(
        code_only_share=SHARE,
        last_temperature=Range(0, 1, "low"),
        anneal_share=Range(0, 1, "low"),
        validation_share=BELOW_1,
    )
    def train(
        self,
        max_epochs: int | None = None,
        *,
        max_steps: int | None = None,
        freeze: Literal["encoder"] | None = None,
        keep_share: float | tuple[float, float] = (0.1, 0.5),
        code_only_share: float = 0.8,
        schedule: Schedule = "cosine",
        last_temperature: float = 0.02,
        anneal_share: float = 0.8,
        reconstruction_weight: float = 1.0,
        separation_weight: float = 0.1,
        balance_weight: float = 0.0,
        property_weight: float | Mapping[str, float] = 1.0,
        code_label_weight: float = 0.0,
        class_weights: bool = False,
        validation_share: float = 0.1,
        n_validation: int = 512,
        batch_size: int = 32,
        accumulate_grad_batches: int = 1,
        lr: float = 3e-3,
        weight_decay: float = 0.01,
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
        """Train on hidden counts and registered properties: from scratch, or further.

        The encoder sees a random part of the genes that a cell expresses. From that, and from the
        code that the quantiser gives the cell, the decoder predicts the rest: the counts of the
        genes that were held back and the zeros, by a zero-inflated negative binomial whose mean,
        in counts per 10,000, is scaled by the counts of the cell. Of some cells it sees the code
        alone, so that codes carry what there is to know of a cell. The property heads read the
        embedding of what is seen. AdamW in one cycle (up over 10 % of the steps, then down by a
        cosine), clipping at 1.0.

        Every epoch adds to ``history`` the parts of the loss of training and validation
        (``train_reconstruction``, ``validation_reconstruction`` in nats per count, …), and of up
        to ``n_validation`` whole cells, those of the validation if there are any, ``perplexity``
        (over how many codes they are spread), ``n_live_codes`` (how many they use) and
        ``live_codes`` (that number as a share of all codes). How sure the heads are of these cells
        is kept in ``confidence_levels``, by which :func:`cfm.tl.predict_properties` calls others
        unknown.

        Registered properties (``labels_keys``) that the model has no head for get one.

        Parameters
        ----------
        max_epochs
            Passes over the data; by default 100, and 1,000 steps at most.
        max_steps
            Optimiser steps at most.
        freeze
            ``"encoder"`` trains the property heads and the decoder only: codes and embeddings of
            cells stay as they are. With ``reconstruction_weight=0`` the heads alone.
        keep_share
            Share of the expressed genes that the encoder sees, or the bounds between which it is
            drawn for each cell.
        code_only_share
            Probability that the decoder sees the code of a cell and none of its genes.
        schedule
            How the temperature of the quantiser falls from 1: ``"cosine"`` or ``"geometric"``.
            The temperature is also the share of the cells that bypass the quantiser, until 0.02.
        last_temperature
            What it falls to.
        anneal_share
            Share of the steps after which it is there.
        reconstruction_weight, separation_weight, balance_weight
            Weights of the three terms: the counts; codes that are apart (mean of the largest
            cosine of a code to another); codes that are used alike (1 − the entropy of the mean
            probabilities of a batch over its largest value; an addition of ours).
        property_weight
            Weight of the cross-entropy of the heads, or weights by name of the head.
        code_label_weight
            Weight of the same properties as said by the code alone, so that labels shape the
            codes; by heads that are for training only. Those of the model read the embedding.
        class_weights
            Weigh cells so that the classes of a property count alike, however many cells they
            have.
        validation_share
            Share of the studies that is held out, at least one if there are three; without
            ``study_key`` share of the cells.
        n_validation
            Held-out cells, spread over all of them, on which each epoch is judged.
        batch_size
            Cells per batch.
        accumulate_grad_batches
            Batches per optimiser step.
        lr, weight_decay
            Of AdamW: peak rate, and decay of matrices.
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
            If cells have a class that the head of a loaded model does not know.
        ValueError
            If the model has no data, no cell expresses one of its genes, there is nothing to
            train, a number is out of its range, or the loss is no longer finite.
        KeyboardInterrupt
            If training is interrupted. The model then keeps what it has learned.

        Warns
        -----
        UserWarning
            If cells express none of the genes (they are left out), or if the codes have collapsed
            by the end: cells of different kinds then have the same one.

        Notes
        -----
        An open recipe: published are the task, the kinds of the losses and the quantiser. The
        shares, the weights and the schedule are ours, as is the decoder that sees the code.
        """
        run = TrainingRun(locals())
        keep = (keep_share, keep_share) if isinstance(keep_share, float | int) else keep_share
        check_keep_share(keep)
        reader = self._training_reader()
        labels = self._training_labels(seed)
        weights = self._weights(
            labels,
            property_weight,
            reconstruction=reconstruction_weight,
            separation=0.0 if freeze else separation_weight,
            balance=0.0 if freeze else balance_weight,
            code_labels=0.0 if freeze else code_label_weight,
        )
        usable = cells_that_express(reader, self.adata.n_obs)
        studies = self.registered_categories("study")
        training, checks = split_rows(usable, studies, validation_share, n_validation, seed)
        if class_weights:
            weights = weights.balanced(labels[training], self.module.properties.values())
        stream = CellStream(
            reader,
            labels,
            training,
            batch_size=batch_size,
            seed=seed,
            keep_share=keep,
            alone_share=code_only_share,
            expect=reader.expect,
            **run.layout,
        )
        check = None
        if len(checks):
            check = CellStream(
                reader,
                labels,
                checks,
                batch_size=batch_size,
                seed=seed + 1,
                keep_share=keep,
                alone_share=code_only_share,
                fixed=True,
                expect=reader.expect,
                **run.layout,
            )
        n_steps = run.count_steps(
            stream.n_batches, default_epochs=_MAX_EPOCHS, default_steps=_MAX_STEPS
        )
        frozen = self._encoder_parts() if freeze else []
        counted = checks if len(checks) else spread_rows(training, n_validation)
        examples = whole_cells(reader, spread_rows(training, _EXAMPLES), batch_size)
        plan = CellVQPlan(
            self.module,
            weights=weights,
            code_heads=self._code_heads(seed) if weights.code_labels else [],
            examples=examples,
            checked=whole_cells(reader, counted, batch_size),
            frozen=frozen,
            schedule=None if freeze else schedule,
            last_temperature=last_temperature,
            anneal_share=anneal_share,
            lr=lr,
            weight_decay=weight_decay,
            n_steps=n_steps,
        )
        apart: Any = nullcontext()
        if not freeze:
            # a training that failed leaves a loaded model untrained by name, but not by weights
            fresh = not (self.is_trained_ or self.checkpoint_sha256 or self.provenance)
            if fresh and self.module.code_term is not None:
                self.module.code_term.start(mean_expression(reader, training).to(self.device))
            if fresh and self.module.expression_term is not None:
                self.module.expression_term.start([cells.to(self.device) for cells in examples])
            apart = cells_kept_apart(self.module, examples, fresh=fresh)
        with without_gradients(frozen), apart:
            run.fit(plan, stream, check)
        learned = (labels[training] >= 0).any(axis=0) & (np.array(weights.properties) > 0)
        names = [name for name, yes in zip(self.properties, learned, strict=True) if yes]
        self._measure_confidence(plan.checked, names)
        self.trained_here(
            studies, training_seed=seed, max_steps=n_steps, n_training_cells=len(training)
        )
        if not freeze:
            warn_of_collapse(plan.perplexities, len(counted), self.size.n_codes)
        run.raise_if_interrupted()

    @torch.inference_mode()
    def _measure_confidence(self, cells: Sequence[Tokens], names: Sequence[str]) -> None:
        """Keep how sure the heads are of whole cells: held out, or of training if none are."""
        self.module.eval()
        found: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for tokens in (part.to(self.device) for part in cells if names):
            states = self.module.encode(*tokens)
            embedding, _ = self.module.pool(states, tokens.padding)
            logits = self.module.classify(embedding.float())
            for name, parts in found.items():
                parts.append(torch.softmax(logits[name], dim=-1).amax(dim=-1).cpu().numpy())
        self.confidence_levels = {}
        for name, parts in found.items():
            self.set_confidence_levels(name, np.concatenate(parts))

    def _training_reader(self) -> CellReader:
        """Return what reads the registered data."""
        if self.adata is None:
            raise ValueError(
                "The model has no data; give it some with from_pretrained(name, adata=adata) "
                "after CellVQ.setup_anndata(adata, …)."
            )
        registered = self.adata_manager.data_registry[REGISTRY_KEYS.X_KEY]
        given = self._setup_arguments()
        return CellReader(
            self.adata,
            self.vocabulary,
            layer=registered.attr_key if registered.attr_name == "layers" else None,
            units=given["units"],
            total_counts=given["total_counts"],
        )

    def _training_labels(self, seed: int) -> np.ndarray:
        """Return classes by cell and head, ``(n, n_heads)`` int64, −1 = unknown; make new heads."""
        found = self._registered_labels()
        new = {k: levels_of(v) for k, v in found.items() if k not in self.properties}
        if new:
            self.set_properties(new, seed=seed)
        out = np.full((self.adata.n_obs, len(self.properties)), -1, dtype=np.int64)
        for i, (name, classes) in enumerate(self.properties.items()):
            if name not in found:
                continue
            unknown = sorted(set(found[name]) - {"", *classes})
            if unknown:
                raise KeyError(
                    f"adata.obs[{name!r}] has classes that the head {name!r} does not know "
                    f"({unknown[:5]}; it knows {classes[:5]}, …): rename them, or begin a new "
                    f"head with model.set_properties({{{name!r}: [...]}})."
                )
            number = {c: j for j, c in enumerate(classes)} | {"": -1}
            out[:, i] = [number[c] for c in found[name]]
        return out

    def _weights(
        self,
        labels: np.ndarray,
        property_weight: float | Mapping[str, float],
        *,
        reconstruction: float,
        separation: float,
        balance: float,
        code_labels: float,
    ) -> Weights:
        names = list(self.properties)
        if isinstance(property_weight, float | int):
            by_name = dict.fromkeys(names, float(property_weight))
        else:
            unknown = [name for name in property_weight if name not in self.properties]
            if unknown:
                raise KeyError(f"property_weight names no heads {unknown}; there are {names}.")
            by_name = dict.fromkeys(names, 1.0) | dict(property_weight)
        properties = tuple(by_name[n] for n in names)
        weights = Weights(reconstruction, separation, balance, properties, code_labels)
        numbers = (reconstruction, separation, balance, code_labels, *properties)
        if not all(np.isfinite(w) and w >= 0 for w in numbers):
            raise ValueError(f"Weights of the loss must be at least 0; found {numbers}.")
        learned = (labels >= 0).any(axis=0) & (np.array(weights.properties) > 0)
        if not reconstruction and not learned.any():
            raise ValueError(
                "There is nothing to train: reconstruction_weight=0, and no registered property "
                "has a weight; register labels_keys= with setup_anndata, or give it one."
            )
        return weights

    def _code_heads(self, seed: int) -> list[torch.nn.Module]:
        """Make heads that say the properties from the code alone, for a training."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return [torch.nn.Linear(self.size.dim, n) for n in self.module.properties.values()]

    def _encoder_parts(self) -> list[nn.Module | nn.Parameter]:
        """Return what makes embeddings and codes of cells: all but the decoder and the heads."""
        module = self.module
        open_parts = (module.decoder, module.code_term, module.property_heads)
        parts: list[nn.Module | nn.Parameter] = [
            part for part in module.children() if not any(part is open_ for open_ in open_parts)
        ]
        return [*parts, *module.parameters(recurse=False)]
