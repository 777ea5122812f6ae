"""Name the virus in studies that were never seen; tell infection from control; flag the unknown.

``python -m benchmarks.virus`` leaves out one study at a time. Encoders are those of
``python -m benchmarks.masked_direction``: each was pretrained without the studies of its fold, and
the classifier on top is trained here without the left-out study.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator

from benchmarks._report import Report, add_arguments, data_folder
from benchmarks._studies import load_signatures, study_folds
from benchmarks.masked_direction import MODELS, N_FOLDS, fold_model
from cfm._fields import UNINFECTED
from cfm.metrics import (
    InterferonRule,
    VirusGradientBoosting,
    VirusLogisticRegression,
    VirusNeighbors,
    accuracy,
    auroc,
    brier_score,
    expected_calibration_error,
    macro_f1,
    paired_bootstrap,
    recall_per_class,
    top_k_accuracy,
    unit_weights,
)
from cfm.models import CellPulse
from cfm.models.cellpulse._classify import joint_probabilities, prediction_sets
from training.pretrain import MAX_STEPS, load_pretraining
from training.train_virus import load_corpus, train_virus

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


def virus_table(report: Report, corpus: ad.AnnData, out: dict[str, dict[str, np.ndarray]]) -> None:
    """Score the viruses that at least two studies have."""
    obs = corpus.obs
    teaches = obs["teaches_virus"].to_numpy(bool)
    names = np.unique(obs["virus"].astype(str).to_numpy()[teaches])
    studies = obs[teaches].groupby("virus", observed=True)["study"].nunique()
    tested = studies.index[studies >= 2].astype(str)
    rows = np.flatnonzero(teaches & obs["virus"].isin(tested).to_numpy())
    truth = obs["virus"].astype(str).to_numpy()[rows]
    study = obs["study"].astype(str).to_numpy()[rows]
    weight = unit_weights(truth, study)
    units = np.char.add(np.char.add(truth.astype(str), "|"), study.astype(str))
    scores, recalls, right, top2 = [], {}, {}, {}
    for name, result in out.items():
        p = result["virus"][rows]
        p = p / p.sum(axis=1, keepdims=True)
        call = names[p.argmax(axis=1)]
        right[name] = (call == truth).astype(float)
        order = np.argsort(-p, axis=1, kind="stable")[:, :2]
        top2[name] = (names[order] == truth[:, None]).any(axis=1).astype(float)
        scores.append(
            {
                "method": name,
                "accuracy": accuracy(truth, call, sample_weight=weight),
                "top-2": top_k_accuracy(truth, p, names, k=2, sample_weight=weight),
                "macro-F1": macro_f1(truth, call, labels=tested, sample_weight=weight),
                "ECE": expected_calibration_error(truth, p, names, sample_weight=weight),
                "Brier": brier_score(truth, p, names, sample_weight=weight),
            }
        )
        recalls[name] = recall_per_class(truth, call, sample_weight=weight)
    report.text(
        f"{len(rows)} contrasts, {len(set(units))} (virus, study) units of {len(tested)} viruses "
        f"with at least two studies, named among {len(names)} viruses; units weigh alike. With so "
        "few units a difference under 0.15 is noise."
    )
    report.table("virus", pd.DataFrame(scores), "Virus, one study left out")
    report.table(
        "recall",
        pd.DataFrame(recalls).T.rename_axis("method").reset_index(),
        "Recall by virus",
        digits=2,
    )
    paired = []
    for name in BASELINES:
        for label, per_row in (("accuracy", right), ("top-2", top2)):
            row = paired_bootstrap(per_row[OURS], per_row[name], units)
            paired.append({"CellPulse minus": name, "score": label} | row)
    report.table("virus_paired", pd.DataFrame(paired), "Paired over units (95 % interval)")


def set_table(report: Report, corpus: ad.AnnData, out: dict[str, dict[str, np.ndarray]]) -> None:
    """Coverage and size of the conformal sets, in studies left out."""
    obs = corpus.obs
    truth = obs["virus"].astype(str).to_numpy()
    study = obs["study"].astype(str).to_numpy()
    teaches = obs["teaches_virus"].to_numpy(bool)
    studies = obs[teaches].groupby("virus", observed=True)["study"].nunique()
    several = studies.index[studies >= 2].astype(str)
    rows = {
        "infections, virus known": teaches & np.isin(truth, several),
        "control against control": ((obs["kind"] == "null") & (obs["host"] == "human")).to_numpy(),
    }
    table = []
    for name, keep in rows.items():
        weight = unit_weights(truth[keep], study[keep])
        for alpha in ALPHAS:
            covered, size = (out[OURS][f"{key} {alpha}"][keep] for key in ("covered", "size"))
            coverage, mean = weight @ covered, weight @ size
            row = {"contrasts": name, "asked": 1 - alpha, "coverage": coverage, "mean size": mean}
            table.append(row)
    report.table("sets", pd.DataFrame(table), "Conformal sets, one study left out", digits=2)


def infected_table(
    report: Report, corpus: ad.AnnData, out: dict[str, dict[str, np.ndarray]]
) -> None:
    """Infection against control, both made from counts by the same code; and other stimuli."""
    obs = corpus.obs
    positive = obs["positive"].to_numpy(bool)
    null = ((obs["kind"] == "null") & (obs["host"] == "human")).to_numpy()
    replicated = (obs[["n_cases", "n_controls"]].min(axis=1) >= 2).to_numpy()
    stimulus = (obs["kind"] == "stimulus").to_numpy()
    study = obs["study"].astype(str).to_numpy()
    sets = {
        "AUROC": positive | null,
        "AUROC, 2 v 2 or more": (positive | null) & replicated,
        "AUROC against stimuli": positive | stimulus,
    }
    table = []
    for name, result in out.items():
        row: dict[str, object] = {"method": name}
        for label, keep in sets.items():
            y = positive[keep]
            weight = unit_weights(y, study[keep], balance_labels=True)
            row[label] = auroc(y, result["infected"][keep], sample_weight=weight)
        table.append(row)
    keep = positive | null
    names, unit = np.unique(study[keep], return_inverse=True)
    rng = np.random.default_rng(0)
    draws: list[np.ndarray] = []
    while len(draws) < 1000:
        drawn = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        if all(drawn[unit][positive[keep] == side].any() for side in (True, False)):
            draws.append(drawn)
    y = positive[keep]
    base = unit_weights(y, study[keep], balance_labels=True)

    def resampled(name: str) -> np.ndarray:
        score = out[name]["infected"][keep]
        return np.array([auroc(y, score, sample_weight=base * drawn[unit]) for drawn in draws])

    ours = resampled(OURS)
    low, high = np.quantile(ours, [0.025, 0.975])
    paired = [{"AUROC of": OURS, "minus": "nothing", "diff": ours.mean(), "low": low, "high": high}]
    for name in BASELINES:
        d = ours - resampled(name)
        low, high = np.quantile(d, [0.025, 0.975])
        row = {"AUROC of": OURS, "minus": name, "diff": d.mean(), "low": low, "high": high}
        paired.append(row)
    n_pos, n_null = int(positive.sum()), int(null.sum())
    report.text(
        f"Infected against control: {n_pos} usable human infection contrasts made from counts in "
        f"{len(set(study[positive]))} studies, against {n_null} contrasts of controls with other "
        f"controls in {len(set(study[null]))} studies, made by the same code. Stimuli are "
        "cytokines, bacteria and antibodies; no method was trained on them."
    )
    report.table("infected", pd.DataFrame(table), "Infected against control, one study left out")
    report.table(
        "infected_paired",
        pd.DataFrame(paired),
        "Infected against control, bootstrap over studies (mean, 95 % interval)",
    )


def novelty_table(
    report: Report,
    corpus: ad.AnnData,
    encoders: Encoders,
    out: dict[str, dict[str, np.ndarray]],
) -> None:
    """Detection of a virus left out of training, in a study left out of training."""
    obs = corpus.obs
    teaches = obs["teaches_virus"].to_numpy(bool)
    virus = obs["virus"].astype(str).to_numpy()
    study = obs["study"].astype(str).to_numpy()
    effects = np.asarray(corpus.X)
    studies = obs[teaches].groupby("virus", observed=True)["study"].nunique()
    several = studies.index[studies >= 2].astype(str)
    known = teaches & np.isin(virus, several)
    methods = [OURS, LINEAR, "CellPulse, 1 − maximum probability"]
    scores = {m: [] for m in methods}
    labels, groups, names = [], [], []
    rows = np.flatnonzero(known)
    scores[OURS] += list(out[OURS]["novelty"][rows])
    scores[LINEAR] += list(1.0 - out[LINEAR]["virus"][rows].max(axis=1))
    scores[methods[2]] += list(1.0 - out[OURS]["virus"][rows].max(axis=1))
    labels += [False] * len(rows)
    groups += list(study[rows])
    names += list(virus[rows])
    for name in np.unique(virus[teaches]):
        for left_out in np.unique(study[teaches & (virus == name)]):
            rows = np.flatnonzero(teaches & (virus == name) & (study == left_out))
            model = train_virus(
                encoders.without(left_out),
                corpus,
                without_studies=[left_out],
                without_viruses=[name],
            )
            s = model.predict_scores(corpus[rows])
            scores[OURS] += list(s.novelty.numpy())
            scores[methods[2]] += list(1.0 - s.virus.exp().max(dim=1).values.numpy())
            train = np.flatnonzero(teaches & (virus != name) & (study != left_out))
            weight = unit_weights(virus[train], study[train], balance_labels=True)
            fitted = VirusLogisticRegression().fit(effects[train], virus[train], weight)
            scores[LINEAR] += list(1.0 - fitted.predict_proba(effects[rows]).max(axis=1))
            labels += [True] * len(rows)
            groups += [left_out] * len(rows)
            names += [name] * len(rows)
        print(f"left out {name}", flush=True)
    y, viruses = np.array(labels), np.array(names)
    weight = unit_weights(np.char.add(viruses.astype(str), y.astype(str)), np.array(groups))
    table, by_virus = [], {}
    for method in methods:
        score = np.array(scores[method])
        each = []
        for name in np.unique(viruses[y]):
            # a virus never competes with its own profiles among the known ones
            keep = (viruses == name) & y | (viruses != name) & ~y
            each.append(auroc(y[keep], score[keep], sample_weight=weight[keep]))
        by_virus[method] = np.array(each)
        pooled = auroc(y, score, sample_weight=weight)
        table.append({"method": method, "pooled AUROC": pooled, "mean over viruses": np.mean(each)})
    report.text(
        f"Unknown virus: each of {len(by_virus[OURS])} viruses is left out of training altogether, "
        "with the study; known are the viruses of the first table, their study left out."
    )
    report.table("novelty", pd.DataFrame(table), "Detection of a virus that training lacked")
    units = np.arange(len(by_virus[OURS]))
    row = paired_bootstrap(by_virus[OURS], by_virus[LINEAR], units)
    report.table(
        "novelty_paired",
        pd.DataFrame([{"CellPulse minus": f"{LINEAR}, 1 − maximum probability"} | row]),
        "Paired over viruses (95 % interval)",
    )


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--models", type=Path, default=MODELS, help="where fold models are kept")
    parser.add_argument("--max-steps", type=int, default=MAX_STEPS)
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    folder = data_folder(args.data)
    encoders = load_encoders(folder, args.models, args.max_steps)
    corpus = load_corpus(folder, encoders.models[0])
    obs = corpus.obs
    from_counts = (obs["source"] == "counts") & (obs["host"] == "human")
    obs["positive"] = (
        (obs["kind"] == "infection")
        & from_counts
        & obs["usable"].astype(bool)
        & obs["whole"].astype(bool)
    )
    null = (obs["kind"] == "null") & (obs["host"] == "human")
    obs["scored"] = obs["teaches_virus"] | obs["positive"] | null | (obs["kind"] == "stimulus")
    out = leave_one_study_out(corpus, encoders)
    report = Report("virus", "Virus calls in unseen studies")
    virus_table(report, corpus, out)
    set_table(report, corpus, out)
    infected_table(report, corpus, out)
    novelty_table(report, corpus, encoders, out)
    report.finish(args.write)


if __name__ == "__main__":
    main()
