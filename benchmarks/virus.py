"""How often the name of a virus is right in a study that was never seen, the world open.

``python -m benchmarks.virus`` leaves out one study at a time, whether or not its virus has another:
a user's virus may be one that no study in hand has. Every infection is named by each method; then
only where the score is high, and only where names of the same virus were right in other studies.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from benchmarks._report import Report, add_arguments, data_folder
from cfm._fields import NO_RESPONSE, VIRAL
from cfm.metrics import (
    VirusLogisticRegression,
    VirusNeighbors,
    expected_calibration_error,
    paired_bootstrap,
    unit_weights,
)
from cfm.models import CellPulse
from cfm.models.cellpulse._classifier import (
    MIN_STUDIES,
    MIN_SUPPORT,
    call_response,
    support_records,
)
from cfm.stats._similarity import Similarity, study_weights
from training.train_virus import load_corpus, train_virus

OURS = "CellPulse"
LINEAR = "weighted logistic regression"
THRESHOLDS = (0.0, 0.3, 0.5, 0.7, 0.9)


def open_world(corpus: ad.AnnData) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """Score the viruses of each infection with methods that never saw its study.

    Returns
    -------
    By method ``(n, viruses)`` scores, ``-inf`` for viruses that no other study has; and the
    out-of-fold table of CellPulse, from which they are made.
    """
    model = CellPulse.load("cellpulse-mini")
    table = train_virus(model, corpus)
    measured = (corpus.obs["source"] != "signed sets").to_numpy()
    corpus, table = corpus[measured], table[measured]
    viruses = np.array(model.require_classifier().classes)
    x = np.asarray(corpus.X)
    study = corpus.obs["study"].astype(str).to_numpy()
    label = corpus.obs["virus"].astype(str).to_numpy()
    teaches = corpus.obs["teaches_virus"].to_numpy(bool)
    ours = table[viruses].to_numpy(float)
    out = {OURS: np.where(np.isfinite(ours), np.exp(ours), -np.inf)}
    methods = {LINEAR: VirusLogisticRegression(), "k nearest profiles": VirusNeighbors()}
    for name in [*methods, "most similar infection"]:
        out[name] = np.full_like(ours, -np.inf)
    for left_out in np.unique(study):
        test, train = study == left_out, teaches & (study != left_out)
        for name, method in methods.items():
            weight = unit_weights(label[train], study[train], balance_labels=True)
            method.fit(x[train], label[train], weight)
            columns = np.searchsorted(viruses, method.classes_)
            out[name][np.ix_(test, columns)] = method.predict_proba(x[test])
        similarity = Similarity("leading", x[train], study_weights(study[train]))
        found = similarity.compare(similarity.transform(x[test]), similarity.transform(x[train]))
        for j, virus in enumerate(viruses):
            if (label[train] == virus).any():
                best = found[:, label[train] == virus].max(axis=1)
                out["most similar infection"][test, j] = best
    return out, table


def name_tables(report: Report, out: dict[str, np.ndarray], table: pd.DataFrame) -> None:
    """Tables of how often names are right."""
    label, study = table["label"].to_numpy(str), table["study"].to_numpy(str)
    viruses = table.columns[: out[OURS].shape[1]].to_numpy(str)
    infection = (table["response"] == VIRAL).to_numpy()
    units = np.char.add(np.char.add(label, "|"), study)[infection]
    rows, right = [], {}
    for name, score in out.items():
        own = score[infection]
        hit = pd.Series(viruses[own.argmax(axis=1)] == label[infection])
        known = own[np.arange(len(own)), np.searchsorted(viruses, label[infection])] > -np.inf
        rows.append(
            {
                "method": name,
                "right, over units": hit.groupby(units).mean().mean(),
                "over studies": hit.groupby(study[infection]).mean().mean(),
                "over contrasts": hit.mean(),
                "virus known, over units": hit[known].groupby(units[known]).mean().mean(),
            }
        )
        right[name] = hit.to_numpy(float)
    report.text(
        f"{infection.sum()} infections of {len(set(study[infection]))} studies "
        f"({len(set(units))} units of a virus and a study); the virus of {known.sum()} is in "
        "another study."
    )
    report.table("named", pd.DataFrame(rows), "Every infection named")
    paired = [
        {"CellPulse minus": name} | paired_bootstrap(right[OURS], right[name], units)
        for name in out
        if name != OURS
    ]
    report.table("named_paired", pd.DataFrame(paired), "Paired over units")
    rows = []
    for name in (OURS, LINEAR):
        top = out[name][infection].max(axis=1)
        for threshold in THRESHOLDS:
            keep = top >= threshold
            rows.append(
                {
                    "method": name,
                    "probability at least": threshold,
                    "named": int(keep.sum()),
                    "right": right[name][keep].mean() if keep.any() else np.nan,
                }
            )
    report.table("threshold", pd.DataFrame(rows), "Named where the score is high")
    proba = np.where(np.isfinite(out[OURS][infection]), out[OURS][infection], 0.0)
    weight = unit_weights(label[infection], study[infection])
    error = expected_calibration_error(
        label[infection], proba, viruses, sample_weight=weight / weight.sum()
    )
    report.text(f"Expected calibration error of the names of {OURS}: {error:.2f}.")
    report.value("ece", error)


def supported_table(report: Report, table: pd.DataFrame) -> None:
    """Name as ``names="supported"`` does, with support counted without the study itself."""
    names = [NO_RESPONSE, *[c for c in table if c in set(table["response"]) - {NO_RESPONSE}]]
    viruses = table.columns[: table.columns.get_loc(NO_RESPONSE)].to_numpy(str)
    label, study = table["label"].to_numpy(object), table["study"].to_numpy(str)
    response = table["response"].to_numpy(object)
    call = np.array(names, dtype=object)[call_response(table[names].to_numpy(float))]
    score = table[viruses].to_numpy(float)
    virus = viruses[np.where(np.isfinite(score), score, -np.inf).argmax(axis=1)].astype(object)
    answers = np.full(len(table), "", dtype=object)
    for left_out in np.unique(study):
        rest, own = study != left_out, study == left_out
        records = support_records(label[rest], response[rest], study[rest], call[rest], virus[rest])
        good = {
            (r["level"], r["answer"])
            for r in records
            if r["share"] >= MIN_SUPPORT and r["n_studies"] >= MIN_STUDIES
        }
        for i in np.flatnonzero(own):
            if call[i] == NO_RESPONSE:
                answers[i] = "uninfected"
            elif call[i] == VIRAL:
                answers[i] = "a virus" if ("virus", virus[i]) in good else "unresolved"
            else:
                answers[i] = "not viral" if ("not viral", call[i]) in good else "unresolved"
    right = {
        "uninfected": response == NO_RESPONSE,
        "a virus": virus == label,
        "not viral": ~np.isin(response, (NO_RESPONSE, VIRAL)),
    }
    rows = []
    for answer in ("uninfected", "a virus", "not viral", "unresolved"):
        given = answers == answer
        hit = right.get(answer)
        share = np.nan
        if hit is not None and given.any():
            share = pd.Series(hit[given]).groupby(study[given]).mean().mean()
        rows.append(
            {
                "answer": answer,
                "contrasts": int(given.sum()),
                "studies": len(set(study[given])),
                "right, mean over studies": share,
                "of infections": float(
                    (given & (response == VIRAL)).sum() / (response == VIRAL).sum()
                ),
            }
        )
    report.table(
        "supported", pd.DataFrame(rows), "Answers as given, support counted without the study"
    )
    counted = pd.DataFrame(support_records(label, response, study, call, virus))
    report.table("support", counted, "Support that the bundled rules would have", digits=2)


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    args = parser.parse_args()
    corpus = load_corpus(Path(data_folder(args.data)), CellPulse.load("cellpulse-mini"))
    corpus = corpus[corpus.obs["trains"].astype(bool).to_numpy()].copy()
    out, table = open_world(corpus)
    report = Report("virus", "Names of viruses in unseen studies, the world open")
    name_tables(report, out, table)
    supported_table(report, table)
    report.finish(args.write)


if __name__ == "__main__":
    main()
