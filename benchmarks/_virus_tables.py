"""Tables of ``python -m benchmarks.virus``: names, sets, infection and novelty."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd

from benchmarks._report import Report
from benchmarks._virus_methods import (
    ALPHAS,
    BASELINES,
    LINEAR,
    OURS,
    Encoders,
)
from cfm.metrics import (
    VirusLogisticRegression,
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
from training.train_virus import train_virus


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
