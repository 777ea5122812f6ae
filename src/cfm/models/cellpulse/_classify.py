"""The virus classifier of CellPulse: training it on labelled contrasts, and its answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS

from cfm._arguments import PART, checks_arguments
from cfm._fields import UNINFECTED, UNKNOWN
from cfm.models.cellpulse._classifier import INTERFERON_GENES, Scores, VirusClassifier
from cfm.models.cellpulse._fit_classifier import (
    DEEP_SCALES,
    Rows,
    VirusFit,
    fit_infected,
    store_set_scores,
)
from cfm.models.cellpulse._pretrain import Pretrainable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


@dataclass(frozen=True)
class VirusPrediction:
    """Answers of the classifier, one row per contrast.

    Attributes
    ----------
    call
        ``(n,)`` object: a virus, ``"uninfected"`` or ``"unknown"``.
    proba
        DataFrame, contrasts by viruses and ``"uninfected"``; rows sum to 1.
    confidence
        ``(n,)`` float32, probability of the call; of the most probable virus where the call is
        ``"unknown"``.
    infected
        ``(n,)`` float32, probability of an infection by any virus.
    novelty
        ``(n,)`` float32 in 0…1, share of the held-out profiles of known viruses that are less
        unusual.
    prediction_set
        ``(n,)`` lists of names, most probable first: conformal set, holds the truth with
        probability 1 − alpha for infections, and for controls, like those of the training
        studies.
    """

    call: np.ndarray
    proba: pd.DataFrame
    confidence: np.ndarray
    infected: np.ndarray
    novelty: np.ndarray
    prediction_set: list[list[str]]


class VirusCaller(Pretrainable):
    """A CellPulse that can be taught viruses and names them."""

    def train_classifier(
        self,
        adata: AnnData | None = None,
        *,
        teaches_virus: np.ndarray | None = None,
        deep_scales: Sequence[float] = DEEP_SCALES,
    ) -> pd.DataFrame:
        """Train the classifier of viruses on labelled contrasts; the encoder stays as it is.

        A convex problem: the same data give the same classifier. Temperature, odds of infection,
        novelty and conformal sets are fitted on predictions for studies left out. Contrasts,
        (virus, study) units and viruses are weighted so that no study and no virus drowns the
        others.

        Parameters
        ----------
        adata
            Labelled contrasts, registered with ``setup_anndata(adata, labels_key=…,
            study_key=…)``; the model's own data if not given. The label ``"uninfected"`` marks
            contrasts of other kinds: control against control, cytokines, bacteria, drugs.
        teaches_virus
            ``(n,)`` bool: rows that teach which virus it is, besides whether it is one. All by
            default.
        deep_scales
            Sizes of the deep term to choose from, by log loss on left-out studies; 0 is the
            linear model alone.

        Returns
        -------
        Out-of-fold predictions, a row per contrast: ``label``, ``study`` and the log-probability
        of each virus (``NaN`` where the study is the only one of its virus, so that nothing can
        be learned without it).

        Raises
        ------
        ValueError
            If there are no labels, some are missing or ``"unknown"``, fewer than two viruses or
            fewer than two studies are left, or an argument is out of its range.
        """
        if adata is not None:
            self.attach(adata)
        effects, studies = self.registered_effects()
        labels = self.registered_categories(REGISTRY_KEYS.LABELS_KEY)
        if (labels == "").all():
            raise ValueError(
                "The data were registered without labels; call CellPulse.setup_anndata(adata, "
                "labels_key=…, study_key=…) first."
            )
        infected = labels != UNINFECTED
        if UNKNOWN in labels:
            raise ValueError(f"{UNKNOWN!r} is an answer, not a label; drop or rename those rows.")
        teaches = infected
        if teaches_virus is not None:
            if np.shape(teaches_virus) != infected.shape:
                raise ValueError(
                    f"teaches_virus has shape {np.shape(teaches_virus)}; expected one value for "
                    f"each of the {len(infected)} contrasts."
                )
            teaches = infected & np.asarray(teaches_virus, dtype=bool)
        viruses = sorted(set(labels[teaches]))
        if len(viruses) < 2:
            raise ValueError(
                f"Found {len(viruses)} virus label(s) {viruses}; a classifier needs at least two."
            )
        if len(set(studies[teaches])) < 2:
            raise ValueError(
                "All contrasts are from one study; nothing can be calibrated without another. "
                "Register the study of each contrast with study_key=."
            )
        classifier = VirusClassifier(len(self.vocabulary), self.module.dim, classes=viruses)
        interferon = self.vocabulary.genes.isin(INTERFERON_GENES)
        classifier.interferon.copy_(torch.from_numpy(interferon))
        measured = np.isfinite(effects[teaches]).mean(axis=0)
        classifier.common.copy_(torch.from_numpy(measured >= min(0.5, measured.max())))
        rows = Rows(self._views(classifier, effects), labels.astype(str), studies.astype(str))
        fit = VirusFit(rows, np.flatnonzero(teaches), np.array(viruses))
        scale = fit.choose_deep_scale(deep_scales)
        held_out = fit.out_of_fold(scale)
        fit.store(classifier, scale, held_out)
        odds = fit_infected(classifier, rows, infected)
        store_set_scores(classifier, rows, fit, held_out, odds)
        self.classifier = classifier.to(self.device).eval()
        self.trained_here(studies, classes=viruses, deep_scale=scale)
        out = pd.DataFrame(np.nan, index=self.adata.obs_names, columns=pd.Index(viruses))
        out.iloc[fit.rows] = fit.log_proba(classifier, held_out)
        return out.assign(label=labels, study=studies)

    def require_classifier(self) -> VirusClassifier:
        """Return the virus classifier.

        Raises
        ------
        ValueError
            If the model has none.
        """
        if self.classifier is None:
            raise ValueError(
                "This CellPulse has no virus classifier: call train_classifier() on labelled "
                "contrasts, or load one that has, such as from_pretrained('cellpulse-virus')."
            )
        return self.classifier

    @checks_arguments()
    @torch.inference_mode()
    def predict_scores(
        self, adata: AnnData | None = None, *, layer: str | None = None, batch_size: int = 64
    ) -> Scores:
        """Return the calibrated scores of contrasts; see :class:`Scores`."""
        classifier = self.require_classifier()
        adata = self._adata_or_own(adata)
        self.module.eval()
        parts = []
        for _, effects, tokens in self.encode_blocks(adata, layer=layer, batch_size=batch_size):
            summary = self.module.encode(tokens.to(self.device)).summary
            parts.append(classifier(torch.from_numpy(effects).to(self.device), summary))
        return Scores(*(torch.cat(part).float().cpu() for part in zip(*parts, strict=True)))

    @checks_arguments()
    def predict_proba(
        self, adata: AnnData | None = None, *, layer: str | None = None, batch_size: int = 64
    ) -> pd.DataFrame:
        """Return calibrated probabilities, contrasts by viruses and ``"uninfected"``."""
        return self.predict(adata, layer=layer, batch_size=batch_size).proba

    @checks_arguments(alpha=PART)
    def predict(
        self,
        adata: AnnData | None = None,
        *,
        layer: str | None = None,
        alpha: float = 0.1,
        batch_size: int = 64,
    ) -> VirusPrediction:
        """Name the virus behind each contrast.

        Parameters
        ----------
        adata
            Contrasts by genes, any gene order; the model's own data if not given.
        layer
            Layer with the log2 fold changes instead of ``X``.
        alpha
            Miscoverage of the conformal sets, between 0 and 1.
        batch_size
            Contrasts at a time; the result does not depend on it.

        Returns
        -------
        See :class:`VirusPrediction`. The call is ``"uninfected"`` where that is the more
        probable, else ``"unknown"`` where the profile is more unusual than 95 % of the held-out
        profiles of known viruses, else the most probable virus.
        """
        own = self._adata_or_own(adata)
        scores = self.predict_scores(own, layer=layer, batch_size=batch_size)
        classifier = self.require_classifier()
        infected = torch.sigmoid(scores.infected)
        table = joint_probabilities(scores.virus.exp(), infected).numpy().astype(np.float64)
        table /= table.sum(axis=1, keepdims=True)
        names = np.asarray([*classifier.classes, UNINFECTED], dtype=object)
        unknown = (scores.novelty > classifier.novelty_threshold.cpu()).numpy()
        virus = names[table[:, :-1].argmax(axis=1)]
        call = np.where(unknown, UNKNOWN, virus)
        uninfected = table[:, -1] >= 0.5
        call = np.where(uninfected, UNINFECTED, call)
        confidence = np.where(uninfected, table[:, -1], table[:, :-1].max(axis=1))
        sets = prediction_sets(table, names, classifier.set_threshold(alpha))
        return VirusPrediction(
            call,
            pd.DataFrame(table, index=own.obs_names, columns=names.astype(str)),
            confidence.astype(np.float32),
            infected.numpy(),
            scores.novelty.numpy(),
            sets,
        )

    @torch.inference_mode()
    def embed_effects(self, effects: np.ndarray) -> np.ndarray:
        """Embed profiles that lie on the vocabulary already.

        Parameters
        ----------
        effects
            ``(n, n_vocabulary)`` float32, ``NaN`` = not measured.

        Returns
        -------
        ``(n, dim)`` float32.
        """
        self.module.eval()
        tokens = self.tokenizer.encode(effects).to(self.device)
        return self.module.encode(tokens).summary.float().cpu().numpy()

    @torch.inference_mode()
    def _views(
        self, classifier: VirusClassifier, effects: np.ndarray, batch_size: int = 64
    ) -> tuple[np.ndarray, ...]:
        """Return what the classifier reads of profiles on the vocabulary, as arrays."""
        parts = []
        for start in range(0, len(effects), batch_size):
            block = effects[start : start + batch_size]
            summary = torch.from_numpy(self.embed_effects(block))
            parts.append(classifier.views(torch.from_numpy(block), summary))
        return tuple(torch.cat(part).numpy() for part in zip(*parts, strict=True))


def joint_probabilities(virus: torch.Tensor, infected: torch.Tensor) -> torch.Tensor:
    """Join P(virus | infected) and P(infected) to ``(b, classes + 1)``, uninfected last."""
    return torch.cat([virus * infected[:, None], 1.0 - infected[:, None]], dim=1)


def prediction_sets(table: np.ndarray, names: np.ndarray, reach: float) -> list[list[str]]:
    """Return for each row the names before which at most ``reach`` of the probability comes."""
    order = np.argsort(-table, axis=1, kind="stable")
    before = np.cumsum(np.take_along_axis(table, order, axis=1), axis=1)
    before -= np.take_along_axis(table, order, axis=1)  # mass of all that are more probable
    # A set that names nothing helps nobody: the most probable answer is always in.
    size = np.maximum(1, (before <= reach + 1e-6).sum(axis=1))
    return [[str(n) for n in names[o[:k]]] for o, k in zip(order, size, strict=True)]
