"""Which kind of response a contrast shows, in studies that were never seen.

``python -m benchmarks.response`` leaves out one study at a time: the classifier of CellPulse by its
own out-of-fold predictions, and simple methods that are fitted on the same studies.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from benchmarks._report import Report, add_arguments, data_folder
from cfm._fields import NO_RESPONSE, VIRAL
from cfm.metrics import (
    InterferonRule,
    VirusLogisticRegression,
    VirusNeighbors,
    auroc,
    paired_bootstrap,
    unit_weights,
)
from cfm.models import CellPulse
from cfm.models.cellpulse._classifier import call_response
from cfm.stats._similarity import grade_effects
from training._responses import RESPONSES
from training.train_virus import load_corpus, train_virus

OURS = "CellPulse"
Fit = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def baselines(genes: pd.Index) -> dict[str, Fit]:
    """Functions of training effects, kinds, studies and test effects, to probabilities."""

    def regression(x: np.ndarray, y: np.ndarray, study: np.ndarray, test: np.ndarray) -> np.ndarray:
        measured = np.isfinite(x).mean(axis=0) >= 0.6
        weight = unit_weights(y, study, balance_labels=True)
        model = VirusLogisticRegression(C=10.0)
        model.fit(grade_effects(x[:, measured]), y, weight)
        return in_order(model.classes_, model.predict_proba(grade_effects(test[:, measured])))

    def neighbours(x: np.ndarray, y: np.ndarray, study: np.ndarray, test: np.ndarray) -> np.ndarray:
        model = VirusNeighbors().fit(x, y, unit_weights(y, study, balance_labels=True))
        return in_order(model.classes_, model.predict_proba(test))

    def interferon(x: np.ndarray, y: np.ndarray, study: np.ndarray, test: np.ndarray) -> np.ndarray:
        model = InterferonRule(genes.tolist(), uninfected=NO_RESPONSE)
        model.fit(x, y, unit_weights(y, study, balance_labels=True))
        return in_order(model.classes_, model.predict_proba(test))

    return {
        "logistic regression, six classes": regression,
        "k nearest profiles": neighbours,
        "interferon rule": interferon,
    }


def in_order(classes: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Put columns in the order of :data:`RESPONSES`; 0 for kinds that training lacked."""
    out = np.zeros((len(p), len(RESPONSES)))
    out[:, [RESPONSES.index(str(name)) for name in classes]] = p
    return out


def leave_one_study_out(corpus: ad.AnnData) -> dict[str, np.ndarray]:
    """Return ``(n, kinds)`` probabilities by method, each study scored without it."""
    obs = corpus.obs
    measured = (obs["source"] != "signed sets").to_numpy()
    x, genes = np.asarray(corpus.X)[measured], corpus.var_names
    y = obs["response"].astype(str).to_numpy()[measured]
    study = obs["study"].astype(str).to_numpy()[measured]
    model = CellPulse.load("cellpulse-mini")
    table = train_virus(model, corpus)
    names = np.array([NO_RESPONSE, *model.require_classifier().responses])
    out = {OURS: in_order(names, np.exp(table[names].to_numpy(float)[measured]))}
    for name, fit in baselines(genes).items():
        out[name] = np.full_like(out[OURS], np.nan)
        for left_out in np.unique(study):
            test = study == left_out
            out[name][test] = fit(x[~test], y[~test], study[~test], x[test])
    return out


def add_tables(
    report: Report, title: str, out: dict[str, np.ndarray], y: np.ndarray, study: np.ndarray
) -> None:
    """Score all methods on some of the contrasts."""
    scores, recalls, right = [], {}, {}
    stimulus = ~np.isin(y, (NO_RESPONSE, VIRAL))
    response = y != NO_RESPONSE
    for name, p in out.items():
        with np.errstate(divide="ignore"):
            place = call_response(np.log(p)) if name == OURS else p.argmax(axis=1)
        call = np.array(RESPONSES)[place]
        hit = pd.Series(call == y)
        recalls[name] = hit.groupby([y, study]).mean().groupby(level=0).mean().reindex(RESPONSES)
        viral = p[:, 1] / np.maximum(p[:, 1:].sum(axis=1), 1e-12)
        by_study = pd.Series(viral[response]).groupby([y[response] == VIRAL, study[response]])
        unit = by_study.mean()
        confused = pd.Series(call[stimulus] == VIRAL).groupby(study[stimulus]).mean()
        scores.append(
            {
                "method": name,
                "balanced accuracy": recalls[name].mean(),
                "stimuli called viral": confused.mean(),
                "AUROC infection/stimulus": auroc(y[response] == VIRAL, viral[response]),
                "over studies": auroc(
                    unit.index.get_level_values(0).to_numpy(bool), unit.to_numpy()
                ),
                "AUROC infection/control": auroc(y[~stimulus] == VIRAL, 1 - p[~stimulus, 0]),
            }
        )
        right[name] = hit.to_numpy(float)
    tag = title.replace(" ", "_")
    report.table(tag, pd.DataFrame(scores), f"Kind of response, {title}")
    table = pd.DataFrame(recalls).T.rename_axis("method").reset_index()
    report.table(f"{tag}_recall", table, f"Recall by kind, {title}", digits=2)
    units = np.char.add(np.char.add(y.astype(str), "|"), study.astype(str))
    paired = [
        {"CellPulse minus": name} | paired_bootstrap(right[OURS], right[name], units)
        for name in out
        if name != OURS
    ]
    report.table(f"{tag}_paired", pd.DataFrame(paired), f"Paired over units, {title}")


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    args = parser.parse_args()
    corpus = load_corpus(Path(data_folder(args.data)), CellPulse.load("cellpulse-mini"))
    corpus = corpus[corpus.obs["trains"].astype(bool).to_numpy()].copy()
    out = leave_one_study_out(corpus)
    obs = corpus.obs[(corpus.obs["source"] != "signed sets").to_numpy()]
    y = obs["response"].astype(str).to_numpy()
    study = obs["study"].astype(str).to_numpy()
    report = Report("response", "Kind of response in unseen studies")
    report.text(
        f"{len(y)} human contrasts of {len(set(study))} studies, one study left out at a time. "
        "Units (kind, study) weigh alike. CellPulse is also trained on pairs of ImmuneSigDB whose "
        "names tell the stimulus. Its settings were chosen on these contrasts, among about fifty "
        "that reached balanced accuracies of .39 to .61 over the five kinds of response. Published "
        "fold changes come from other pipelines than the stimuli, which were computed from counts: "
        "the second part is within the latter."
    )
    add_tables(report, "all contrasts", out, y, study)
    counts = ((obs["source"] == "counts") | (y == NO_RESPONSE)).to_numpy()
    some = {name: p[counts] for name, p in out.items()}
    add_tables(report, "from counts", some, y[counts], study[counts])
    report.finish(args.write)


if __name__ == "__main__":
    main()
