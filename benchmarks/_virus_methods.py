"""Methods of ``python -m benchmarks.virus``, fitted with one study left out at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator

from benchmarks._studies import load_signatures, study_folds
from benchmarks.masked_direction import N_FOLDS, fold_model
from cfm._fields import UNINFECTED
from cfm.metrics import (
    InterferonRule,
    VirusGradientBoosting,
    VirusLogisticRegression,
    VirusNeighbors,
    unit_weights,
)
from cfm.models import CellPulse
from cfm.models.cellpulse._classify import joint_probabilities, prediction_sets
from training.pretrain import load_pretraining
from training.train_virus import train_virus

OURS = "CellPulse"
LINEAR = "weighted logistic regression"
BASELINES = [
    LINEAR,
    "logistic regression",
    "k nearest profiles",
    "gradient boosting",
    "interferon rule",
]
#: Classes of the binary baselines.
INFECTED, CONTROL = "infected", "control"
#: Miscoverages at which conformal sets are checked.
ALPHAS = (0.1, 0.3)


def baselines(genes: pd.Index) -> dict[str, tuple[BaseEstimator, bool]]:
    """Return each baseline, and whether rare viruses and small studies weigh as much as others."""
    return {
        LINEAR: (VirusLogisticRegression(), True),
        "logistic regression": (VirusLogisticRegression(), False),
        "k nearest profiles": (VirusNeighbors(), False),
        "gradient boosting": (VirusGradientBoosting(), False),
        "interferon rule": (InterferonRule(genes.tolist(), uninfected=CONTROL), False),
    }


@dataclass(frozen=True)
class Encoders:
    """One pretrained model per fold, and the fold of each study (others: any model will do)."""

    models: list[CellPulse]
    fold_of: dict[str, int]

    def without(self, study: str) -> CellPulse:
        """Return a model that was not pretrained on the study."""
        return self.models[self.fold_of.get(study, 0)]


def load_encoders(folder: Path, models: Path, max_steps: int) -> Encoders:
    """Load the fold models of the masked-direction benchmark, training those that are missing."""
    data = load_pretraining(folder)
    studies = load_signatures(folder, ("human",)).obs["study"].astype(str).to_numpy()
    fold = study_folds(studies, N_FOLDS)
    fold_of = dict(zip(studies, map(int, fold), strict=True))
    loaded = [
        fold_model(data.without(set(studies[fold == i])), i, models, max_steps=max_steps, seed=0)
        for i in range(N_FOLDS)
    ]
    # Studies of other hosts, and those that the manifest calls unusable, were in every fold's
    # pretraining. The former are never scored; of the latter only control against control, for
    # which the classifier does not read the embedding.
    return Encoders([remember_embeddings(model) for model in loaded], fold_of)


def remember_embeddings(model: CellPulse) -> CellPulse:
    """Let a model embed each profile once: the classifier is trained many times on the same."""
    known: dict[bytes, np.ndarray] = {}
    embed = model.embed_effects

    def lookup(effects: np.ndarray) -> np.ndarray:
        names = [row.tobytes() for row in effects]
        new = [i for i, name in enumerate(names) if name not in known]
        if new:
            known.update(zip([names[i] for i in new], embed(effects[new]), strict=True))
        return np.stack([known[name] for name in names])

    model.embed_effects = lookup  # type: ignore[method-assign]
    return model


def leave_one_study_out(corpus: ad.AnnData, encoders: Encoders) -> dict[str, dict[str, np.ndarray]]:
    """Score every study with models that never saw it.

    Returns
    -------
    By method: ``virus`` ``(n, classes)`` probabilities given an infection, over the viruses of the
    corpus in alphabetical order, and ``infected`` ``(n,)``; ``NaN`` where a row is not scored. For
    CellPulse also ``novelty``.
    """
    obs = corpus.obs
    teaches = obs["teaches_virus"].to_numpy(bool)
    trains = obs["trains"].to_numpy(bool)
    study = obs["study"].astype(str).to_numpy()
    label = obs["virus"].astype(str).to_numpy()
    infection = (obs["kind"] == "infection").to_numpy()
    names = np.unique(label[teaches])
    n = len(obs)
    out = {
        m: {"virus": np.full((n, len(names)), np.nan), "infected": np.full(n, np.nan)}
        for m in [OURS, *BASELINES]
    }
    out[OURS]["novelty"] = np.full(n, np.nan)
    for alpha in ALPHAS:
        out[OURS][f"covered {alpha}"] = np.full(n, np.nan)
        out[OURS][f"size {alpha}"] = np.full(n, np.nan)
    effects = np.asarray(corpus.X)
    methods = baselines(corpus.var_names)
    scored = obs["scored"].to_numpy(bool)
    for left_out in np.unique(study[scored]):
        test = np.flatnonzero((study == left_out) & scored)
        model = train_virus(encoders.without(left_out), corpus, without_studies=[left_out])
        scores = model.predict_scores(corpus[test])
        columns = np.searchsorted(names, model.classifier.classes)
        put(out[OURS], test, columns, scores.virus.exp().numpy())
        out[OURS]["infected"][test] = scores.infected.numpy()
        out[OURS]["novelty"][test] = scores.novelty.numpy()
        answers = np.asarray([*model.classifier.classes, UNINFECTED], dtype=object)
        table = joint_probabilities(scores.virus.exp(), torch.sigmoid(scores.infected)).numpy()
        for alpha in ALPHAS:
            sets = prediction_sets(table, answers, model.classifier.set_threshold(alpha))
            covered = [a in s for a, s in zip(label[test], sets, strict=True)]
            out[OURS][f"covered {alpha}"][test] = covered
            out[OURS][f"size {alpha}"][test] = [len(s) for s in sets]
        rest = study != left_out
        for name, (estimator, balance) in methods.items():
            rows = np.flatnonzero(teaches & rest)
            weight = unit_weights(label[rows], study[rows], balance_labels=True)
            fitted = estimator.fit(effects[rows], label[rows], weight if balance else None)
            columns = np.searchsorted(names, fitted.classes_)
            put(out[name], test, columns, fitted.predict_proba(effects[test]))
            rows = np.flatnonzero(trains & rest)
            kind = np.where(infection[rows], INFECTED, CONTROL)
            weight = unit_weights(kind, study[rows], balance_labels=True)
            fitted = estimator.fit(effects[rows], kind, weight if balance else None)
            out[name]["infected"][test] = infected_score(fitted, effects[test])
        print(f"left out {left_out}: {len(test)} profiles", flush=True)
    return out


def put(
    result: dict[str, np.ndarray], rows: np.ndarray, columns: np.ndarray, p: np.ndarray
) -> None:
    """Put probabilities in place; viruses that training lacked have 0."""
    result["virus"][rows] = 0.0
    result["virus"][np.ix_(rows, columns)] = p


def infected_score(fitted: object, effects: np.ndarray) -> np.ndarray:
    """Score of infection of a fitted binary baseline."""
    if isinstance(fitted, InterferonRule):
        return fitted.decision_function(effects)
    return fitted.predict_proba(effects)[:, list(fitted.classes_).index(INFECTED)]
