"""The virus classifier of CellPulse: training it on labelled contrasts, and its answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
from scipy.special import log_expit
from scvi import REGISTRY_KEYS

from cfm._arguments import checks_arguments
from cfm._fields import NO_RESPONSE, NOT_VIRAL, UNINFECTED, UNRESOLVED, VIRAL
from cfm.models.cellpulse._classifier import INTERFERON_GENES, Scores, VirusClassifier
from cfm.models.cellpulse._fit_classifier import (
    Rows,
    VirusFit,
    fit_infected,
    fit_kinds,
    support_records,
)
from cfm.models.cellpulse._pretrain import Pretrainable

if TYPE_CHECKING:
    from anndata import AnnData


#: A virus, or "not viral", is answered where at least this share of such answers was right in
#: studies left out; a kind of response where they were right more often than wrong.
MIN_SUPPORT, MIN_RESPONSE_SUPPORT = 0.8, 0.5
#: Either where at least as many studies got such an answer.
MIN_STUDIES = 3

Names = Literal["supported", "always"]


@dataclass(frozen=True)
class VirusPrediction:
    """Answers of the classifier, one row per contrast.

    Attributes
    ----------
    call
        ``(n,)`` object: ``"uninfected"`` (no response), a virus, ``"not viral"`` (a response of
        another kind), or ``"unresolved"`` (a response whose cause studies left out of training do
        not support naming).
    response
        ``(n,)`` object, the kind of response, ``"none"`` for no response, or ``"unresolved"``
        where answers of this kind were mostly wrong in studies left out.
    response_proba
        DataFrame, contrasts by ``"none"`` and the kinds of response; rows sum to 1.
    infected
        ``(n,)`` float32, probability of a viral response.
    virus_proba
        DataFrame, contrasts by viruses, given a viral response; rows sum to 1.
    support
        ``(n,)`` float32, share of such answers that were right in studies left out of training;
        of the kind of response where the call is ``"unresolved"``; NaN where there was none.
    """

    call: np.ndarray
    response: np.ndarray
    response_proba: pd.DataFrame
    infected: np.ndarray
    virus_proba: pd.DataFrame
    support: np.ndarray


class VirusCaller(Pretrainable):
    """A CellPulse that can be taught viruses and names them."""

    def train_classifier(
        self,
        adata: AnnData | None = None,
        *,
        responses: str | None = None,
        teaches_virus: np.ndarray | None = None,
    ) -> pd.DataFrame:
        """Train the classifier of responses and viruses on labelled contrasts.

        It reads the effects themselves; the encoder stays as it is. A convex problem: the same
        data give the same classifier. Temperature, odds of a response and the support of each
        answer are fitted on predictions for studies left out. Contrasts, (label, study) units and
        labels are weighted so that no study and no virus drowns the others.

        Parameters
        ----------
        adata
            Labelled contrasts, registered with ``setup_anndata(adata, labels_key=…,
            study_key=…)``; the model's own data if not given. The label ``"uninfected"`` marks
            contrasts of other kinds: control against control, cytokines, bacteria, drugs.
        responses
            Column of ``obs`` with the kind of response of each contrast: ``"none"`` (control
            against control), ``"viral"``, and any others. Without it viruses are ``"viral"`` and
            all others ``"none"``. Rows that hold only −1, 0 and 1 are signed gene sets: they train
            the kinds of response and nothing else.
        teaches_virus
            ``(n,)`` bool: rows that train which virus it is, besides the kind of response. All
            viruses by default.

        Returns
        -------
        Out-of-fold predictions, a row per contrast: ``label``, ``study``, ``response``, the
        log-probability of each virus given an infection (``NaN`` for viruses that no other study
        has), and of each kind of response (``NaN`` where one kind would be left). All ``NaN`` for
        signed sets.

        Raises
        ------
        KeyError
            If ``responses`` is no column of ``obs``.
        ValueError
            If there are no labels, fewer than two viruses or fewer than two studies are left, the
            kinds do not fit the labels, or an argument is out of its range.
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
        kinds = self._responses(responses, labels)
        signed = np.asarray(np.isin(np.nan_to_num(effects), (-1.0, 0.0, 1.0)).all(axis=1))
        infected = labels != UNINFECTED
        teaches = infected & ~signed
        if teaches_virus is not None:
            if np.shape(teaches_virus) != infected.shape:
                raise ValueError(
                    f"teaches_virus has shape {np.shape(teaches_virus)}; expected one value for "
                    f"each of the {len(infected)} contrasts."
                )
            teaches &= np.asarray(teaches_virus, dtype=bool)
        viruses = sorted(set(labels[teaches]))
        for answer in {UNRESOLVED, NOT_VIRAL}.intersection(viruses):
            raise ValueError(f"{answer!r} is an answer, not a label; rename it.")
        if len(viruses) < 2:
            raise ValueError(
                f"Found {len(viruses)} virus label(s) {viruses}; a classifier needs at least two."
            )
        if len(set(studies[teaches])) < 2:
            raise ValueError(
                "All contrasts are from one study; nothing can be calibrated without another. "
                "Register the study of each contrast with study_key=."
            )
        levels = [VIRAL, *sorted(set(kinds) - {NO_RESPONSE, VIRAL, ""})]
        classifier = VirusClassifier(len(self.vocabulary), classes=viruses, responses=levels)
        interferon = self.vocabulary.genes.isin(INTERFERON_GENES)
        classifier.interferon.copy_(torch.from_numpy(interferon))
        measured = np.isfinite(effects[teaches]).mean(axis=0)
        classifier.common.copy_(torch.from_numpy(measured >= min(0.5, measured.max())))
        rows = Rows(_views(classifier, effects), labels.astype(str), studies.astype(str))
        measured_rows = np.flatnonzero(~signed)
        some = Rows(
            tuple(view[measured_rows] for view in rows.views),
            rows.labels[measured_rows],
            rows.studies[measured_rows],
        )
        fit = VirusFit(some, np.flatnonzero(teaches[measured_rows]), np.array(viruses))
        held_out = np.full((len(labels), len(viruses)), -np.inf)
        held_out[measured_rows] = logits = fit.out_of_fold()
        fit.store(classifier, logits)
        odds = np.full(len(labels), np.nan)
        odds[measured_rows] = fit_infected(classifier, some, kinds[measured_rows] != NO_RESPONSE)
        log_p = fit_kinds(classifier, rows, kinds, signed)
        log_p = np.column_stack([log_expit(-odds), log_p + log_expit(odds)[:, None]])
        names = np.array([NO_RESPONSE, *levels], dtype=object)
        judged = np.isfinite(log_p).all(axis=1) & ~signed
        # the virus that would be named if it were in no study but the others
        virus = fit.classes[held_out.argmax(axis=1)].astype(object)
        virus[~np.isfinite(held_out).any(axis=1)] = ""
        classifier.support = support_records(
            labels[judged],
            kinds[judged],
            studies[judged],
            names[called(log_p[judged])],
            virus[judged],
        )
        self.classifier = classifier.to(self.device).eval()
        # the encoder may have learned from further studies, without their labels
        learned = sorted(set(studies) - {""})
        self.trained_here(studies, classes=viruses, classifier_studies=learned)
        out = pd.DataFrame(np.nan, index=self.adata.obs_names, columns=pd.Index(viruses))
        out[:] = fit.log_proba(classifier, held_out)
        out[names.tolist()] = log_p
        return out.assign(label=labels, study=studies, response=kinds)

    def _responses(self, column: str | None, labels: np.ndarray) -> np.ndarray:
        """Return the kind of response of each contrast, ``(n,)`` text."""
        if column is None:
            return np.where(labels == UNINFECTED, NO_RESPONSE, VIRAL).astype(object)
        if column not in self.adata.obs:
            raise KeyError(f"responses={column!r} is no column of obs.")
        found = self.adata.obs[column].astype(str).to_numpy(dtype=object)
        wrong = (labels != UNINFECTED) != (found == VIRAL)
        if wrong.any():
            i = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"{int(wrong.sum())} contrasts have a label and a kind of response that do not fit "
                f"each other, such as {labels[i]!r} and {found[i]!r}; expected {VIRAL!r} for "
                f"viruses and another kind where the label is {UNINFECTED!r}."
            )
        return found

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
        """Return the scores of contrasts; see :class:`Scores`."""
        classifier = self.require_classifier()
        adata = self._adata_or_own(adata)
        parts = []
        for _, effects, _ in self.encode_blocks(adata, layer=layer, batch_size=batch_size):
            parts.append(classifier(torch.from_numpy(effects).to(self.device)))
        return Scores(*(torch.cat(part).float().cpu() for part in zip(*parts, strict=True)))

    @checks_arguments()
    def predict(
        self,
        adata: AnnData | None = None,
        *,
        layer: str | None = None,
        names: Names = "supported",
        batch_size: int = 64,
    ) -> VirusPrediction:
        """Tell the kind of response of each contrast, and the virus where studies support it.

        Parameters
        ----------
        adata
            Contrasts by genes, any gene order; the model's own data if not given.
        layer
            Layer with the log2 fold changes instead of ``X``.
        names
            ``"supported"``: name a virus, and that a response is not viral, only where at least
            80 % of such answers were right in at least three studies left out of training, and a
            kind of response where at least half were; ``"always"``: give the most probable answer.
        batch_size
            Contrasts at a time; the result does not depend on it.

        Returns
        -------
        See :class:`VirusPrediction`. The most probable response is ``"none"`` where that has a
        probability of at least a half, else the kind with the highest.
        """
        own = self._adata_or_own(adata)
        scores = self.predict_scores(own, layer=layer, batch_size=batch_size)
        classifier = self.require_classifier()
        table = scores.response.double().exp().numpy()
        table /= table.sum(axis=1, keepdims=True)
        kinds = np.array([NO_RESPONSE, *classifier.responses], dtype=object)
        kind_of = kinds[called(scores.response.numpy())]
        proba = scores.virus.double().exp().numpy()
        proba /= proba.sum(axis=1, keepdims=True)
        virus = np.array(classifier.classes, dtype=object)[proba.argmax(axis=1)]
        answers = [
            self._answer(kind, name, names) for kind, name in zip(kind_of, virus, strict=True)
        ]
        call, response, support = zip(*answers, strict=True)
        return VirusPrediction(
            np.array(call, dtype=object),
            np.array(response, dtype=object),
            pd.DataFrame(table, index=own.obs_names, columns=kinds.astype(str)),
            table[:, 1].astype(np.float32),
            pd.DataFrame(proba, index=own.obs_names, columns=classifier.classes),
            np.array(support, dtype=np.float32),
        )

    def _answer(self, kind: str, virus: str, names: Names) -> tuple[str, str, float]:
        """Return the call, the response and the support of the most probable kind and virus."""

        def is_given(level: str, answer: str, share_needed: float) -> tuple[bool, float]:
            for record in self.require_classifier().support:
                if (record["level"], record["answer"]) == (level, answer):
                    share, n_studies = float(record["share"]), int(record["n_studies"])
                    enough = share >= share_needed and n_studies >= MIN_STUDIES
                    return enough or names == "always", share
            return names == "always", float("nan")

        resolved, of_response = is_given("response", kind, MIN_RESPONSE_SUPPORT)
        response, of_response = (kind, of_response) if resolved else (UNRESOLVED, float("nan"))
        if kind == NO_RESPONSE:
            # that nothing was found is always said, with its support
            return UNINFECTED, kind, is_given("response", kind, 0.0)[1]
        level, answer = ("virus", virus) if kind == VIRAL else ("not viral", kind)
        named, share = is_given(level, answer, MIN_SUPPORT)
        if named:
            return (virus if kind == VIRAL else NOT_VIRAL), response, share
        return UNRESOLVED, response, of_response


def _views(classifier: VirusClassifier, effects: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return what the classifier reads of profiles on the vocabulary, as arrays."""
    with torch.inference_mode():
        parts = [
            classifier.views(torch.from_numpy(effects[start : start + 64]))
            for start in range(0, len(effects), 64)
        ]
    return tuple(torch.cat(part).numpy() for part in zip(*parts, strict=True))


def called(log_p: np.ndarray) -> np.ndarray:
    """Return the place of the answer in rows of log-probabilities of no response and the kinds."""
    kind = 1 + log_p[:, 1:].argmax(axis=1)
    return np.where(log_p[:, 0] >= np.log(0.5), 0, kind)
